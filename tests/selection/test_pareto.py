"""The curve of all budgets against enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch

from halpiee.selection.cost import LatencyCost
from halpiee.selection.limits import pareto

from .fakes import FormulaProfile, residual


@pytest.fixture
def cost():
    """14·s + 2·s·a µs, as in test_choose."""
    return LatencyCost(
        residual(),
        FormulaProfile(conv=lambda i, o: i * o, linear=lambda i, o: i * o, add=lambda i, o: i),
    )


def test_every_point_of_the_curve_is_the_optimum_of_its_budget(cost):
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(8, generator=generator) for name in ("stream", "a")}
    tops = {
        n: torch.cat([torch.zeros(1), v.double().sort(descending=True).values.cumsum(0)])
        for n, v in scores.items()
    }
    budgets = [cost.dense_us * share for share in (0.9, 0.3, 0.31, 0.5, 0.1, 0.7, 1.0)]
    points = pareto(scores, cost, budgets, gap=0.0)
    assert [p.budget_us for p in points] == budgets
    for point in points:
        best = max(
            float(tops["stream"][s] + tops["a"][a])
            for s, a in itertools.product(range(1, 9), range(9))
            if 14 * s + 2 * s * a <= point.budget_us
        )
        assert point.value == pytest.approx(best)
        assert point.gap <= 1e-9
        s, a = point.counts["stream"], point.counts["a"]
        assert point.latency_us == 14 * s + 2 * s * a <= point.budget_us


def test_budgets_below_the_narrowest_network_are_left_out(cost):
    scores = {name: torch.ones(8) for name in ("stream", "a")}
    assert [p.budget_us for p in pareto(scores, cost, [5.0, 13.9, 14.0, 100.0])] == [14.0, 100.0]


def test_protected_groups_stay_whole_along_the_curve(cost):
    scores = {name: torch.ones(8) for name in ("stream", "a")}
    points = pareto(scores, cost, [120.0, 200.0], protect={"stream"})
    assert [p.counts for p in points] == [{"stream": 8, "a": 0}, {"stream": 8, "a": 5}]
