"""Norms that a forward writes out in means, roots and quotients: cut with the channels, over which they run anew.

Expected values are the formulas over the kept channels, written with torch's functions beside the networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halpiee.structure import masked, relative_error, shrink, trace

from . import nets
from .corners import IMAGE, TOKENS, Net, ab, is_cut_exactly, stays_and_says_why

sigmoid = torch.sigmoid


class RootMeanSquare(nn.Module):
    """Zhang and Sennrich 2019, equation 4, as Llama's code has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Any:
        variance = x.to(torch.float64).pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + 1e-6)).to(x.dtype)


class ResponseNorm(nn.Module):
    """Woo et al. 2023, global response normalisation, channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.ones(1, 1, 1, width)) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        g = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (g / (g.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


class Block(nn.Module):
    """Attention and a gated network, each behind its norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n1, self.n2 = RootMeanSquare(width), RootMeanSquare(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(width, 20), nn.Linear(width, 20), nn.Linear(20, width)
        self.num_heads, self.head_dim = heads, width // heads

    def forward(self, x: Tensor) -> Any:
        n, t, _ = x.shape
        y = self.n1(x)
        q, k, v = (
            part(y).view(n, t, self.num_heads, self.head_dim).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1))
        y = self.n2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def test_a_transformer_with_norms_of_its_own_loses_width_heads_and_inner_channels() -> None:
    model = Net(
        lambda m, x: m.h(m.n(m.block(m.e(x)))),
        e=nn.Linear(3, 12),
        block=Block(12, 3),
        n=RootMeanSquare(12),
        h=nn.Linear(12, 5),
    )
    model = nets.randomise(model).double().eval()
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    structure = trace(model, (x,))
    assert {g.name: g.size for g in structure.prunable} == {"e": 12, "block.q": 3, "block.gate": 20}
    assert not structure.by_name["e"].trainable
    keep = {"e": torch.arange(12) % 3 > 0, "block.q": torch.tensor([True, False, True])}
    keep["block.gate"] = torch.arange(20) % 2 > 0
    at, inner = (keep[name].nonzero().flatten() for name in ("e", "block.gate"))
    rows = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])  # of the heads 0 and 2

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (8,), weight[at], 1e-6)

    def linear(x: Tensor, layer: nn.Linear, outs: Tensor, ins: Tensor) -> Tensor:
        return F.linear(x, layer.weight[outs][:, ins], layer.bias[outs])

    b, every = model.block, torch.arange(5)
    h = linear(x, model.e, at, torch.arange(3))
    y = norm(h, b.n1.weight)
    q, k, v = (linear(y, part, rows, at).view(2, 6, 2, 4).transpose(1, 2) for part in (b.q, b.k, b.v))
    attended = (q @ k.mT / 2).softmax(-1) @ v
    h = h + linear(attended.transpose(1, 2).flatten(2), b.o, at, rows)
    y = norm(h, b.n2.weight)
    h = h + linear(F.silu(linear(y, b.gate, inner, at)) * linear(y, b.up, inner, at), b.down, at, inner)
    expected = linear(norm(h, model.n.weight), model.h, every, at)
    assert relative_error(shrink(model, structure, keep)(x), expected) <= 1e-12
    assert relative_error(masked(model, structure, keep)(x), expected) <= 1e-12


def test_a_response_norm_compares_the_kept_channels() -> None:
    """By hand: x + beta + gamma · x · ‖x_c‖ / mean of ‖x_c‖ over channels 0, 2, 5."""
    model = Net(
        lambda m, x: m.b(m.n(F.gelu(m.a(x)))), a=nn.Linear(3, 7), n=ResponseNorm(7), b=nn.Linear(7, 4)
    )
    model = nets.randomise(model).double().eval()
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    structure = trace(model, (x,))
    at = torch.tensor([0, 2, 5])
    keep = {"a": torch.isin(torch.arange(7), at)}
    y = F.gelu(F.linear(x, model.a.weight[at], model.a.bias[at]))
    size = y.square().sum((1, 2), keepdim=True).sqrt()
    n = size * 3 / (size[..., :1] + size[..., 1:2] + size[..., 2:] + 3e-6)
    y = y + model.n.beta[..., at] + model.n.gamma[..., at] * y * n
    expected = F.linear(y, model.b.weight[:, at], model.b.bias)
    assert relative_error(shrink(model, structure, keep)(x), expected) <= 1e-12
    assert relative_error(masked(model, structure, keep)(x), expected) <= 1e-12


