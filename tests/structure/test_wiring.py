"""Forwards that read another tensor at another width, though their ops, sizes and numbers stay the same."""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halpiee.structure import shrink, trace

from . import nets
from .corners import IMAGE, Net, ab, is_cut_exactly, stays_and_says_why

ANOTHER_PATH = "the forward takes another path at another width"


def skip_by_attributes(m: Any, x: Tensor) -> Any:
    """A skip past the activation unless the block changes its width, as the block's own numbers say."""
    y = m.a(x).flatten(2)  # whose width is that of ``m.dim``
    skip = y if m.dim == m.dim_out else torch.tanh(y)
    return m.h((skip + torch.tanh(y)).mean(2))


def reshaped_by_an_attribute(m: Any, x: Tensor) -> Any:
    y = m.a(x).reshape(2, m.dim, -1)
    z = torch.tanh(y)
    return m.h((z + (y if m.dim == m.dim_out else z)).mean(2))


def block(forward: Callable[..., Any]) -> Net:
    return Net(forward, a=nn.Conv2d(3, 8, 1), h=nn.Linear(8, 5), dim=8, dim_out=8)


def test_a_number_of_a_module_that_only_chooses_a_path_does_not_follow() -> None:
    is_cut_exactly(lambda: block(skip_by_attributes), IMAGE, {"a"})


def test_a_block_keeps_its_skip_at_another_width() -> None:
    """By hand: h(mean(y + tanh y)) over channels 0, 3 and 4 of the convolution."""
    model = nets.randomise(block(skip_by_attributes)).double().eval()
    x = torch.randn(IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    keep = torch.zeros(8, dtype=torch.bool)
    keep[[0, 3, 4]] = True
    compact: Any = shrink(model, trace(model, (x,)), {"a": keep})
    y = F.conv2d(x, model.a.weight[keep], model.a.bias[keep]).flatten(2)
    expected = F.linear((y + torch.tanh(y)).mean(2), model.h.weight[:, keep], model.h.bias)
    torch.testing.assert_close(compact(x), expected, rtol=1e-12, atol=1e-12)
    assert compact.a.out_channels == 3


@pytest.mark.parametrize("most", range(2, 8))
def test_channels_stay_where_a_sum_reads_another_tensor_below_a_width(most: int) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.a(x)
        z = torch.sigmoid(y)
        return m.b(z + (y if y.shape[1] > most else z))

    stays_and_says_why(lambda: ab(forward), IMAGE, ANOTHER_PATH)


@pytest.mark.parametrize("order", [operator.lt, operator.gt, operator.ne])
def test_channels_stay_where_a_path_hangs_on_which_of_two_is_wider(order: Callable[[int, int], bool]) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y, other = m.a(x), m.c(x)
        z = torch.sigmoid(y)
        return m.b(z if order(y.shape[1], other.shape[1]) else y) + m.d(torch.sigmoid(other))

    model = ab(forward, c=nn.Conv2d(3, 8, 1), d=nn.Conv2d(8, 5, 1)).eval()
    assert not {"a", "c"} <= {g.name for g in trace(model, (torch.ones(IMAGE),)).prunable}


def test_channels_stay_where_a_module_needs_its_number_and_chooses_by_it() -> None:
    stays_and_says_why(
        lambda: block(reshaped_by_an_attribute), IMAGE, "view: a size or an index there does not follow"
    )


def test_only_what_a_path_hangs_on_stays() -> None:
    """Of six convolutions in a row one is read otherwise at another width; the others go."""

    def forward(m: Any, x: Tensor) -> Any:
        for index, part in enumerate(m.parts):
            y = part(x)
            x = torch.sigmoid(y)
            x = x + (y if index == 2 and y.shape[1] == 8 else x)
        return m.b(x)

    widths = [3, 8, 8, 8, 8, 8, 8]
    parts = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in pairwise(widths))
    model = ab(forward, parts=parts).eval()
    structure = trace(model, (torch.ones(IMAGE),))
    assert {g.name for g in structure.prunable} == {f"parts.{i}" for i in (0, 1, 3, 4, 5)}
    assert structure.by_name["parts.2"].reason == ANOTHER_PATH


@pytest.mark.parametrize("width", [2, 3, 4])
def test_a_path_by_two_widths_is_found_beside_attention_of_two_widths(width: int) -> None:
    """Small groups of one size lose as many at first; torch runs attention otherwise once they do not.

    Two convolutions whose widths are compared stay, the sum of which reads another tensor where they differ;
    queries, keys and values may go.
    """

    def forward(m: Any, x: Tensor) -> Any:
        y, other = m.a(x), m.c(x)
        z = torch.sigmoid(y)
        joined = m.b(z + (y if y.shape[1] == other.shape[1] else z)) + m.d(torch.sigmoid(other))
        q, k, v = (part(x.flatten(2).transpose(1, 2)).unsqueeze(1) for part in (m.q, m.k, m.v))
        attended = m.o(F.scaled_dot_product_attention(q, k, v, scale=0.5).squeeze(1))
        return joined.mean((2, 3)) + attended.mean(1)

    model = Net(
        forward,
        a=nn.Conv2d(3, width, 1),
        c=nn.Conv2d(3, width, 1),
        b=nn.Conv2d(width, 5, 1),
        d=nn.Conv2d(width, 5, 1),
        q=nn.Linear(3, width),
        k=nn.Linear(3, width),
        v=nn.Linear(3, width),
        o=nn.Linear(width, 5),
    ).eval()
    assert {g.name for g in trace(model, (torch.ones(IMAGE),)).prunable} == {"q", "v"}
