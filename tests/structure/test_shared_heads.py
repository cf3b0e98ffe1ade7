"""Attention whose queries share heads of keys and values; faults of a trace are never the user's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halpiee.errors import StructureError
from halpiee.structure import relative_error, shrink, trace, verify
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import Call
from halpiee.structure.rules import RULES

from . import nets
from .corners import Net

WIDTH, HEADS, HEAD = 16, 4, 6


def rotated(x: Tensor) -> Tensor:
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)


def repeated(x: Tensor, times: int) -> Tensor:
    n, heads, length, width = x.shape
    x = x[:, :, None].expand(n, heads, times, length, width)
    return x.reshape(n, heads * times, length, width)


class Grouped(nn.Module):
    """Attention in the form of Llama, Qwen and Mistral.

    Args:
        shared: heads of keys and values.
        mode: ``eager`` and ``sdpa`` repeat them, ``gqa`` and ``broadcast`` leave that to torch.
        viewed: whether heads are viewed by their numbers or by their width.
        rotary: whether queries and keys are rotated.
        normed: whether they are normed over the width of a head.
    """

    def __init__(
        self, shared: int, mode: str, viewed: str = "numbers", rotary: bool = False, normed: bool = False
    ) -> None:
        super().__init__()
        self.mode, self.viewed, self.rotary = mode, viewed, rotary
        if viewed == "numbers":
            self.num_heads, self.num_key_value_heads = HEADS, shared
        self.head_dim, self.num_key_value_groups = HEAD, HEADS // shared
        self.q_proj = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.k_proj = nn.Linear(WIDTH, shared * HEAD, bias=False)
        self.v_proj = nn.Linear(WIDTH, shared * HEAD, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD, WIDTH, bias=False)
        self.q_norm = nn.RMSNorm(HEAD) if normed else nn.Identity()
        self.k_norm = nn.RMSNorm(HEAD) if normed else nn.Identity()

    def apart(self, x: Tensor, heads: str) -> Tensor:
        number = getattr(self, heads) if self.viewed == "numbers" else -1
        return x.view(*x.shape[:2], number, self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q_norm(self.apart(self.q_proj(x), "num_heads")).transpose(1, 2)
        k = self.k_norm(self.apart(self.k_proj(x), "num_key_value_heads")).transpose(1, 2)
        v = self.apart(self.v_proj(x), "num_key_value_heads").transpose(1, 2)
        if self.rotary:
            angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * torch.ones(
                self.head_dim, dtype=x.dtype
            )
            q = q * angle.cos() + rotated(q) * angle.sin()
            k = k * angle.cos() + rotated(k) * angle.sin()
        if self.mode in ("eager", "sdpa"):
            k, v = repeated(k, self.num_key_value_groups), repeated(v, self.num_key_value_groups)
        if self.mode == "eager":
            y = (q @ k.transpose(2, 3) * self.head_dim**-0.5).softmax(-1) @ v
        else:
            more: dict[str, Any] = {"enable_gqa": True} if self.mode == "gqa" else {}
            y = F.scaled_dot_product_attention(q, k, v, **more)
        found: Tensor = self.o_proj(y.transpose(1, 2).reshape(*x.shape[:2], -1))
        return found


def block(attention: nn.Module) -> Any:
    """An embedding, attention behind a norm and beside a skip, a gated layer, and the output."""

    def forward(m: Net, x: Tensor) -> Any:
        x = m.a(x)
        x = x + m.t(m.n(x))
        return m.b(x + m.down(F.silu(m.gate(x)) * m.up(x)))

    return nets.randomise(
        Net(
            forward,
            a=nn.Linear(5, WIDTH),
            n=nn.LayerNorm(WIDTH),
            t=attention,
            gate=nn.Linear(WIDTH, 20),
            up=nn.Linear(WIDTH, 20),
            down=nn.Linear(20, WIDTH),
            b=nn.Linear(WIDTH, 3),
        )
    ).double()


KINDS: list[list[Any]] = [
    ["eager", "sdpa", "gqa"], ["numbers", "width"], [(False, False), (True, False), (True, True)], [2, 4]
]  # fmt: skip
FORMS = itertools.product(*map(enumerate, KINDS))


@pytest.mark.parametrize(
    ("mode", "viewed", "turned", "shared"),
    # of any three of the four, every combination is among the quick ones
    [pytest.param(*(v for _, v in f), marks=[pytest.mark.slow] * (sum(i for i, _ in f) % 2)) for f in FORMS],
)
def test_a_head_of_keys_and_values_goes_with_the_heads_that_read_it(
    mode: str, viewed: str, turned: tuple[bool, bool], shared: int
) -> None:
    model = block(Grouped(shared, mode, viewed, *turned)).eval()
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    structure = trace(model, (x,))
    assert {g.name: g.size for g in structure.prunable} == {"a": WIDTH, "t.q_proj": shared, "gate": 20}
    keep = {
        "a": torch.arange(WIDTH) % 3 != 0,
        "t.q_proj": torch.arange(shared) == 1,
        "gate": torch.arange(20) < 7,
    }
    assert verify(model, structure, keep, (x,), tolerance=1e-12) <= 1e-12
    compact: Any = shrink(model, structure, keep)
    heads = HEADS // shared
    assert torch.equal(
        compact.t.q_proj.weight, model.t.q_proj.weight[heads * HEAD : 2 * heads * HEAD, keep["a"]]
    )
    assert torch.equal(compact.t.v_proj.weight, model.t.v_proj.weight[HEAD : 2 * HEAD, keep["a"]])


@pytest.mark.parametrize("mode", ["gqa", "broadcast"])
def test_where_all_heads_share_one_they_go_alone_and_it_stays(mode: str) -> None:
    model = block(Grouped(1, mode)).eval()
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    structure = trace(model, (x,))
    assert {g.name: g.size for g in structure.prunable} == {"a": WIDTH, "t.q_proj": HEADS, "gate": 20}
    for name in ("t.k_proj", "t.v_proj"):
        reason = "scaled_dot_product_attention in t, whose heads share their keys and values"
        assert structure.by_name[name].reason == reason
    keep = {"t.q_proj": torch.tensor([True, False, False, True]), "a": torch.arange(WIDTH) < 9}
    assert verify(model, structure, keep, (x,), tolerance=1e-12) <= 1e-12


@pytest.mark.parametrize("mode", ["eager", "sdpa"])
def test_where_a_number_says_how_often_one_is_repeated_only_the_attention_stays(mode: str) -> None:
    model = block(Grouped(1, mode)).eval()
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    structure = trace(model, (x,))
    assert {g.name for g in structure.prunable} == {"a", "gate"}
    assert all(" in t" in g.reason for g in structure.groups if g.name.startswith("t.") and g.reason)
    keep = {"a": torch.arange(WIDTH) % 2 == 0}
    assert verify(model, structure, keep, (x,), tolerance=1e-12) <= 1e-12


def test_a_width_of_heads_that_stays_blames_the_attention_alone() -> None:
    """Queries view by a number that keys and values do not have, and the width of a head scales the scores."""

    class Inline(Net):
        """Everything in one forward, as in short implementations of Llama."""

    def forward(m: Any, x: Tensor) -> Any:
        n, t, _ = (x := m.a(x)).shape
        y = m.n(x)
        q = m.q(y).view(n, t, m.n_head, m.head_dim)
        k, v = (part(y).view(n, t, m.n_kv, m.head_dim) for part in (m.k, m.v))
        k, v = (
            part[:, :, :, None]
            .expand(n, t, m.n_kv, m.n_head // m.n_kv, m.head_dim)
            .reshape(n, t, m.n_head, m.head_dim)
            for part in (k, v)
        )
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = (q @ k.transpose(2, 3) / m.head_dim**0.5).softmax(-1) @ v
        x = x + m.o(y.transpose(1, 2).contiguous().view(n, t, -1))
        return m.b(x + m.down(F.silu(m.gate(x)) * m.up(x)))

    layers = {"q": (16, 16), "k": (16, 8), "v": (16, 8), "o": (16, 16), "gate": (16, 20), "up": (16, 20)}
    model: Any = Inline(
        forward,
        a=nn.Linear(5, 16),
        n=nn.RMSNorm(16),
        down=nn.Linear(20, 16),
        b=nn.Linear(16, 3),
        **{name: nn.Linear(*sizes, bias=False) for name, sizes in layers.items()},
    )
    model.n_head, model.n_kv, model.head_dim = 4, 2, 4
    model = nets.randomise(model).double().eval()
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    structure = trace(model, (x,))
    assert {g.name for g in structure.prunable} == {"a", "gate"}
    assert structure.by_name["q"].reason == "div: a number computed from the width"
    keep = {"a": torch.arange(16) % 3 > 0, "gate": torch.arange(20) < 7}
    assert verify(model, structure, keep, (x,), tolerance=1e-12) <= 1e-12


def test_a_learned_bias_of_each_head_goes_with_its_head() -> None:
    class Biased(Grouped):
        def __init__(self, learned: bool) -> None:
            super().__init__(HEADS, "sdpa")
            table = torch.randn(HEADS, 9, dtype=torch.float64)
            self.table = nn.Parameter(table) if learned else table
            self.places = torch.arange(49).reshape(7, 7) % 9

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                self.apart(layer(x), "num_heads").transpose(1, 2)
                for layer in (self.q_proj, self.k_proj, self.v_proj)
            )
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.table[:, self.places])
            found: Tensor = self.o_proj(y.transpose(1, 2).reshape(*x.shape[:2], -1))
            return found

    x = torch.randn(2, 7, 5, dtype=torch.float64)
    model = block(Biased(learned=True)).eval()
    structure = trace(model, (x,))
    assert structure.by_name["t.q_proj"].prunable
    keep = {"t.q_proj": torch.tensor([False, True, True, False])}
    assert verify(model, structure, keep, (x,), tolerance=1e-12) <= 1e-12
    compact: Any = shrink(model, structure, keep)
    assert torch.equal(compact.t.table, model.t.table[1:3])
    fixed = trace(block(Biased(learned=False)).eval(), (x,))
    assert {g.name for g in fixed.prunable} == {"a", "gate"}


def sizes_by_number(m: Net, x: Tensor) -> Any:
    q, k = m.qk(m.a(x)).split([8, 4], -1)
    return m.b(q) + m.c(k)


def sizes_by_width(m: Net, x: Tensor) -> Any:
    h = m.a(x)
    q, k = m.qk(h).split([h.shape[-1] // 2, m.qk.out_features - h.shape[-1] // 2], -1)
    return m.b(q) + m.c(k)


@pytest.mark.parametrize("forward", [sizes_by_number, sizes_by_width])
def test_a_split_by_numbers_stays_and_the_layers_around_it_go(forward: Callable[..., Any]) -> None:
    model = nets.randomise(
        Net(forward, a=nn.Linear(5, 16), qk=nn.Linear(16, 12), b=nn.Linear(8, 3), c=nn.Linear(4, 3))
    ).double()
    x = torch.randn(2, 5, dtype=torch.float64)
    structure = trace(model, (x,))
    reason = structure.by_name["qk"].reason
    assert reason is None or "split" in reason
    if forward is sizes_by_number:
        assert {g.name for g in structure.prunable} == {"a"}
    keep = nets.random_keep(structure, 0)
    assert verify(model, structure, keep, (x,), tolerance=1e-12) <= 1e-12


def failing(recorder: Recorder, call: Call) -> None:
    raise ValueError("no such rule")


def test_a_rule_that_fails_freezes_what_its_op_touches_and_says_whose_fault_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RULES, "cat", failing)
    model = nets.randomise(
        Net(
            lambda m, x: m.d(torch.cat((m.a(x), m.b(x)), -1)) + m.f(F.gelu(m.e(x))),
            a=nn.Linear(5, 6),
            b=nn.Linear(5, 6),
            d=nn.Linear(12, 3),
            e=nn.Linear(5, 6),
            f=nn.Linear(6, 3),
        )
    ).double()
    x = torch.randn(2, 5, dtype=torch.float64)
    structure = trace(model, (x,))
    assert [g.name for g in structure.prunable] == ["e"]
    reason = structure.by_name["a"].reason
    assert reason == "cat, where halpiee's own rule fails (ValueError: no such rule)"
    keep = {"e": torch.arange(6) < 2}
    assert verify(model, structure, keep, (x,), tolerance=1e-12) <= 1e-12


def test_where_the_model_runs_and_its_trace_does_not_the_message_blames_the_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib

    tracing = importlib.import_module("halpiee.structure.trace")

    def broken(recorder: Recorder) -> None:
        raise IndexError("rows")

    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    monkeypatch.setattr(tracing, "assemble", broken)
    with pytest.raises(
        StructureError, match=r"\(IndexError: rows\); the model runs on .* a fault of halpiee and not"
    ):
        trace(model, (torch.ones(2, 5),))


class Asks(nn.Module):
    """Runs as it is, not where a mode looks on."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if torch.overrides._get_current_function_mode_stack():  # type: ignore[no-untyped-call]
            raise RuntimeError("no modes here")
        found: Tensor = self.a(x)
        return found


