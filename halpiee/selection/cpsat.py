"""The grid problem through OR-Tools CP-SAT: several limits at once, and coupling graphs that are too wide.

One boolean per option (and per state of a sum of widths); a factor's cost is an integer variable that each
option of its smaller side bounds from below: ``x[g, k] ⇒ c ≥ Σ_l T[k, l] · x[h, l]``. Costs are scaled to
integers and rounded down, values rounded up, so that the solver's bound holds for the real numbers; a choice that
exceeds the budget after rounding is repaired on the real costs. The Lagrangian answer is its hint, and the
better of the two bounds is reported: alone CP-SAT does not prove a ResNet-50 within 30 s.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from halpiee.errors import MissingError
from halpiee.selection.grid import TOLERANCE, Grid, GridSolution, IntArray, Search, relative_gap
from halpiee.selection.lagrangian import fill, repair, solve_joint

DEFAULT_TIME_LIMIT_S = 30.0
"""Seconds of search without a limit; then CP-SAT returns its best answer and bound."""

RANGE = 2.0**30
"""Integers that a sum of costs or values is spread over.

CP-SAT 9.15 cuts off optimal choices when coefficients get larger: at 2^36 in 26 of 420 small problems, at
2^33 and below in none.
"""


def solve_cpsat(grid: Grid, budget: float, how: Search, start: IntArray | None = None) -> GridSolution:
    """Solves one budget: the joint answer first, then CP-SAT where its gap is still open.

    Raises:
        BudgetError: a budget below the cheapest choice.
        MissingError: OR-Tools is not installed.
    """
    half_s = (DEFAULT_TIME_LIMIT_S if how.time_limit_s is None else how.time_limit_s) / 2
    joint = solve_joint(grid, budget, replace(how, gap=max(how.gap, 1e-4), time_limit_s=half_s), start)
    if joint.gap <= how.gap:
        return joint
    choice, upper_bound = search(
        [(grid, budget)], replace(how, time_limit_s=half_s), hint=joint.choice, upper_bound=joint.upper_bound
    )
    best, room = joint.choice, budget + TOLERANCE * abs(budget)
    within = None if choice is None else repair([grid], choice, [room])
    if within is not None:
        best = max(best, fill([grid], within, [room]), key=grid.value)
    value = grid.value(best)
    upper_bound = max(min(joint.upper_bound, upper_bound), value)
    path = "cpsat" if relative_gap(value, upper_bound) <= how.gap else "cpsat+time"
    return grid.solution(best, upper_bound, budget, path)


def search(
    limits: Sequence[tuple[Grid, float]],
    how: Search,
    *,
    hint: IntArray | None = None,
    upper_bound: float = math.inf,
) -> tuple[IntArray | None, float]:
    """Maximises the value of grids over the same groups, each within its budget, from a hint and a known bound.

    Returns a choice or ``None``, and a bound on the value of every choice: −∞ where it is proved that there is none.

    Raises:
        MissingError: OR-Tools is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise MissingError(
            "solver='cpsat' was asked; OR-Tools is not installed; pip install ortools, or use solver='joint'"
        ) from None
    model, values = cp_model.CpModel(), limits[0][0].values
    options = [[model.new_bool_var(f"x{g}_{k}") for k in range(len(v))] for g, v in enumerate(values)]
    for group in options:
        model.add_exactly_one(group)
    for n, (grid, budget) in enumerate(limits):
        _limit(model, options, grid, budget, n)
    least = sum(float(v.min()) for v in values)
    spread = sum(float(v.max() - v.min()) for v in values)
    scale = RANGE / spread if spread > 0 else 0.0
    scaled = [np.ceil((v - v.min()) * scale).astype(np.int64) for v in values]
    model.maximize(
        sum(
            int(c) * x
            for group, cs in zip(options, scaled, strict=True)
            for c, x in zip(cs, group, strict=True)
        )
    )
    if hint is not None:
        for g, group in enumerate(options):
            for k, x in enumerate(group):
                model.add_hint(x, k == int(hint[g]))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = (
        DEFAULT_TIME_LIMIT_S if how.time_limit_s is None else how.time_limit_s
    )
    solver.parameters.relative_gap_limit = how.gap
    solver.parameters.random_seed = how.seed
    solver.parameters.num_workers = min(8, os.cpu_count() or 1)
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None, -math.inf
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, upper_bound
    bound = least + solver.best_objective_bound / scale if scale else least
    choice = [next(k for k, x in enumerate(group) if solver.boolean_value(x)) for group in options]
    return np.array(choice, dtype=np.int64), min(upper_bound, bound)


def _limit(model: Any, options: list[list[Any]], grid: Grid, budget: float, n: int) -> None:
    """Adds one limit: scaled costs of all factors together within the budget."""
    lowest = [float(f.table.min()) for f in grid.factors]
    spread = sum(float(f.table.max()) - low for f, low in zip(grid.factors, lowest, strict=True))
    room = budget + TOLERANCE * abs(budget) - grid.constant - sum(lowest)
    if spread <= 0 or room >= spread:
        if room < 0:
            model.add_bool_or([])
        return
    scale = RANGE / spread
    states: dict[int, list[Any]] = dict(enumerate(options))
    for variable, members in grid.members.items():
        if any(variable in f.scope for f in grid.factors):
            states[variable] = _sum_states(
                model, options, members, grid.domains[variable], f"s{n}_{variable}"
            )
    total = []
    for i, (factor, low) in enumerate(zip(grid.factors, lowest, strict=True)):
        table = np.floor((factor.table - low) * scale).astype(np.int64)
        if table.ndim == 1:
            total += [int(c) * x for c, x in zip(table, states[factor.scope[0]], strict=True) if c]
            continue
        first, second = factor.scope
        if table.shape[0] > table.shape[1]:
            first, second, table = second, first, table.T
        cost = model.new_int_var(0, int(table.max()), f"c{n}_{i}")
        for row, x in zip(table, states[first], strict=True):
            reached = sum(int(c) * y for c, y in zip(row, states[second], strict=True))
            model.add(cost >= reached).only_enforce_if(x)
        total.append(cost)
    model.add(sum(total) <= math.floor(room * scale))


def _sum_states(
    model: Any, options: list[list[Any]], members: dict[int, IntArray], domain: int, name: str
) -> list[Any]:
    """Returns one boolean per state of a sum of widths."""
    states = [model.new_bool_var(f"{name}_{k}") for k in range(domain)]
    model.add_exactly_one(states)
    reached = sum(
        int(step) * x for g, steps in members.items() for step, x in zip(steps, options[g], strict=True)
    )
    model.add(sum(k * x for k, x in enumerate(states)) == reached)
    return states
