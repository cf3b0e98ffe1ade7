"""Budgets under calibrations that bend: every selection against enumeration of the calibrated problem."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halpiee.errors import BudgetError
from halpiee.selection.choose import choose, select
from halpiee.selection.cost import LatencyCost
from halpiee.selection.grid import FloatArray
from halpiee.selection.limits import pareto, resource
from latency.predict import Calibration, fit

from .fakes import FormulaProfile, residual, select_within

SIZE = 5


@dataclass(frozen=True)
class Knots:
    """A calibration through some points, level where two have one height, jumping where two stand above each other."""

    sums: tuple[float, ...]
    us: tuple[float, ...]

    def apply(self, sum_us: float) -> float:
        at = int(np.searchsorted(self.sums, sum_us, side="right"))
        if at == 0:
            return self.us[0] - (self.sums[0] - sum_us)
        if at == len(self.sums):
            return self.us[-1] + (sum_us - self.sums[-1])
        left, right = self.sums[at - 1], self.sums[at]
        return self.us[at - 1] + (self.us[at] - self.us[at - 1]) * (sum_us - left) / (right - left)


def network(seed: int) -> Any:
    """A residual network of 5 + 5 units with a table of random times for every op, and its scores."""
    rng = np.random.default_rng(seed)
    tables = {kind: np.cumsum(np.cumsum(rng.random((11, 11)), 0), 1) for kind in ("conv", "linear", "add")}
    look: dict[str, Any] = {
        kind: (lambda t: lambda i, o: t[i.astype(int), o.astype(int)])(table)
        for kind, table in tables.items()
    }
    cost = LatencyCost(residual({"stream": SIZE, "a": SIZE}), FormulaProfile(**look))
    scores = {name: torch.tensor(rng.random(SIZE)) for name in ("stream", "a")}
    return cost, scores


def enumerated(cost: LatencyCost, scores: dict[str, torch.Tensor]) -> Any:
    """(calibrated latency, value) of every network of candidate widths."""
    tops = {n: [0.0, *v.sort(descending=True).values.cumsum(0).tolist()] for n, v in scores.items()}
    return [
        (cost.total_us({"stream": s, "a": a}), tops["stream"][s] + tops["a"][a])
        for s, a in itertools.product(cost.candidates["stream"], cost.candidates["a"])
    ]


@st.composite
def calibrations(draw: st.DrawFn) -> Any:
    """Steps to the right and up; some of length 0 in one direction, never in both."""
    n = draw(st.integers(1, 6))
    right = draw(st.lists(st.one_of(st.just(0.0), st.floats(0.5, 80.0)), min_size=n, max_size=n))
    up = [
        draw(st.floats(0.5, 200.0)) if step == 0 else draw(st.one_of(st.just(0.0), st.floats(0.01, 200.0)))
        for step in right
    ]
    first, least = draw(st.floats(0.0, 50.0)), draw(st.floats(1.0, 60.0))
    return Knots(tuple(np.cumsum([first, *right])), tuple(np.cumsum([least, *up])))


@settings(max_examples=150, deadline=None)
@given(calibrations(), st.integers(0, 10_000), st.floats(0.05, 1.05))
def test_no_rising_calibration_takes_a_selection_over_its_budget_or_off_the_optimum(
    line: Calibration, seed: int, share: float
) -> None:
    plain, scores = network(seed)
    cost = plain.with_calibration(line)
    networks = enumerated(cost, scores)
    budget = share * cost.dense_us
    within = [value for us, value in networks if us <= budget]
    if not within:
        with pytest.raises(BudgetError) as error:
            select(scores, cost, budget)
        assert error.value.minimum == pytest.approx(min(us for us, _ in networks), rel=1e-9)
        return
    found = select(scores, cost, budget, gap=0.0)
    assert found.latency_us == cost.total_us(found.counts) <= budget * (1 + 1e-9)
    assert found.value == pytest.approx(max(within), abs=1e-9)
    assert found.upper_bound >= max(within) - 1e-9
    assert found.gap <= 1e-9
    assert not found.next_step_us <= found.slack_us
    loose = select(scores, cost, budget, gap=0.05)
    assert loose.latency_us <= budget * (1 + 1e-9)
    assert loose.value >= max(within) - 0.05 * abs(loose.upper_bound) - 1e-9
    (point,) = pareto(scores, cost, [budget], gap=0.0)
    assert point.latency_us <= budget * (1 + 1e-9)
    assert point.value == pytest.approx(max(within), abs=1e-9)


def product(c_in: FloatArray, c_out: FloatArray) -> FloatArray:
    return c_in * c_out


@pytest.mark.parametrize("bend", [0.8, 0.95, 1.0, 1.05, 1.2, 1.6])
def test_the_dense_network_fits_its_own_latency_exactly(bend: float) -> None:
    plain = LatencyCost(residual(), FormulaProfile(conv=product, linear=product, add=lambda i, o: i))
    dense = plain.dense_us
    line = fit([(s * dense, s * dense) for s in (0.3, 0.5, 0.7)], anchor=(dense, bend * dense))
    cost = plain.with_calibration(line)
    found = select({name: torch.ones(8) for name in ("stream", "a")}, cost, cost.dense_us)
    assert found.counts == {"stream": 8, "a": 8}
    assert cost.to_raw(cost.dense_us) == pytest.approx(dense, rel=1e-9)


def test_a_bent_latency_and_macs_are_kept_together() -> None:
    plain = LatencyCost(residual(), FormulaProfile(conv=product, linear=product, add=lambda i, o: i))
    dense = plain.dense_us
    cost = plain.with_calibration(
        fit([(s * dense, s * dense) for s in (0.3, 0.5, 0.7)], anchor=(dense, 1.2 * dense))
    )
    macs = resource(cost.structure, "macs")
    generator = torch.Generator().manual_seed(3)
    scores = {name: torch.rand(8, generator=generator, dtype=torch.float64) for name in ("stream", "a")}
    tops = {n: [0.0, *v.sort(descending=True).values.cumsum(0).tolist()] for n, v in scores.items()}
    for share in (0.6, 0.75, 0.85, 0.95):
        limits = [(cost, share * cost.dense_us), (macs, 0.8 * macs.dense)]
        found = select_within(scores, limits, gap=0.0)
        assert found.budgets == (share * cost.dense_us, 0.8 * macs.dense)
        assert all(u <= b * (1 + 1e-9) for u, b in zip(found.used, found.budgets, strict=True))
        best = max(
            tops["stream"][s] + tops["a"][a]
            for s, a in itertools.product(range(1, 9), range(9))
            if all(c.total({"stream": s, "a": a}) <= b for c, b in limits)
        )
        assert found.value == pytest.approx(best, abs=1e-6)
    with pytest.raises(
        BudgetError, match=r"latency: at most 5 was asked; the smallest network allowed takes 14 µs"
    ):
        select_within(scores, [(cost, 5.0), (macs, macs.dense)], names=["latency", "macs"])


def test_a_budget_of_macs_is_solved_like_one_of_latency() -> None:
    macs = resource(residual(), "macs")
    scores = {"stream": torch.arange(8.0), "a": torch.arange(8.0)}
    found = choose(scores, macs, 0.5 * macs.dense, gap=0.0)
    best = max(
        sum(range(8 - s, 8)) + sum(range(8 - a, 8))
        for s, a in itertools.product(range(1, 9), range(9))
        if 64 * (9 * (3 * s + 2 * s * a) + 10 * s) <= 0.5 * macs.dense
    )
    assert found.value == best
    assert found.latency_us == macs.total(found.counts) <= 0.5 * macs.dense


def test_a_step_across_the_bend_costs_the_difference_of_two_totals() -> None:
    plain = LatencyCost(residual(), FormulaProfile(conv=product, linear=product, add=lambda i, o: i))
    cost = plain.with_calibration(Knots((0.0, 150.0, 160.0), (0.0, 100.0, 160.0)))  # type: ignore[arg-type]
    # 14·8 + 16a: 144 at a = 2, 160 at a = 3.
    assert cost.step({"stream": 8, "a": 2}, "a", 3) == pytest.approx(160.0 - 144 * 100 / 150)
    assert cost.next_step({"stream": 8, "a": 2}, {"a": (0, 2, 3, 8)}) == pytest.approx(64.0)
