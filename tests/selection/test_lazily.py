"""Plans from few measurements, against plans from whole grids."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

import latency
from halpiee.selection.choose import select, select_lazily
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import Latency
from halpiee.structure.trace import trace
from halpiee.zoo import build
from latency.backends import Backend
from latency.op import Op
from latency.sweeping import LazySweep
from latency.sweeping.design import edges, specs

from .fakes import FormulaBackend

STEP = 8


def us(op: Op) -> float:
    """Steps of 8 on both sides, and a bend no straight line between corners can follow."""
    ins, outs = -(-op.c_in // STEP), -(-op.c_out // STEP)
    if op.diagonal:
        return 1.0 + 0.2 * ins
    return 2.0 + float(outs**0.7) + 0.4 * ins * outs + (3.0 if outs > 4 else 0.0)


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    model = build("resnet20", width=2.0).eval()
    structure = trace(model, (torch.randn(1, 3, 16, 16),))
    scores = {g.name: torch.rand(g.size).square() for g in structure.prunable}
    return structure, scores


@pytest.fixture(scope="module")
def whole(network: Any) -> LatencyCost:
    """Every cell at the crossings of all edges, by the formula."""
    structure, _ = network
    cells = []
    for spec in specs([timed.op for timed in structure.ops]):
        ins, outs = edges(spec.ins, STEP), edges(spec.outs, STEP)
        pairs = [(i, round(i * spec.op.c_out / spec.op.c_in)) for i in ins]
        if not spec.op.diagonal:
            pairs = [(i, o) for i in (spec.ins if spec.op.reads_image else ins) for o in outs]
        for i, o in pairs:
            op = spec.op.with_channels(i, o)
            image = {"image": True} if spec.op.reads_image else {}
            cells.append({**op.key(), "us": us(op), "steps": [STEP, STEP], **image})
    return LatencyCost(structure, latency.Profile({}, cells))


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7])
def test_little_value_is_lost_and_the_true_cost_keeps_the_budget(
    network: Any, whole: LatencyCost, fraction: float
) -> None:
    structure, scores = network
    with LazySweep([t.op for t in structure.ops], backend=cast(Backend, FormulaBackend(us))) as tables:
        found, cost = select_lazily(scores, structure, tables, Latency(fraction=fraction))
        measured = sum(c["role"] == "sweep" for c in tables.profile.cells)
    budget_us = fraction * whole.dense_us
    best = select(scores, whole, budget_us)
    assert cost.dense_us == pytest.approx(whole.dense_us, rel=1e-3)
    assert whole.total_us(found.counts) <= budget_us * (1 + 1e-3)
    assert found.value >= 0.995 * best.value
    assert cost.interpolated(found.counts) == ()
    assert isinstance(whole.profile, latency.Profile)
    assert measured < 0.5 * len(whole.profile.cells)