def layer_norm(m: Any, x: Tensor) -> Any:
    y = sigmoid(m.a(x))
    u = y.mean(1, keepdim=True)
    return m.b((y - u) / torch.sqrt((y - u).pow(2).mean(1, keepdim=True) + 1e-6))


def by_moments(m: Any, x: Tensor) -> Any:
    """Variance as mean of squares minus square of mean."""
    y = sigmoid(m.a(x))
    u = y.mean(1, keepdim=True)
    return m.b((y - u) * (y.square().mean(1, keepdim=True) - u * u + 1e-6) ** -0.5)


def by_one_function(m: Any, x: Tensor) -> Any:
    y = sigmoid(m.a(x))
    variance, mean = torch.var_mean(y, 1, unbiased=False, keepdim=True)
    return m.b((y - mean) / (variance + 1e-6).sqrt())


def over_all(m: Any, x: Tensor) -> Any:
    """One number an image, over channels and positions."""
    y = sigmoid(m.a(x))
    return m.b((y - y.mean((1, 2, 3), keepdim=True)) / (y.std((1, 2, 3), keepdim=True) + 1e-6))


def without_a_dimension(m: Any, x: Tensor) -> Any:
    y = sigmoid(m.a(x))
    return m.b(y / y.mean(1)[:, None])


NORMS: dict[str, Callable[[Any, Tensor], Any]] = {
    "layer norm": layer_norm,
    "by moments": by_moments,
    "by one function": by_one_function,
    "over channels and positions": over_all,
    "without a dimension": without_a_dimension,
    "of length one": lambda m, x: m.b(F.normalize(m.a(x), dim=1)),
    "of length one, of what is not 0": lambda m, x: m.b(F.normalize(sigmoid(m.a(x)), dim=1)),
    "by the largest norm": lambda m, x: m.b(
        (y := sigmoid(m.a(x))) / torch.linalg.vector_norm(y, 3, 1, keepdim=True)
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_written_by_hand_is_cut_exactly(name: str) -> None:
    is_cut_exactly(lambda: ab(NORMS[name]), IMAGE, {"a"})


def test_a_norm_written_by_hand_equals_torchs_over_the_kept_channels() -> None:
    x = torch.randn(IMAGE, dtype=torch.float64)
    at = torch.tensor([1, 4, 5, 7])
    for forward in (layer_norm, by_moments, by_one_function):
        model = nets.randomise(ab(forward)).double().eval()
        compact = shrink(model, trace(model, (x,)), {"a": torch.isin(torch.arange(8), at)})
        y = sigmoid(F.conv2d(x, model.a.weight[at], model.a.bias[at]))
        y = F.layer_norm(y.permute(0, 2, 3, 1), (4,), eps=1e-6).permute(0, 3, 1, 2)
        assert relative_error(compact(x), F.conv2d(y, model.b.weight[:, at], model.b.bias)) <= 1e-10


def test_a_length_over_zeros_can_be_trained_with() -> None:
    group = trace(ab(NORMS["of length one"]), (torch.zeros(IMAGE),)).by_name["a"]
    assert (group.prunable, group.trainable) == (True, True)


USES: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a gate of the mean": (
        lambda m, x: m.b((y := sigmoid(m.a(x))) * sigmoid(y.mean(1, keepdim=True))),
        "mean over channels",
    ),
    "the mean as an output": (lambda m, x: (m.b(y := m.a(x)), y.mean(1)), "mean over channels"),
    "added": (lambda m, x: m.b((y := m.a(x)) + y.std(1, keepdim=True)), "std over channels"),
    "divided": (lambda m, x: m.b((y := sigmoid(m.a(x))).mean(1, keepdim=True) / y), "mean over channels"),
    "joined to channels": (
        lambda m, x: m.b(torch.cat([(y := m.a(x)), y.var(1, keepdim=True)], 1)[:, : m.a.out_channels]),
        "var over channels",
    ),
}


