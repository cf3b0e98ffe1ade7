"""CP-SAT against enumeration, one limit and several."""

from __future__ import annotations

import numpy as np
import pytest

from halpiee.errors import BudgetError
from halpiee.selection.cpsat import search
from halpiee.selection.grid import Grid, Search, Term, normalise
from halpiee.selection.solve import solve_grid

from .problems import SHAPES, Problem, random_problem


def grid_of(problem: Problem) -> Grid:
    return normalise(problem.values, [Term(i, o, t) for i, o, t in problem.terms], problem.widths)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_search_alone_finds_the_optimum(shape: str) -> None:
    rng = np.random.default_rng([21, SHAPES.index(shape)])
    for _ in range(8):
        problem = random_problem(rng, shape)
        best, _ = problem.enumerate()
        choice, bound = search([(grid_of(problem), problem.budget)], Search(gap=0.0))
        assert choice is not None
        assert problem.value(choice) == pytest.approx(best, abs=1e-7)
        assert best - 1e-9 <= bound <= best + 1e-6


def test_the_search_proves_that_a_budget_is_too_small() -> None:
    problem = random_problem(np.random.default_rng(22), "chain")
    found = search([(grid_of(problem), problem.enumerate()[1] - 0.1)], Search())
    assert found == (None, -np.inf)


def test_the_cpsat_solver_keeps_the_budget_and_refuses_like_the_joint_one() -> None:
    rng = np.random.default_rng(23)
    for _ in range(10):
        problem = random_problem(rng, "residual")
        best, least = problem.enumerate()
        found = solve_grid(
            problem.values, problem.terms, problem.budget, widths=problem.widths, solver="cpsat", gap=0.0
        )
        assert found.cost <= problem.budget + 1e-9 * abs(problem.budget)
        assert found.value == pytest.approx(best, abs=1e-7)
        with pytest.raises(BudgetError):
            solve_grid(problem.values, problem.terms, least - 1, widths=problem.widths, solver="cpsat")
