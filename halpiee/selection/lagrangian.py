"""The Lagrangian dual bounds every selection within the budget, and leads to one close to it: the joint solver.

``L(λ) = max_k [ Σ_g V_g(k_g) − λ · (C(k) − Ψ) ]`` bounds the optimum from above for every λ ≥ 0. The inner maximum is
exact (``elimination.py``), so L is the upper envelope of lines, one per choice, and its minimum is found in a few
steps: start from the two extreme choices (most valuable; cheapest), move λ to where their lines cross, replace one of
them by the best choice at that λ. Choices within the budget that are found are filled up greedily. The remaining gap is
closed by the frontier, or by wider mini-buckets where the coupling is too wide for it.

**Local search.** A choice is filled up to its budget, repaired to it, or made cheaper, by single changes. Gain and cost
of every other option of every group are kept up to date; a change recomputes only the groups that share a cost with it.

``solve_linear`` is HALP's own formulation, the paper's baseline: every layer priced with its input width frozen. Eq. 5
of HALP (arXiv 2210.06659) charges the j-th kept channel ``T(c_in, j) − T(c_in, j−1)`` at the input width of a starting
point, on the layer's output side only; a depthwise conv ``T(j, j) − T(j−1, j−1)``. Channels are taken most important
first, so a group's choice is a count and its cost a prefix sum of Eq. 5, negative contributions kept. What remains is a
multiple-choice knapsack, solved on real-valued costs by dynamic programming over Pareto pairs. HALP's released program
rounds costs to µs and tests precedence against one predecessor only, which can miss the optimum. The linearised cost
equals the true one at the starting point only: it does not see what a narrower layer saves in the *next* layer. The
true cost is reported beside it, and may exceed the budget.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from halpiee.errors import BudgetError
from halpiee.selection.frontier import Dual, close_gap
from halpiee.selection.grid import TOLERANCE, Factor, Grid, GridSolution, IntArray, Search, Side, relative_gap


class _Moves:
    """All single changes of a choice, the options of all groups one after the other."""

    def __init__(self, grid: Grid, choice: IntArray) -> None:
        self.grid = grid
        self.choice = np.array(choice, dtype=np.int64)
        self.group = np.repeat(np.arange(grid.n_groups), [len(v) for v in grid.values])
        self.first = np.concatenate([[0], np.cumsum([len(v) for v in grid.values])])
        self.gain = np.empty(len(self.group))  # value gained by changing to that option
        self.extra = np.empty(len(self.group))  # cost added
        self.wider = np.zeros(len(self.group), dtype=np.bool_)  # than the present option
        self.cost = grid.cost(self.choice)
        self._price(range(grid.n_groups))

    def take(self, at: int) -> None:
        """Changes one group to the option at this place."""
        g = int(self.group[at])
        self.choice[g] = at - self.first[g]
        self.cost = self.grid.cost(self.choice)
        self._price(sorted(self.grid.near[g]))

    def _price(self, groups: range | list[int]) -> None:
        states = self.grid.states(self.choice)
        for g in groups:
            k, here = states[g], slice(self.first[g], self.first[g + 1])
            value = self.grid.values[g]
            row = self.grid.row(states, g)
            self.gain[here] = value - value[k]
            self.extra[here] = row - row[k]
            self.wider[here] = np.arange(len(value)) > k


def fill(grids: Sequence[Grid], choice: IntArray, rooms: Sequence[float]) -> IntArray:
    """Returns a choice in which no group has a better, or a wider and no worse, option within all ``rooms``.

    Takes the change of most value per cost that fits, until there is none; costs are shares of their limits.
    """
    limits = [_Moves(grid, choice) for grid in grids]
    scales = [abs(room) or 1.0 for room in rooms]
    while True:
        fits = limits[0].gain > -np.inf
        for moves, room in zip(limits, rooms, strict=True):
            fits &= moves.extra <= room - moves.cost
        gain = limits[0].gain
        at = np.flatnonzero(fits & ((gain > 0) | (limits[0].wider & (gain >= 0))))
        if len(at) == 0:
            return limits[0].choice
        share = np.zeros(len(at))
        for moves, scale in zip(limits, scales, strict=True):
            share += moves.extra[at] / scale
        rate = gain[at] / np.maximum(share, 1e-9)
        best = int(at[np.lexsort((gain[at], rate))[-1]])
        for moves in limits:
            moves.take(best)


def repair(grids: Sequence[Grid], choice: IntArray, rooms: Sequence[float]) -> IntArray | None:
    """Returns a choice within all ``rooms``, reached by giving up the least value per cost, or ``None``."""
    limits = [_Moves(grid, choice) for grid in grids]
    scales = [abs(room) or 1.0 for room in rooms]
    while True:
        excess = sum(
            max(0.0, m.cost - room) / scale for m, room, scale in zip(limits, rooms, scales, strict=True)
        )
        if excess <= 0:
            return limits[0].choice
        left = np.zeros(len(limits[0].extra))
        for moves, room, scale in zip(limits, rooms, scales, strict=True):
            left += np.maximum(0.0, moves.cost + moves.extra - room) / scale
        saved = excess - left
        at = np.flatnonzero(saved > 1e-12 * excess)
        if len(at) == 0:
            return None
        best = int(at[np.argmin(-limits[0].gain[at] / saved[at])])
        for moves in limits:
            moves.take(best)


def descend(grid: Grid, choice: IntArray) -> IntArray:
    """Returns a choice that no single change makes cheaper."""
    moves = _Moves(grid, choice)
    while True:
        at = int(np.argmin(moves.extra))
        if moves.extra[at] >= -1e-12 * abs(moves.cost):
            return moves.choice
        moves.take(at)


def solve_dual(
    grid: Grid,
    budget: float,
    search: Search,
    start: IntArray | None = None,
    *,
    limit: float = 4e6,
    dual: Dual | None = None,
) -> GridSolution:
    """Minimises the dual bound, from a choice to start from, and repairs; the frontier closes a gap that is not met.

    ``limit`` is the most entries of a table of the elimination; ``dual``, of this grid, holds what earlier budgets
    found.

    Raises:
        BudgetError: a budget below the cheapest choice.
    """
    gap = search.gap
    until = math.inf if search.time_limit_s is None else time.monotonic() + search.time_limit_s
    room = budget + TOLERANCE * abs(budget)
    top = np.array([int(np.argmax(v)) for v in grid.values], dtype=np.int64)
    if grid.cost(top) <= room:
        return grid.solution(fill([grid], top, [room]), grid.value(top), budget, "whole")
    dual = dual or Dual(grid, limit=limit)
    cheap = _cheapest(dual, budget, room, start)
    inside, outside, upper, multiplier = _minimise(dual, room, cheap, top, gap=gap, until=until)
    choices = [inside] if start is None or grid.cost(start) > room else [inside, start]
    repaired = repair([grid], outside, [room])
    if repaired is not None:
        choices.append(repaired)
    best = max((fill([grid], choice, [room]) for choice in choices), key=grid.value)
    upper = max(upper, grid.value(best))
    path = "dual" if dual.plan.exact else "mini-bucket"
    if relative_gap(grid.value(best), upper) > gap and dual.plan.exact and time.monotonic() <= until:
        path = "frontier"
        closer, upper = close_gap(grid, dual, multiplier, room, grid.value(best), upper, gap=gap, until=until)
        if closer is not None:
            best = fill([grid], closer, [room])
            upper = max(upper, grid.value(best))
    if time.monotonic() > until and relative_gap(grid.value(best), upper) > gap:
        path += "+time"
    return grid.solution(best, upper, budget, path)


def _cheapest(dual: Dual, budget: float, room: float, start: IntArray | None) -> IntArray:
    """Returns a choice within the budget: the cheapest one, or ``start`` where the cheapest is not known exactly."""
    _, cheap = dual.best(1.0, 0.0)
    if not dual.plan.exact:
        # The least cost is only bounded: search from the relaxed answer, the narrowest widths and random ones.
        rng = np.random.default_rng(0)
        sizes = [len(v) for v in dual.grid.values]
        starts = [cheap, np.zeros_like(cheap), *(rng.integers(sizes) for _ in range(8))]
        found = [descend(dual.grid, one) for one in starts] + ([] if start is None else [start])
        cheap = min(found, key=dual.grid.cost)
    cost = dual.grid.cost(cheap)
    if cost > room:
        raise BudgetError(
            f"a budget of {budget:.6g} was asked; the cheapest choice costs {cost:.6g}; ask for at least {cost:.6g}",
            minimum=cost,
        )
    return cheap


def _minimise(
    dual: Dual, room: float, cheap: IntArray, top: IntArray, *, gap: float, until: float
) -> tuple[IntArray, IntArray, float, float]:
    """Returns the choices on either side of the budget where the bound is least, the bound, and its multiplier."""
    grid = dual.grid
    below, above = dual.around(room)
    below = below or (grid.value(cheap), grid.cost(cheap), cheap)
    above = above or (grid.value(top), grid.cost(top), top)
    upper, multiplier = grid.value(top), 0.0
    for _ in range(100):
        if (
            above[0] <= below[0]
            or upper - below[0] <= 0.2 * gap * abs(upper)
            or (multiplier > 0 and time.monotonic() > until)
        ):
            break
        slope = (above[0] - below[0]) / (above[1] - below[1])
        bound, choice = dual.best(slope)
        if bound + slope * room < upper:
            upper, multiplier = bound + slope * room, slope
        point = (grid.value(choice), grid.cost(choice), choice)
        line = above[0] - slope * above[1]
        rounding = 1e-13 * (abs(above[0]) + abs(slope * above[1]))
        if point[0] - slope * point[1] <= line + rounding or point[:2] in (below[:2], above[:2]):
            break
        if point[1] <= room:
            below = point
        else:
            above = point
    return below[2], above[2], upper, multiplier


WIDE = 6.4e7
"""Entries of a joined table where narrower mini-buckets leave the gap open: 0.5 GB."""


def solve_joint(grid: Grid, budget: float, search: Search, start: IntArray | None = None) -> GridSolution:
    """Solves a normalised grid by its dual, once more with wider mini-buckets where they leave the gap open."""
    begin = time.monotonic()
    found = solve_dual(grid, budget, search, start)
    left_s = None if search.time_limit_s is None else search.time_limit_s - (time.monotonic() - begin)
    if found.path == "mini-bucket" and found.gap > search.gap and (left_s is None or left_s > 0):
        wider = solve_dual(grid, budget, replace(search, time_limit_s=left_s), found.choice, limit=WIDE)
        found = replace(wider, upper_bound=min(wider.upper_bound, found.upper_bound))
    return found


def solve_linear(grid: Grid, budget: float, search: Search, start: IntArray | None = None) -> GridSolution:
    """Solves the knapsack of the costs linearised around ``start`` (default: all dense), within the linearised budget.

    The solution's ``cost`` and ``meets_budget`` are of the true cost, ``value`` and ``upper_bound`` of the linearised
    problem.

    Raises:
        BudgetError: a budget below the cheapest linearised choice.
    """
    if start is None:
        start = np.array([len(v) - 1 for v in grid.values], dtype=np.int64)
    own = linearise(grid, start)
    found = solve_dual(own, budget, search)
    path = "linear+time" if found.path.endswith("+time") else "linear"
    return replace(found, path=path, cost=grid.cost(found.choice), own_cost=found.cost)


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
