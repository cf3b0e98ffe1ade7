"""The Lagrangian dual: an upper bound on every selection within the budget, and a selection close to it.

``L(λ) = max_k [ Σ_g V_g(k_g) − λ · (C(k) − Ψ) ]`` bounds the optimum from above for every λ ≥ 0. The inner
maximum is exact (``elimination.py``), so L is the upper envelope of lines, one per choice, and its minimum is
found in a few
steps: start from the two extreme choices (most valuable; cheapest), move λ to where their lines cross,
replace one of them by the choice that is best there. Choices within the budget met on the way are filled up
greedily.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from halpiee.errors import BudgetError
from halpiee.selection.elimination import Elimination
from halpiee.selection.moves import descend, fill, repair
from halpiee.selection.terms import FloatArray, Grid, IntArray

__all__ = ["Dual", "Found", "solve_dual"]

TOLERANCE = 5e-10
"""Relative excess over the budget that counts as rounding: half of what the contract allows."""


@dataclass
class Found:
    """The best choice so far with its bound."""

    choice: IntArray
    cost: float
    value: float
    upper_bound: float
    path: str
    multiplier: float = 0.0

    @property
    def gap(self) -> float:
        """Relative gap that is still open."""
        return (self.upper_bound - self.value) / max(abs(self.upper_bound), 1e-12)


class Dual:
    """The inner problem of a grid, planned once.

    Args:
        grid: the problem.
        limit: cells that a table of the elimination may have.
    """

    def __init__(self, grid: Grid, *, limit: float = 4e6) -> None:
        self.grid = grid
        self.plan = Elimination.of(grid, limit=limit)
        own = [np.zeros(n) for n in grid.domains[: grid.n_groups]]
        self.wide = []
        for factor in grid.factors:
            if len(factor.scope) == 1 and factor.scope[0] < grid.n_groups:
                own[factor.scope[0]] = factor.table
            else:
                self.wide.append(factor.table)
        self.own = own

    def tables(self, multiplier: float, weight: float = 1.0) -> list[FloatArray]:
        """Returns ``weight · values − multiplier · costs`` as one table per factor of the plan."""
        tables = [weight * v - multiplier * c for v, c in zip(self.grid.values, self.own, strict=True)]
        return tables + [-multiplier * c for c in self.wide]

    def best(self, multiplier: float, weight: float = 1.0) -> tuple[float, IntArray]:
        """Returns the maximum of ``weight · V − multiplier · C``, or a bound on it, and its choice."""
        bound, _, joined = self.plan.run(self.tables(multiplier, weight))
        states = self.plan.decode(joined)
        choice = np.array(states[: self.grid.n_groups], dtype=np.int64)
        return bound - multiplier * self.grid.constant, choice


def solve_dual(
    grid: Grid,
    budget: float,
    start: IntArray | None = None,
    *,
    gap: float = 1e-3,
    time_limit_s: float | None = None,
    limit: float = 4e6,
) -> Found:
    """Minimises the dual bound and repairs; goes on to the frontier where the gap asked is not met.

    Raises:
        BudgetError: a budget below the cheapest choice.
    """
    until = math.inf if time_limit_s is None else time.monotonic() + time_limit_s
    room = budget + TOLERANCE * abs(budget)
    top = np.array([int(np.argmax(v)) for v in grid.values], dtype=np.int64)
    top_value, top_cost = grid.value(top), grid.cost(top)
    if top_cost <= room:
        choice = fill(grid, top, room)
        return Found(choice, grid.cost(choice), grid.value(choice), top_value, "whole")
    dual = Dual(grid, limit=limit)
    bound, cheap = dual.best(1.0, 0.0)
    if not dual.plan.exact:
        cheap = descend(grid, cheap)
    cheap_cost, cheap_value = grid.cost(cheap), grid.value(cheap)
    if start is not None and cheap_cost > room >= grid.cost(start):
        cheap, cheap_cost, cheap_value = start, grid.cost(start), grid.value(start)
    if cheap_cost > room:
        raise BudgetError(
            f"a budget of {budget:.6g} was asked; the cheapest choice costs {cheap_cost:.6g}; "
            f"ask for at least {cheap_cost:.6g}",
            minimum=cheap_cost,
        )
    below, above = (cheap_value, cheap_cost), (top_value, top_cost)
    inside: list[IntArray] = [cheap] if start is None or grid.cost(start) > room else [cheap, start]
    outside = top
    upper, multiplier = top_value, 0.0
    path = "dual" if dual.plan.exact else "mini-bucket"
    for _ in range(100):
        if upper - below[0] <= 0.1 * gap * abs(upper) or time.monotonic() > until:
            break
        slope = (above[0] - below[0]) / (above[1] - below[1])
        bound, choice = dual.best(slope)
        if bound + slope * room < upper:
            upper, multiplier = bound + slope * room, slope
        point = (grid.value(choice), grid.cost(choice))
        line = above[0] - slope * above[1]
        scale = abs(above[0]) + abs(slope * above[1]) + abs(line)
        if point[0] - slope * point[1] <= line + 1e-13 * scale or point in (below, above):
            break
        if point[1] <= room:
            below = point
            inside.append(choice)
        else:
            above, outside = point, choice
    if time.monotonic() > until:
        path += "+time"
    inside = [inside[-1]] if start is None or len(inside) < 2 else [inside[-1], inside[1]]
    fixed = repair(grid, outside, room)
    if fixed is not None:
        inside.append(fixed)
    filled = [fill(grid, choice, room) for choice in inside]
    best = max(filled, key=grid.value)
    found = Found(best, grid.cost(best), grid.value(best), upper, path, multiplier)
    found.upper_bound = max(found.upper_bound, found.value)
    if dual.plan.exact and found.gap > gap and time.monotonic() <= until:
        _close(grid, dual, found, room, gap=gap, until=until)
    return found


def _close(grid: Grid, dual: Dual, found: Found, room: float, *, gap: float, until: float) -> None:
    from halpiee.selection.frontier import close_gap

    choice, found.upper_bound = close_gap(
        grid, dual, found.multiplier, room, found.value, found.upper_bound, gap=gap, until=until
    )
    if choice is not None:
        found.choice = fill(grid, choice, room)
        found.cost, found.value = grid.cost(found.choice), grid.value(found.choice)
    found.path = "frontier" if time.monotonic() <= until else "frontier+time"
