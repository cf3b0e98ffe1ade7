"""Norms of a masked model see the kept channels only, and everything else of their modules is left alone."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import halpiee
from halpiee.structure import Structure, masked, relative_error, shrink, trace, verify

from . import nets
from .corners import Net

TOKENS, IMAGE = (2, 6, 8), (2, 3, 4, 4)


class Conditioned(nn.LayerNorm):
    """A norm whose scale and shift are computed from a condition."""

    def __init__(self, width: int, given: int) -> None:
        super().__init__(width, elementwise_affine=False)
        self.project = nn.Linear(given, 2 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Any:  # type: ignore[override]
        scale, shift = self.project(condition).chunk(2, -1)
        return super().forward(x) * (1 + scale) + shift


class Optional(nn.LayerNorm):
    """A norm with an option."""

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        x = super().forward(x)
        return super().forward(x) if twice else x


class Gained(nn.LayerNorm):
    """A norm with parameters of one number."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.other = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain * self.other


class AddsFirst(nn.LayerNorm):
    """A norm of a sum, which it gives back too."""

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = x + residual
        return super().forward(x), x


class Own(nn.Module):
    """A norm that is no nn.LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalized_shape = (width,)
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, 1e-6)


class OwnRootMeanSquare(nn.Module):
    """A norm by function that holds its width under a name of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.d = width
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.d,), self.weight, 1e-6) * (x.shape[0] > 0)


class WrittenOut(nn.Module):
    """A norm of which each op is a function's or a method's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class OfImages(nn.LayerNorm):
    """A norm that puts channels last and back."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Grouped(nn.GroupNorm):
    """A group norm of one group with an argument and a parameter of one number."""

    def __init__(self, width: int) -> None:
        super().__init__(1, width)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x) * self.gain * scale


def between(norm: nn.Module, forward: Callable[..., Any], **parts: nn.Module) -> Net:
    """A linear layer a from 8 to 12, a norm n, a linear layer b from 12 to 5."""
    return Net(forward, a=nn.Linear(8, 12), n=norm, b=nn.Linear(12, 5), **parts)


def conv_between(norm: nn.Module, forward: Callable[..., Any]) -> Net:
    return Net(forward, a=nn.Conv2d(3, 8, 1), n=norm, b=nn.Conv2d(8, 4, 1))


def over_places(m: Net, x: Tensor) -> Any:
    """A norm by function over channels, then one over as many places."""
    x = F.layer_norm(m.a(x), (m.a.out_features,))
    return m.b(m.n(x.transpose(1, 2)).transpose(1, 2))


def over_channels_and_places(m: Net, x: Tensor) -> Any:
    """Two norms of one forward: over the channels, then over as many places."""
    x = F.layer_norm(m.a(x), (m.a.out_features,))
    return m.b(F.layer_norm(x.transpose(1, 2), (x.shape[1],)).transpose(1, 2) + x)


