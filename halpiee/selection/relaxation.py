"""HALP's own formulation, kept as the paper's baseline: every layer priced with its input width frozen.

Eq. 5 of HALP (arXiv 2210.06659) charges the j-th kept channel ``T(c_in, j) − T(c_in, j−1)`` at the input
width of a starting point, on the layer's output side only; a depthwise conv ``T(j, j) − T(j−1, j−1)``.
Channels of a group are taken most important first (precedence), so a group's choice is a count and its cost a
prefix sum of Eq. 5, negative contributions kept. What remains is a multiple-choice knapsack, solved here on
real-valued costs by dynamic programming over Pareto pairs. HALP's released program rounds costs to µs and
tests precedence against one predecessor only, which can miss the optimum; this does not.

The linearised cost agrees with the true one at the starting point and nowhere else: what a narrower layer
saves in the *next* layer is not seen. The true cost is reported beside the solver's own, and it may exceed
the budget.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from halpiee.selection.grid import Factor, Grid, GridSolution, IntArray, Side
from halpiee.selection.lagrangian import solve_dual

__all__ = ["linearise", "solve_linear"]


def solve_linear(
    grid: Grid,
    budget: float,
    start: IntArray | None = None,
    *,
    gap: float = 1e-3,
    time_limit_s: float | None = None,
) -> GridSolution:
    """Solves the knapsack of the costs linearised around ``start`` (default: all dense).

    Returns:
        A choice whose linearised cost is within the budget; ``cost`` and ``meets_budget`` speak of the true
        one, ``value`` and ``upper_bound`` of the linearised problem.

    Raises:
        BudgetError: a budget below the cheapest linearised choice.
    """
    if start is None:
        start = np.array([len(v) - 1 for v in grid.values], dtype=np.int64)
    own = linearise(grid, start)
    found = solve_dual(own, budget, gap=gap, time_limit_s=time_limit_s)
    path = "linear+time" if found.path.endswith("+time") else "linear"
    return grid.solution(found.choice, found.upper_bound, budget, path, own_cost=found.cost)


def linearise(grid: Grid, start: IntArray) -> Grid:
    """Returns the separable problem whose costs are Eq. 5 summed from ``start``'s option to every other."""
    extra = [np.zeros(len(v)) for v in grid.values]
    for ins, outs, cost in grid.terms:
        members = Counter(outs if isinstance(outs, tuple) else () if outs is None else (outs,))
        for g, times in members.items():
            out = _index(grid, outs, start, g, times)
            own = out if ins == outs else np.full(len(out), _index(grid, ins, start)[0])
            row = cost[own, out]
            extra[g] += row - row[start[g]]
    return Grid(
        values=grid.values,
        domains=[len(v) for v in grid.values],
        constant=grid.cost(start),
        factors=[Factor((g,), table) for g, table in enumerate(extra)],
    )


def _index(grid: Grid, side: Side, start: IntArray, group: int | None = None, times: int = 1) -> IntArray:
    """Returns the entries of a side at ``start``: one, or one per option of a group that varies."""
    if side is None:
        return np.zeros(1, dtype=np.int64)
    if not isinstance(side, tuple):
        return np.arange(len(grid.values[side])) if side == group else start[side : side + 1]
    assert grid.widths is not None
    total = np.array([sum(int(grid.widths[g][start[g]]) for g in side)], dtype=np.int64)
    if group is None:
        return total
    steps: IntArray = times * (grid.widths[group] - grid.widths[group][start[group]])
    return total + steps