def test_a_forward_that_fails_under_the_trace_alone_is_not_the_users_fault() -> None:
    with pytest.raises(
        StructureError, match=r"no modes here\); the model runs on these inputs, so this is a fault of"
    ):
        trace(Asks(), (torch.ones(2, 5),))
    with pytest.raises(
        StructureError, match="check the inputs' shapes and types by calling the model yourself"
    ):
        trace(Asks(), (torch.ones(2, 4),))


def test_grouped_attention_equals_the_narrow_network_by_hand() -> None:
    attention = nets.randomise(Grouped(2, "gqa", rotary=True)).double()
    model = Net(lambda m, x: m.t(x), t=attention)
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    structure = trace(model, (x,))
    q, k, v, o = (getattr(attention, f"{n}_proj").weight for n in "qkvo")
    one = Grouped(1, "gqa", rotary=True).double()
    one.num_heads = 2
    one.q_proj.weight = nn.Parameter(q[12:])
    one.k_proj.weight, one.v_proj.weight = nn.Parameter(k[6:]), nn.Parameter(v[6:])
    one.o_proj.weight = nn.Parameter(o[:, 12:])
    compact = shrink(model, structure, {"t.q_proj": torch.tensor([False, True])})
    assert relative_error(compact(x), one(x)) <= 1e-12
