"""What a transformer's ops cost: attention, its products and its softmax have the width of their heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halpiee.selection.cost import LatencyCost
from halpiee.structure import Structure, trace
from latency.op import Op


class Attention(nn.Module):
    """Eight channels a head; heads of the fused kernel, or products and a softmax of their own."""

    def __init__(self, *, fused: bool, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(6, 16), nn.Linear(16, 24 * heads), nn.Linear(8 * heads, 16)
        self.head, self.num_heads, self.fused = nn.Linear(16, 5), heads, fused

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1) @ v
        tokens: Tensor = x + self.out(y.transpose(1, 2).flatten(2))
        return self.head(tokens.mean(1))


def traced(*, fused: bool) -> Structure:
    return trace(Attention(fused=fused).eval(), (torch.zeros(2, 7, 6),))


def of_kind(structure: Structure, kind: str) -> list[Op]:
    return [timed.op for timed in structure.ops if timed.op.kind == kind]


def test_fused_attention_is_an_op_as_wide_as_its_heads() -> None:
    structure = traced(fused=True)
    assert of_kind(structure, "attention") == [
        Op(kind="attention", c_in=32, c_out=32, h=7, w=7, batch=2, groups=4)
    ]
    assert structure.details["untimed"] == {}
    assert [g.size for g in structure.prunable if "qkv" in g.name] == [4]


def test_attention_in_parts_is_two_products_and_a_softmax() -> None:
    structure = traced(fused=False)
    assert of_kind(structure, "product") == [
        Op(kind="product", c_in=32, c_out=32, h=7, w=7, batch=2, groups=4),
        Op(kind="product", c_in=28, c_out=28, h=7, w=8, batch=2, groups=4),
    ]
    assert of_kind(structure, "softmax") == [Op(kind="softmax", c_in=4, c_out=4, h=7, w=7, batch=2)]
    assert structure.details["untimed"] == {}


class Table:
    """1 µs a channel."""

    def lookup(self, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.asarray(c_in, float) + 0 * np.asarray(c_out, float)
        return found

    def measured(self, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        return np.ones(np.broadcast_shapes(np.shape(c_in), np.shape(c_out)), dtype=bool)


class Attentions:
    """Tables of attention, its products and its softmax; everything else costs nothing."""

    def table(self, op: Op) -> Table | None:
        return Table()


@pytest.mark.parametrize(
    ("fused", "of_a_head"),
    [
        (True, 8),
        (False, 8 + 7 + 1),
    ],  # width of a head; and keys of the second product, and the softmax's one channel
)
def test_a_head_that_goes_takes_its_share_of_the_cost_along(fused: bool, of_a_head: int) -> None:
    structure = traced(fused=fused)
    kinds = ("attention", "product", "softmax")
    ops = tuple(t for t in structure.ops if t.op.kind in kinds)
    group = next(g.name for g in structure.prunable if "qkv" in g.name)
    cost = LatencyCost(
        Structure(structure.layers, structure.groups, ops, structure.slots, structure.details), Attentions()
    )
    assert cost.total_us({group: 4}) - cost.total_us({group: 3}) == pytest.approx(of_a_head)
    assert cost.not_covered == ()


def test_an_op_without_some_heads_is_of_the_same_table() -> None:
    op = Op(kind="attention", c_in=32, c_out=32, h=7, w=7, batch=2, groups=4)
    narrow = op.with_channels(24, 24)
    assert narrow.groups == 3
    assert narrow.table_key() == op.table_key()


def test_one_softmax_over_channels_stays_without_a_price() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax2d(), nn.Conv2d(8, 2, 1)).eval()
    assert trace(model, (torch.zeros(1, 3, 8, 8),)).details["untimed"] == {"softmax": 1}
