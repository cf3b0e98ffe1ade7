"""The joint solver: dual bound and exact elimination, wider mini-buckets where the coupling is too wide for that."""

from __future__ import annotations

import time

from halpiee.selection.lagrangian import solve_dual
from halpiee.selection.solution import GridSolution
from halpiee.selection.terms import Grid, IntArray

__all__ = ["solve_joint"]

WIDE = 6.4e7
"""Cells of a joined table where narrower mini-buckets leave the gap open: 0.5 GB."""


def solve_joint(
    grid: Grid,
    budget: float,
    start: IntArray | None = None,
    *,
    gap: float = 1e-3,
    time_limit_s: float | None = None,
) -> GridSolution:
    """Solves a normalised grid: dual bound and repair, then the frontier where the gap is not met yet."""
    begin = time.monotonic()
    found = solve_dual(grid, budget, start, gap=gap, time_limit_s=time_limit_s)
    left_s = None if time_limit_s is None else time_limit_s - (time.monotonic() - begin)
    if found.path == "mini-bucket" and found.gap > gap and (left_s is None or left_s > 0):
        wider = solve_dual(grid, budget, found.choice, gap=gap, time_limit_s=left_s, limit=WIDE)
        wider.upper_bound = min(wider.upper_bound, found.upper_bound)
        found = wider
    return GridSolution(
        choice=found.choice,
        cost=found.cost,
        value=found.value,
        upper_bound=found.upper_bound,
        budget=budget,
        path=found.path,
        own_cost=found.cost,
    )