CASES: dict[str, tuple[Callable[[], Net], tuple[int, ...], dict[str, int]]] = {
    "a condition": (
        lambda: between(Conditioned(12, 8), lambda m, x: m.b(F.gelu(m.n(m.a(x), x)))),
        TOKENS,
        {"a": 12},
    ),
    "an option": (
        lambda: between(Optional(12), lambda m, x: m.b(F.gelu(m.n(m.a(x), twice=True)))),
        TOKENS,
        {"a": 12},
    ),
    "scalar parameters": (
        lambda: between(Gained(12), lambda m, x: m.b(F.gelu(m.n(m.a(x))))),
        TOKENS,
        {"a": 12},
    ),
    "a sum first": (
        lambda: between(
            AddsFirst(12), lambda m, x: m.b(F.gelu(sum(m.n(m.a(x), m.c(x))))), c=nn.Linear(8, 12)
        ),
        TOKENS,
        {"a": 12},
    ),
    "a class of its own": (
        lambda: between(Own(12), lambda m, x: m.b(F.gelu(m.n(m.a(x))))),
        TOKENS,
        {"a": 12},
    ),
    "channels turned": (
        lambda: conv_between(OfImages(8), lambda m, x: m.b(F.gelu(m.n(m.a(x))))),
        IMAGE,
        {"a": 8},
    ),
    "one group": (
        lambda: conv_between(Grouped(8), lambda m, x: m.b(F.gelu(m.n(m.a(x), scale=2.0)))),
        IMAGE,
        {"a": 8},
    ),
    "root mean square": (
        lambda: between(nn.RMSNorm(12), lambda m, x: m.b(F.gelu(m.n(m.a(x))))),
        TOKENS,
        {"a": 12},
    ),
    "a function in the network, a norm over places in it": (
        lambda: between(nn.LayerNorm(12), over_places),
        (2, 12, 8),
        {"a": 12},
    ),
    "norms over channels and over as many places": (
        lambda: between(nn.Identity(), over_channels_and_places),
        (2, 12, 8),
        {"a": 12},
    ),
    "a root mean square by function": (
        lambda: between(OwnRootMeanSquare(12), lambda m, x: m.b(F.gelu(m.n(m.a(x))))),
        TOKENS,
        {"a": 12},
    ),
    "a root mean square written out": (
        lambda: between(WrittenOut(12), lambda m, x: m.b(F.gelu(m.n(m.a(x))))),
        TOKENS,
        {"a": 12},
    ),
    "a length of what is not 0": (
        lambda: conv_between(nn.Identity(), lambda m, x: m.b(F.normalize(m.a(x).sigmoid(), dim=1))),
        IMAGE,
        {"a": 8},
    ),
    "two streams through one group norm without parameters": (
        lambda: Net(
            lambda m, x: m.b(m.n(m.a(x))) + m.d(m.n(m.c(x))),
            a=nn.Conv2d(3, 8, 1),
            n=nn.GroupNorm(4, 8, affine=False),
            b=nn.Conv2d(8, 4, 1),
            c=nn.Conv2d(3, 8, 1),
            d=nn.Conv2d(8, 4, 1),
        ),
        IMAGE,
        {"a": 4},
    ),
    "two streams through one norm without parameters": (
        lambda: between(
            nn.LayerNorm(12, elementwise_affine=False),
            lambda m, x: m.b(m.n(m.a(x))) + m.d(m.n(m.c(x))),
            c=nn.Linear(8, 12),
            d=nn.Linear(12, 5),
        ),
        TOKENS,
        {"a": 12},
    ),
}