@pytest.mark.parametrize("name", USES)
def test_an_average_that_is_no_norms_holds_its_channels(name: str) -> None:
    forward, reason = USES[name]
    stays_and_says_why(lambda: ab(forward), IMAGE, reason)


def test_an_average_that_is_only_logged_holds_nothing() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = sigmoid(m.a(x))
        m.log = y.mean(1), (y / y.mean(1, keepdim=True)).sum()
        del m.log
        return m.b(y)

    group = trace(ab(forward), (torch.zeros(IMAGE),)).by_name["a"]
    assert (group.prunable, group.trainable) == (True, True)


def test_functional_norms_of_one_forward_tie_no_streams() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        one, other = m.a(x), m.c(x)
        return m.b(F.layer_norm(one, one.shape[-1:])) + m.d(F.layer_norm(other, other.shape[-1:]))

    is_cut_exactly(
        lambda: Net(forward, a=nn.Linear(3, 8), b=nn.Linear(8, 4), c=nn.Linear(3, 8), d=nn.Linear(8, 4)),
        TOKENS,
        {"a", "c"},
    )


class Centred(nn.Module):
    """A norm without parameters, for any width."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def through_one_norm(width: int) -> Net:
    return Net(
        lambda m, x: m.b(m.n(m.a(x))) + m.d(m.n(m.c(x))),
        a=nn.Linear(3, 8),
        n=Centred(),
        b=nn.Linear(8, 4),
        c=nn.Linear(3, width),
        d=nn.Linear(width, 4),
    )


def test_two_streams_through_one_norm_of_their_own_width_have_one_width() -> None:
    is_cut_exactly(lambda: through_one_norm(8), TOKENS, {"a"})


def test_two_streams_of_other_widths_through_one_norm_stay() -> None:
    stays_and_says_why(
        lambda: through_one_norm(6), TOKENS, "mean in n over channels of another number elsewhere"
    )


FILTERS: dict[str, Callable[[Any, Tensor], Any]] = {
    "repeated": lambda m, x: F.conv2d(x, m.k.repeat(x.shape[1], 1, 1, 1), groups=x.shape[1], padding=1),
    "expanded": lambda m, x: F.conv2d(x, m.k.expand(x.shape[1], 1, 3, 3), groups=x.shape[1], padding=1),
    "of another type": lambda m, x: F.conv2d(
        x, m.k.float().repeat(x.shape[1], 1, 1, 1).to(x.dtype), groups=x.shape[1], padding=1
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_one_fixed_filter_for_all_channels_lets_them_go(name: str) -> None:
    """As pooling with a blur: each kept channel is filtered alone."""
    model: Any = nets.randomise(
        ab(lambda m, x: m.b(FILTERS[name](m, sigmoid(m.a(x)))), k=torch.ones(1, 1, 3, 3))
    ).double()
    model.k.copy_(torch.arange(9.0).view(1, 1, 3, 3) / 8)
    x = torch.randn(IMAGE, dtype=torch.float64)
    structure = trace(model.eval(), (x,))
    assert {g.name: g.size for g in structure.prunable} == {"a": 8}
    at = torch.tensor([0, 3, 6])
    keep = {"a": torch.isin(torch.arange(8), at)}
    y = sigmoid(F.conv2d(x, model.a.weight[at], model.a.bias[at]))
    y = torch.cat([F.conv2d(y[:, [c]], model.k, padding=1) for c in range(3)], 1)
    expected = F.conv2d(y, model.b.weight[:, at], model.b.bias)
    assert relative_error(shrink(model, structure, keep)(x), expected) <= 1e-12
    assert relative_error(masked(model, structure, keep)(x), expected) <= 1e-12


def test_circular_padding_keeps_each_channel() -> None:
    convs: list[Any] = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
    for dims, conv in enumerate(convs, start=1):
        inner = conv(8, 6, 3, padding=1, padding_mode="circular")
        model = nn.Sequential(conv(3, 8, 1), nn.ReLU(), inner, conv(6, 4, 1))
        is_cut_exactly(model.float, (1, 3, *(4,) * dims), {"0", "2"})
