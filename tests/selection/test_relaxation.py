"""HALP's formulation: worked by hand, and against enumeration of its own problem."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from halpiee.errors import BudgetError
from halpiee.selection.solve import solve_grid

from .problems import SHAPES, Problem, random_problem

# Two groups of widths 1, 2: 3 → g0 → g1 → 2, each layer costs c_in · c_out.
VALUES = [[0.0, 3.0], [0.0, 2.0]]
TERMS = [(None, 0, [[3.0, 6.0]]), (0, 1, [[1.0, 2.0], [2.0, 4.0]]), (1, None, [[2.0], [4.0]])]


def test_costs_are_frozen_at_the_dense_widths_by_default() -> None:
    # Dense costs 6 + 4 + 4 = 14. Around dense, g0 = 1 saves 3 (the next layer's 2 is not seen), g1 = 1 saves
    # 2 (the classifier's 2 is not seen). Within 12: own cost 14 − 2 = 12 keeps g0.
    found = solve_grid(VALUES, TERMS, 12.0, solver="linear", gap=0.0)
    assert found.choice.tolist() == [1, 0]
    assert found.own_cost == 12.0
    assert found.cost == 6.0 + 2.0 + 2.0
    assert found.meets_budget


def test_costs_around_a_narrow_start_are_too_low_and_the_true_cost_says_so() -> None:
    # Around (0, 0): cost 3 + 1 + 2 = 6; g0 adds 3, g1 adds 1: own 10 for both, truly 14.
    found = solve_grid(VALUES, TERMS, 10.0, solver="linear", start=[0, 0], gap=0.0)
    assert found.choice.tolist() == [1, 1]
    assert (found.own_cost, found.cost) == (10.0, 14.0)
    assert not found.meets_budget


def test_the_own_cost_at_the_start_is_the_true_cost() -> None:
    found = solve_grid(VALUES, TERMS, 14.0, solver="linear")
    assert found.own_cost == found.cost == 14.0


def test_a_depthwise_layer_is_charged_along_its_diagonal() -> None:
    # Eq. 5 of a depthwise layer is T(p, p) − T(p−1, p−1): 9 − 1.
    found = solve_grid([[0.0, 1.0]], [(0, 0, [[1.0, 50.0], [50.0, 9.0]])], 100.0, solver="linear", start=[0])
    assert found.own_cost == 9.0


def test_negative_contributions_are_kept() -> None:
    # Widening g0 makes the layer 5 faster, which pays for g1.
    values, terms = [[0.0, 1.0], [0.0, 1.0]], [(None, 0, [[8.0, 3.0]]), (None, 1, [[1.0, 6.0]])]
    found = solve_grid(values, terms, 9.0, solver="linear", gap=0.0)
    assert found.choice.tolist() == [1, 1]


def test_a_linear_budget_below_its_cheapest_choice_is_refused_with_its_minimum() -> None:
    with pytest.raises(BudgetError) as error:
        solve_grid(VALUES, TERMS, 5.0, solver="linear")
    assert error.value.minimum == 14.0 - 3.0 - 2.0


@pytest.mark.parametrize("shape", SHAPES)
def test_the_knapsack_is_solved_exactly(shape: str) -> None:
    rng = np.random.default_rng([11, SHAPES.index(shape)])
    for _ in range(60):
        problem = random_problem(rng, shape)
        start = [int(rng.integers(len(v))) for v in problem.values]
        base = problem.cost(start)

        def own(
            choice: Sequence[int], problem: Problem = problem, start: Any = start, base: float = base
        ) -> float:
            """The sum over groups of what its own output sides change by, all inputs frozen."""
            total = base
            for g, k in enumerate(choice):
                at = [*start]
                at[g] = k
                for ins, outs, table in problem.terms:
                    members = outs if isinstance(outs, tuple) else (outs,)
                    if g in members:
                        frozen = at if ins == outs else start
                        new = table[problem.entry(ins, frozen), problem.entry(outs, at)]
                        total += new - table[problem.entry(ins, start), problem.entry(outs, start)]
            return total

        costs = {c: own(c) for c in itertools.product(*(range(len(v)) for v in problem.values))}
        budget = float(np.quantile(list(costs.values()), rng.random()))
        best = max(problem.value(c) for c, cost in costs.items() if cost <= budget + 1e-9 * abs(budget))
        found = solve_grid(
            problem.values,
            problem.terms,
            budget,
            widths=problem.widths,
            solver="linear",
            start=start,
            gap=0.0,
        )
        assert found.value == pytest.approx(best, abs=1e-8)
        assert found.own_cost == pytest.approx(costs[tuple(found.choice.tolist())], abs=1e-9)
        assert found.own_cost <= budget + 1e-9 * abs(budget)
        assert found.cost == pytest.approx(problem.cost(found.choice))
