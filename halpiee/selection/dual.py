"""The inner problem of the Lagrangian dual: the best choice at a multiplier, its bound, and what earlier ones found."""

from __future__ import annotations

import numpy as np

from halpiee.selection.elimination import Elimination
from halpiee.selection.terms import FloatArray, Grid, IntArray

__all__ = ["Dual"]


class Dual:
    """The inner problem of a grid, planned once.

    Args:
        grid: the problem.
        limit: cells that a table of the elimination may have.

    Attributes:
        known: ``(value, cost, choice)`` of every choice that was best at some multiplier, where that is
            exact: points of the upper hull, good starting points for any budget.
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
        self.known: list[tuple[float, float, IntArray]] = []
        self._answers: dict[tuple[float, float], tuple[float, IntArray]] = {}

    def tables(self, multiplier: float, weight: float = 1.0) -> list[FloatArray]:
        """Returns ``weight · values − multiplier · costs`` as one table per factor of the plan."""
        tables = [weight * v - multiplier * c for v, c in zip(self.grid.values, self.own, strict=True)]
        return tables + [-multiplier * c for c in self.wide]

    def best(self, multiplier: float, weight: float = 1.0) -> tuple[float, IntArray]:
        """Returns the maximum of ``weight · V − multiplier · C``, or a bound on it, and its choice."""
        key = (multiplier, weight)
        if key not in self._answers:
            bound, store = self.plan.run(self.tables(multiplier, weight))
            states = self.plan.decode(store)
            choice = np.array(states[: self.grid.n_groups], dtype=np.int64)
            self._answers[key] = (bound - multiplier * self.grid.constant, choice)
            if self.plan.exact:
                self.known.append((self.grid.value(choice), self.grid.cost(choice), choice))
        return self._answers[key]

    def around(self, room: float) -> tuple[tuple[float, float, IntArray] | None, ...]:
        """Returns the known choices next to a budget: the dearest within it, the cheapest beyond it."""
        within = [point for point in self.known if point[1] <= room]
        beyond = [point for point in self.known if point[1] > room]
        return (
            max(within, key=lambda p: (p[1], p[0]), default=None),
            min(beyond, key=lambda p: (p[1], -p[0]), default=None),
        )