@cache
def built(name: str) -> tuple[Any, Tensor, Structure, dict[str, Tensor]]:
    builder, shape, prunable = CASES[name]
    model = nets.randomise(builder()).double().eval()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    structure = trace(model, (x,))
    assert {g.name: g.size for g in structure.prunable} == prunable
    return model, x, structure, {name: torch.arange(size) % 3 != 0 for name, size in prunable.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_norm_sees_the_kept_channels_whatever_its_forward_takes_and_does(name: str) -> None:
    model, x, structure, keep = built(name)
    assert verify(model, structure, keep, (x,), tolerance=1e-12) <= 1e-12


@pytest.mark.parametrize("name", CASES)
def test_modules_of_the_masked_model_keep_class_attributes_signature_and_state(name: str) -> None:
    model, x, structure, keep = built(name)
    full = masked(model, structure, keep)
    assert list(full.state_dict()) == list(model.state_dict())
    for (path, one), (other_path, other) in zip(full.named_modules(), model.named_modules(), strict=True):
        assert path == other_path
        assert type(one) is type(other)
        assert set(vars(one)) == set(vars(other))
        assert inspect.signature(one.forward) == inspect.signature(other.forward)
    assert torch.equal(copy.deepcopy(full)(x), full(x))


# torch 2.11 asks for the gradient of what a compiled hook is given, which warns where it is no leaf.
GRADIENT_ASKED = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@GRADIENT_ASKED
@pytest.mark.slow  # compiles
@pytest.mark.parametrize("name", CASES)
def test_the_masked_model_compiles_and_exports_whole(name: str) -> None:
    model, x, structure, keep = built(name)
    full = masked(model, structure, keep)
    expected = full(x)
    torch._dynamo.reset()
    for backend in ("aot_eager", "eager"):
        assert relative_error(torch.compile(full, backend=backend, fullgraph=True)(x), expected) <= 1e-12
        torch._dynamo.reset()
    assert relative_error(torch.export.export(full, (x,), strict=False).module()(x), expected) <= 1e-12
    assert torch.overrides._get_current_function_mode_stack() == []  # type: ignore[no-untyped-call]


@GRADIENT_ASKED
@pytest.mark.parametrize(
    "inner",
    [
        nn.LayerNorm(16),
        *(pytest.param(n, marks=pytest.mark.slow) for n in (nn.GroupNorm(1, 16), nn.RMSNorm(16))),
    ],
)
def test_norms_of_the_outermost_module_are_compiled_once(inner: nn.Module) -> None:
    class Outermost(nn.Module):
        """A norm by function in the forward of the network itself, and a module's of the same width behind it."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
            self.n, self.n2 = nn.LayerNorm(16), inner

        def forward(self, x: Tensor) -> Any:
            x = self.a(x)
            x = F.layer_norm(x, x.shape[-1:], bias=self.n.bias, weight=self.n.weight)
            return self.c(self.n2(self.b(torch.relu(x))))

    torch.manual_seed(0)
    model, x = Outermost().double().eval(), torch.randn(3, 8).double()
    structure = trace(model, (x,))
    assert {g.name for g in structure.prunable} >= {"a"}
    keep = {"a": torch.arange(16) % 3 > 0}
    full = masked(model, structure, keep)
    expected = shrink(model, structure, keep)(x)
    for backend in ("eager", "aot_eager"):
        torch._dynamo.reset()
        assert relative_error(full(x), expected) <= 1e-12
        assert relative_error(torch.compile(full, backend=backend, fullgraph=True)(x), expected) <= 1e-12
        assert relative_error(full(x), expected) <= 1e-12


def test_a_conditioned_norm_equals_its_formula_over_the_kept_channels() -> None:
    model, x, structure, keep = built("a condition")
    at = keep["a"].nonzero().flatten()
    h = F.linear(x, model.a.weight[at], model.a.bias[at])
    centred = h - h.mean(-1, keepdim=True)
    h = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    project = model.n.project
    scale = F.linear(x, project.weight[:12][at], project.bias[:12][at])
    shift = F.linear(x, project.weight[12:][at], project.bias[12:][at])
    by_hand = F.linear(F.gelu(h * (1 + scale) + shift), model.b.weight[:, at], model.b.bias)
    assert relative_error(masked(model, structure, keep)(x), by_hand) <= 1e-12
    assert relative_error(shrink(model, structure, keep)(x), by_hand) <= 1e-12


@pytest.mark.parametrize("norm", [nn.LayerNorm(12), nn.RMSNorm(12)])
def test_a_norm_under_several_names_equals_the_narrow_network_by_hand(
    norm: nn.LayerNorm | nn.RMSNorm,
) -> None:
    def forward(m: Net, x: Tensor) -> Any:
        x = m.a(x)
        for linear, shared in zip(m.linears, m.norms, strict=True):
            x = x + F.gelu(shared(linear(x)))
        return m.b(x)

    model = between(
        nn.Identity(),
        forward,
        linears=nn.ModuleList(nn.Linear(12, 12) for _ in range(3)),
        norms=nn.ModuleList([norm] * 3),
    )
    model = nets.randomise(model).double().eval()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    structure = trace(model, (x,))
    keep = torch.arange(12) % 2 == 0
    at = keep.nonzero().flatten()
    h = F.linear(x, model.a.weight[at], model.a.bias[at])
    for linear in model.linears:
        y = F.linear(h, linear.weight[at][:, at], linear.bias[at])
        if isinstance(norm, nn.LayerNorm):
            y = F.layer_norm(y, (6,), norm.weight[at], norm.bias[at])
        else:
            y = F.rms_norm(y, (6,), norm.weight[at])
        h = h + F.gelu(y)
    by_hand = F.linear(h, model.b.weight[:, at], model.b.bias)
    assert relative_error(masked(model, structure, {"a": keep})(x), by_hand) <= 1e-12


@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}, {"norm_first": True}, {"bias": False}])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:The PyTorch API of nested tensors")
def test_encoder_layers_of_torch_are_masked_exactly(options: dict[str, Any], padded: bool) -> None:
    def forward(m: Net, x: Tensor, padding: Tensor | None = None) -> Any:
        return m.head(m.encoder(m.embed(x), src_key_padding_mask=padding))

    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **options)
    model = Net(
        forward,
        embed=nn.Linear(8, 16),
        encoder=nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16)),
        head=nn.Linear(16, 5),
    )
    model = nets.randomise(model).double().eval()
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    inputs: tuple[Tensor, ...] = (x, torch.arange(6) >= torch.tensor([[4], [2], [6]])) if padded else (x,)
    structure = trace(model, inputs)
    assert {"embed", "encoder.layers.0.linear1"} <= {g.name for g in structure.prunable}
    for names in (["embed"], [g.name for g in structure.prunable]):
        keep = {n: torch.arange(structure.by_name[n].size) % 2 == 0 for n in names}
        assert verify(model, structure, keep, inputs, tolerance=1e-12) <= 1e-12
        with torch.no_grad():  # as a user calls them, without a look at the places that are padded
            one, other = (
                masked(model, structure, keep)(*inputs),
                halpiee.shrink(model, structure, keep)(*inputs),
            )
        seen = ~inputs[1] if padded else slice(None)
        assert relative_error(one[seen], other[seen]) <= 1e-12
