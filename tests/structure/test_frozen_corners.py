"""Ways of writing a forward of which no channel can go: each stays whole, with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halpiee.structure import trace

from .corners import IMAGE, TOKENS, Net, ab, number, stays_and_says_why

sigmoid = torch.sigmoid


def written(m: Any, x: Tensor) -> Any:
    """Writes channels into a part of a fresh tensor."""
    out = x.new_zeros(2, 8, 8, 8)
    out[:, 2:6] = sigmoid(m.c(x))
    return m.b(out)


def added_in_place(m: Any, x: Tensor) -> Any:
    y = sigmoid(m.a(x))
    y[:, :4].add_(sigmoid(m.c(x)))
    return m.b(y)


def width_switch(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    return m.b(sigmoid(y) if y.shape[1] > 6 else torch.relu(y))


def spatial_gate(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    return m.b(y * sigmoid(m.g(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1))))


def sum_of_a_half(m: Any, x: Tensor) -> Any:
    """Four of eight channels by number, whose sum has the same shape however many there are."""
    y = torch.relu(m.a(x))
    return m.b(y * torch.tanh(y[:, :4].sum(1, keepdim=True)))


def zeros_written_over(m: Any, x: Tensor) -> Any:
    """A removed channel is 0 after the relu, and 1 after something else is written through a view."""
    y = torch.relu(m.a(x))
    y.flatten(2).add_(1.0)
    return m.b(y * torch.tanh(y.sum(1, keepdim=True)))


def zeros_written_into_ones(m: Any, x: Tensor) -> Any:
    y = torch.relu(m.a(x))
    z = torch.ones_like(y)
    z[torch.tensor([0])] = y[:1]
    return m.b(y * torch.tanh(z.sum(1, keepdim=True)))


def across_channels(m: Any, x: Tensor) -> Any:
    """A gate from a convolution that runs along the channels (as in ECA)."""
    y = sigmoid(m.a(x))
    gate = m.e(y.mean((2, 3)).unsqueeze(1)).squeeze(1)
    return m.b(y * sigmoid(gate)[:, :, None, None])


def swapped(m: Any, x: Tensor) -> Any:
    y = sigmoid(m.a(x))
    return m.b(torch.cat([y[:, 4:], y[:, :4]], 1))


FROZEN: dict[str, tuple[Callable[[], Net], tuple[int, ...], str]] = {
    "rolled channels": (
        lambda: ab(lambda m, x: m.b(sigmoid(m.a(x)).roll(2, 1))),
        IMAGE,
        "a size or an index there",
    ),
    "permuted channels": (
        lambda: ab(
            lambda m, x: m.b(sigmoid(m.a(x))[:, m.order]), order=torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
        ),
        IMAGE,
        "index",
    ),
    "halves swapped by numbers": (lambda: ab(swapped), IMAGE, "slice with literal bounds"),
    "sum of a half by number": (lambda: ab(sum_of_a_half), IMAGE, "slice with literal bounds"),
    "zeros written over through a view": (lambda: ab(zeros_written_over), IMAGE, "sum over channels"),
    "zeros written into ones": (lambda: ab(zeros_written_into_ones), IMAGE, "sum over channels"),
    "convolution along the channels": (
        lambda: ab(across_channels, e=nn.Conv1d(1, 1, 3, padding=1)),
        IMAGE,
        "convolution in e with a weight that does not shrink",
    ),
    "part added in place": (
        lambda: ab(added_in_place, c=nn.Conv2d(3, 4, 1)),
        IMAGE,
        "slice with literal bounds",
    ),
    "part written": (
        lambda: Net(written, c=nn.Conv2d(3, 4, 1), b=nn.Conv2d(8, 5, 1)),
        IMAGE,
        "copy_ with a constant of the same width",
    ),
    "spatial attention": (
        lambda: ab(spatial_gate, g=nn.Conv2d(2, 1, 3, padding=1)),
        IMAGE,
        "amax over channels",
    ),
    "gram matrix": (
        lambda: Net(
            lambda m, x: m.h(((y := m.a(x).flatten(2)) @ y.transpose(1, 2)).flatten(1)),
            a=nn.Conv2d(3, 8, 1),
            h=nn.Linear(64, 4),
        ),
        IMAGE,
        "bmm of two tensors with channels",
    ),
    "weight times its mean over inputs": (
        lambda: ab(
            lambda m, x: F.conv2d(sigmoid(m.a(x)), m.b.weight * m.b.weight.mean((1, 2, 3), keepdim=True))
        ),
        IMAGE,
        "mean over channels",
    ),
    "weight minus its mean over inputs behind a sigmoid": (
        lambda: ab(
            lambda m, x: F.conv2d(sigmoid(m.a(x)), m.b.weight - m.b.weight.mean((1, 2, 3), keepdim=True))
        ),
        IMAGE,
        "convolution of channels that are not 0 when removed, with a centred weight",
    ),
    "sum of weights": (
        lambda: ab(lambda m, x: F.conv2d(sigmoid(m.a(x)), m.b.weight + m.shift), shift=number(1, 8, 1, 1)),
        IMAGE,
        "convolution with a weight that is a sum of parameters",
    ),
    "plain logarithm": (
        lambda: ab(lambda m, x: m.b(torch.log(m.a(x).abs()))),
        IMAGE,
        "log is not finite at 0",
    ),
    "one over": (lambda: ab(lambda m, x: m.b(1 / m.a(x))), IMAGE, "reciprocal is not finite at 0"),
    "a path by width": (lambda: ab(width_switch), IMAGE, "the forward takes another path at another width"),
    "a gate of the vector's length": (
        lambda: ab(lambda m, x: m.b((y := sigmoid(m.a(x))) * torch.tanh(y.norm(dim=1, keepdim=True)))),
        IMAGE,
        "linalg_vector_norm over channels",
    ),
    "functional layer norm": (
        lambda: Net(lambda m, x: m.b(F.layer_norm(m.a(x), (8,))), a=nn.Linear(3, 8), b=nn.Linear(8, 5)),
        TOKENS,
        "native_layer_norm with sizes that do not follow the channels",
    ),
    "norm over channels and positions": (
        lambda: ab(lambda m, x: m.b(sigmoid(m.n(m.a(x)))), n=nn.LayerNorm((8, 8, 8))),
        IMAGE,
        "native_layer_norm in n over several dimensions",
    ),
    "unflattened by numbers": (
        lambda: Net(
            lambda m, x: m.b(sigmoid(m.a(x)).view(-1, 6, 2, 2)), a=nn.Linear(3, 24), b=nn.Conv2d(6, 5, 1)
        ),
        (2, 3),
        "view with sizes that do not follow the channels",
    ),
    "a tensor made of the width": (
        lambda: ab(lambda m, x: m.b((y := m.a(x)) / torch.sqrt(torch.tensor(y.shape[1])))),
        IMAGE,
        "a number computed from the width becomes a tensor",
    ),
    "patches": (
        lambda: ab(lambda m, x: m.b(F.fold(F.unfold(sigmoid(m.a(x)), 1), (8, 8), 1))),
        IMAGE,
        "im2col",
    ),
    "depthwise by number": (
        lambda: ab(lambda m, x: m.b(sigmoid(F.conv2d(m.a(x), m.k, groups=8))), k=number(8, 1, 1, 1)),
        IMAGE,
        "convolution with sizes that do not follow the channels",
    ),
    "recurrent": (
        lambda: Net(
            lambda m, x: m.h(m.r(torch.tanh(m.a(x)))[0]),
            a=nn.Linear(3, 8),
            r=nn.LSTM(8, 6, batch_first=True),
            h=nn.Linear(6, 4),
        ),
        (2, 6, 3),
        "the forward of r checks its widths",
    ),
}
"""What stays: builder, input shape, how the reason of the first layer's group begins."""


