"""Views, slices and rolls of what is left: the same places as in the full network, or frozen with the reason.

In each network a layer elsewhere makes one unit of several channels (a grouped convolution, a norm of groups), or a
move leads several channels of a unit; then the order within a unit matters, which units alone do not show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halpiee.structure import relative_error, shrink, trace

from . import nets
from .corners import IMAGE, TOKENS, Net, ab, is_cut_exactly, stays_and_says_why

sigmoid = torch.sigmoid


def turned(x: Tensor, rows: int, columns: int) -> Tensor:
    """Returns channels viewed as rows × columns and read column by column."""
    return x.view(x.shape[0], rows, columns, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


def beside(move: Callable[[Any], Tensor], groups: int, width: int = 8, out: int = 8) -> Callable[[], Net]:
    """Returns a network that moves channels and, later and elsewhere, reads them by a grouped convolution."""

    def forward(m: Any, x: Tensor) -> Any:
        y = sigmoid(m.a(x))
        return m.b(sigmoid(move(y))).mean((2, 3)) + m.d(sigmoid(m.g(y))).mean((2, 3))

    return lambda: Net(
        forward,
        a=nn.Conv2d(3, width, 1),
        g=nn.Conv2d(width, 8, 1, groups=groups),
        b=nn.Conv2d(out, 5, 1),
        d=nn.Conv2d(8, 5, 1),
    )


def joined(m: Any, x: Tensor) -> Any:
    """Adds turned channels to others in their plain order."""
    y = sigmoid(m.a(x))
    return m.b(sigmoid(turned(y, 2, -1) + m.c(x))) + m.d(sigmoid(m.g(y)))


def joined_by_rows(m: Any, x: Tensor) -> Any:
    y = sigmoid(m.a(x))
    return m.b(sigmoid(turned(y, -1, 4) + m.c(x))) + m.d(sigmoid(m.g(y)))


def normed_later(m: Any, x: Tensor) -> Any:
    y = sigmoid(m.a(x))
    return m.b(turned(y, 2, -1)) + m.d(sigmoid(m.n(y)))


def doubled(m: Any, x: Tensor) -> Any:
    """Channels beside themselves, in pairs: whole pairs go."""
    y = sigmoid(m.a(x))
    return m.b(turned(torch.cat([y, y], 1), -1, 2))


def four(**parts: Any) -> Net:
    return ab(parts.pop("forward"), c=nn.Conv2d(3, 8, 1), d=nn.Conv2d(8, 5, 1), **parts)


CUT: dict[str, tuple[Callable[[], Net], tuple[int, ...], set[str]]] = {
    "rows of channels that are one unit later": (
        lambda: four(forward=joined_by_rows, g=nn.Conv2d(8, 8, 1, groups=2)),
        IMAGE,
        {"a"},
    ),
    "columns across the groups of a later norm": (
        lambda: ab(normed_later, n=nn.GroupNorm(4, 8), d=nn.Conv2d(8, 5, 1)),
        IMAGE,
        {"a"},
    ),
    "doubled channels in pairs": (
        lambda: Net(doubled, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(16, 5, 1)),
        IMAGE,
        {"a"},
    ),
    "whole rows, their number worked out": (
        lambda: ab(lambda m, x: m.b(turned(sigmoid(m.a(x)), -1, 2))),
        IMAGE,
        {"a"},
    ),
    "shuffled beside a convolution of as many groups": (
        beside(lambda y: F.channel_shuffle(y, 2), 2),
        IMAGE,
        {"a", "g"},
    ),
    "shuffled beside a convolution of more groups": (
        beside(lambda y: F.channel_shuffle(y, 2), 4),
        IMAGE,
        {"a"},
    ),
    "halves swapped beside groups": (
        beside(lambda y: torch.cat(y.chunk(2, 1)[::-1], 1), 4),
        IMAGE,
        {"a"},
    ),
    "every second one beside groups": (beside(lambda y: y[:, ::2], 4, out=4), IMAGE, {"a"}),
    "pixel shuffle beside groups": (
        beside(lambda y: F.pixel_shuffle(y, 2), 8, width=16, out=4),
        IMAGE,
        {"a"},
    ),
    "one layer norm twice": (
        lambda: Net(
            lambda m, x: m.b(m.n(sigmoid(m.n(m.a(x))))),
            a=nn.Linear(3, 8),
            n=nn.LayerNorm(8),
            b=nn.Linear(8, 5),
        ),
        TOKENS,
        {"a"},
    ),
}

FROZEN: dict[str, tuple[Callable[[], Net], tuple[int, ...], str]] = {
    "columns of channels whose rows are one unit later": (
        lambda: four(forward=joined, g=nn.Conv2d(8, 8, 1, groups=2)),
        IMAGE,
        "view: a size or an index there does not follow",
    ),
    "columns within the groups of a later norm": (
        lambda: ab(normed_later, n=nn.GroupNorm(2, 8), d=nn.Conv2d(8, 5, 1)),
        IMAGE,
        "view: a size or an index there does not follow",
    ),
    "rolled beside groups": (
        beside(lambda y: y.roll(1, 1), 4),
        IMAGE,
        "roll: a size or an index there does not follow",
    ),
    "halves flipped by number within groups": (
        beside(lambda y: y.unflatten(1, (2, -1)).flip(1).flatten(1, 2), 2),
        IMAGE,
        "view: a size or an index there does not follow",
    ),
    "a triangle over channels": (
        lambda: Net(lambda m, x: m.b(sigmoid(m.a(x)).tril()), a=nn.Linear(3, 8), b=nn.Linear(8, 5)),
        TOKENS,
        "tril",
    ),
    "a diagonal over channels and positions": (
        lambda: Net(
            lambda m, x: m.b(torch.diagonal(sigmoid(m.a(x)), dim1=1, dim2=2)),
            a=nn.Linear(3, 4),
            b=nn.Linear(4, 5),
        ),
        TOKENS,
        "diagonal: a size or an index there does not follow",
    ),
    "strides as numbers": (
        lambda: ab(lambda m, x: m.b((y := sigmoid(m.a(x))).as_strided(y.shape, (512, 64, 1, 8)))),
        IMAGE,
        "as_strided",
    ),
    "as many of one as there are of another": (
        lambda: Net(
            lambda m, x: m.b(torch.cat([m.a(x)[:, : (z := m.c(x)).shape[1]], z], 1)),
            a=nn.Conv2d(3, 8, 1),
            c=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(16, 5, 1),
        ),
        IMAGE,
        "with sizes that do not follow the channels",
    ),
    "squeezed wherever there is one": (
        lambda: Net(
            lambda m, x: m.b(sigmoid(m.a(x)).mean((2, 3), keepdim=True).squeeze()),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Linear(8, 5),
        ),
        IMAGE,
        "squeeze, which would drop a single channel",
    ),
}


@pytest.mark.parametrize("name", CUT)
def test_what_keeps_its_places_is_cut_exactly(name: str) -> None:
    is_cut_exactly(*CUT[name])


@pytest.mark.parametrize("name", FROZEN)
def test_what_would_lose_its_places_stays_and_says_why(name: str) -> None:
    stays_and_says_why(*FROZEN[name])


def test_pairs_go_as_pairs() -> None:
    """By hand: keeping pairs 0 and 2 of four keeps channels 0, 1, 4 and 5, read first ones first."""
    model = nets.randomise(ab(lambda m, x: m.b(turned(sigmoid(m.a(x)), -1, 2)))).double()
    x = torch.rand(IMAGE, dtype=torch.float64)
    structure = trace(model, (x,))
    compact = shrink(model, structure, {"a": torch.tensor([True, False, True, False])})
    with torch.no_grad():
        y = torch.sigmoid(F.conv2d(x, model.a.weight[[0, 1, 4, 5]], model.a.bias[[0, 1, 4, 5]]))
        # turned, the full network reads 0 2 4 6 1 3 5 7: the columns of b that are left are the 1st, 3rd, 5th, 7th
        expected = F.conv2d(y[:, [0, 2, 1, 3]], model.b.weight[:, [0, 2, 4, 6]], model.b.bias)
        assert relative_error(compact(x), expected) <= 1e-12


def test_the_second_call_of_a_linear_layer_keeps_its_name() -> None:
    model = Net(
        lambda m, x: m.b(m.c(sigmoid(m.c(sigmoid(m.a(x)))))),
        a=nn.Linear(3, 8),
        c=nn.Linear(8, 8),
        b=nn.Linear(8, 5),
    )
    structure = trace(model, (torch.zeros(TOKENS),))
    assert [layer.name for layer in structure.layers] == ["a", "c", "c#2", "b"]
    compact: Any = shrink(model, structure, {"a": torch.arange(8) < 3})
    assert (compact.a.in_features, compact.a.out_features) == (3, 3)
    assert (compact.c.in_features, compact.c.out_features) == (3, 3)