@pytest.mark.parametrize("name", FROZEN)
def test_what_cannot_be_cut_stays_and_says_why(name: str) -> None:
    stays_and_says_why(*FROZEN[name])


@pytest.mark.parametrize("width", [2, 3, 4, 64], ids=str)
@pytest.mark.parametrize("between", [0, 1, 2, 5])
def test_a_reshape_to_the_width_of_another_layer_of_that_width_holds_both(width: int, between: int) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.a(x)
        y = x
        for part in m.parts:
            y = part(torch.sigmoid(y))
        n, c, h, w = x.shape  # the width of a, not of what is reshaped
        return m.d(torch.sigmoid(m.b(y)).reshape(n, c, h, w)).mean((2, 3))

    model = Net(
        forward,
        a=nn.Conv2d(3, width, 1),
        parts=nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(between)),
        b=nn.Conv2d(width, width, 1),
        d=nn.Conv2d(width, 5, 1),
    ).eval()
    structure = trace(model, (torch.ones(IMAGE),))
    assert not {"a", "b"} & {g.name for g in structure.prunable}


def test_a_layer_that_nothing_went_through_stays() -> None:
    """A detector that finds no object: what its loop over objects would read is not known."""

    def forward(m: Any, x: Tensor) -> Any:
        y = sigmoid(m.a(x))
        answer = m.b(y)
        found = torch.nonzero(sigmoid(m.s(x)).mean((1, 2, 3)) > 2).flatten()  # never: a sigmoid is below 1
        for one in m.c(y[found]):
            answer = answer + one[:5]
        return answer

    model = ab(forward, c=nn.Conv2d(8, 7, 1), s=nn.Conv2d(3, 1, 1)).eval()
    structure = trace(model, (torch.randn(IMAGE),))
    assert {g.name for g in structure.prunable} == {"a"}
    assert structure.by_name["c"].reason == "convolution in c of no element: what reads it was not seen"


class Heads(nn.Module):
    """Values per head, joined by a number that the class has stored, between two streams."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.v, self.joined = nn.Linear(c_in, 4 * 5), 4 * 5
        self.proj = nn.Linear(4 * 5, c_out)

    def forward(self, x: Tensor) -> Any:
        n, t, _ = x.shape
        heads = self.v(x).view(n, t, -1, 5).transpose(1, 2).contiguous()
        return self.proj(heads.transpose(1, 2).reshape(n, t, self.joined))


def test_a_reshape_to_a_stored_width_freezes_what_it_joins_and_not_what_comes_in_or_goes_out() -> None:
    net = nn.Sequential(
        nn.Linear(3, 12), nn.ReLU(), Heads(12, 9), nn.ReLU(), Heads(9, 7), nn.ReLU(), nn.Linear(7, 2)
    ).eval()
    structure = trace(net, (torch.randn(2, 6, 3),))
    assert {g.name: g.size for g in structure.prunable} == {"0": 12, "2.proj": 9, "4.proj": 7}
    first, second = (structure.by_name[name].reason for name in ("2.v", "4.v"))
    assert str(first).startswith("the forward of 2 checks its widths: shape '[2, 6, 20]'")
    assert str(second).startswith("as in 2: the forward of 2 checks its widths")
