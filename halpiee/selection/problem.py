"""The grid problem: one option per group, total cost within a budget, total value as large as possible.

``maximise  Σ_g V_g(k_g)   subject to   Σ_t C_t(in_t, out_t) ≤ budget``

where a side of a cost term is fixed, the option of one group, or the sum of the widths of several. Costs are
in whatever unit the budget is in. This file holds the public verb ``solve_grid``, its result, and the checks
of what comes in; the normal form the solvers work on is in ``terms.py``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halpiee.errors import UsageError
from halpiee.selection.checks import check_budget, check_start, check_term, check_values, check_widths
from halpiee.selection.terms import Grid, IntArray, Side, normalise

__all__ = ["GridSolution", "Solver", "relative_gap", "solve_grid"]

Solver = Literal["joint", "linear", "cpsat"]

WIDE = 6.4e7
"""Cells of a joined table where narrower mini-buckets leave the gap open: 0.5 GB."""


def relative_gap(value: float, upper_bound: float) -> float:
    """Returns how far from optimal ``value`` can be at most: (upper bound − value) / |upper bound|."""
    return (upper_bound - value) / max(abs(upper_bound), 1e-12)


@dataclass(frozen=True)
class GridSolution:
    """One option per group, with its proof.

    Attributes:
        choice: int64 ``[G]``, the chosen option of every group.
        cost: true cost of ``choice``, in the budget's unit.
        value: ``Σ values[g][choice[g]]``.
        upper_bound: no choice within the budget has a higher value. For ``linear`` it bounds the linearised
            problem, the one that solver solves.
        budget: what was asked.
        path: how it was solved: ``whole`` (the best options all fit), ``dual`` (Lagrangian bound and repair),
            ``frontier`` (Pareto elimination), ``mini-bucket`` (the coupling is too wide for exact
            elimination: the bound is relaxed), ``cpsat``, ``linear``; ``+time`` is appended when the time
            limit cut it short.
        own_cost: what the solver itself believes ``choice`` costs; differs from ``cost`` only for ``linear``.
    """

    choice: IntArray
    cost: float
    value: float
    upper_bound: float
    budget: float
    path: str
    own_cost: float

    @property
    def gap(self) -> float:
        """Certified relative gap: (upper_bound − value) / max(|upper_bound|, 1e-12)."""
        return relative_gap(self.value, self.upper_bound)

    @property
    def meets_budget(self) -> bool:
        """Whether the true cost is within the budget, up to a relative 1e-9."""
        return self.cost <= self.budget + 1e-9 * abs(self.budget)

    @property
    def slack(self) -> float:
        """What is left of the budget, in its unit."""
        return self.budget - self.cost


def solve_grid(
    values: Sequence[ArrayLike],
    terms: Sequence[tuple[Side, Side, ArrayLike]],
    budget: float,
    *,
    widths: Sequence[ArrayLike] | None = None,
    solver: Solver = "joint",
    start: Sequence[int] | NDArray[np.integer] | None = None,
    gap: float = 1e-3,
    time_limit_s: float | None = None,
    seed: int = 0,
) -> GridSolution:
    """Chooses one option per group: the most value that the budget allows, with a bound on what was missed.

    Args:
        values: per group a float array ``[n_g]``; options in ascending width, the last one is dense.
        terms: ``(ins, outs, cost [n_in, n_out])``. A side is ``None`` (fixed, axis of length 1), a group
            index (axis = its options) or a tuple of group indices (axis = the sum of
            ``widths[g][choice[g]]``). ``ins == outs`` makes a term of which only the diagonal counts
            (depthwise). Repeated pairs add up.
        budget: the largest total cost, in the unit of the costs.
        widths: int array ``[n_g]`` per group; needed where a side is a tuple.
        solver: ``joint`` (dual bound, exact elimination, frontier), ``cpsat`` (OR-Tools, hinted by joint) or
            ``linear`` (HALP's Eq. 5 around ``start``: keeps *its own* cost within the budget).
        start: one option per group: where ``linear`` linearises (default: all dense); a first answer for
            others.
        gap: relative gap to prove before stopping.
        time_limit_s: after this the best answer so far is returned with its gap.
        seed: of whatever is random (CP-SAT's search).

    Returns:
        The solution. ``joint`` and ``cpsat`` cost at most ``budget · (1 + 1e-9)``, and no single group has a
        wider option of no less value that still fits.

    Raises:
        UsageError: an empty problem, wrong shapes, values or costs that are not finite.
        BudgetError: a budget below the cheapest choice; ``.minimum`` holds its cost.
    """
    if solver not in ("joint", "linear", "cpsat"):
        raise UsageError(f"solver={solver!r} was asked; choose 'joint', 'linear' or 'cpsat'")
    if not gap >= 0:
        raise UsageError(f"gap={gap!r} was asked; give a number of at least 0, such as 1e-3")
    if time_limit_s is not None and not time_limit_s > 0:
        raise UsageError(
            f"time_limit_s={time_limit_s!r} was asked; give seconds above 0, or None for no limit"
        )
    checked_values = check_values(values)
    checked_widths = check_widths(widths, checked_values)
    checked_terms = [check_term(i, t, checked_values, checked_widths) for i, t in enumerate(terms)]
    number = check_budget(budget)
    first = check_start(start, checked_values)
    grid = normalise(checked_values, checked_terms, checked_widths)
    if solver == "linear":
        from halpiee.selection.linear import solve_linear

        return solve_linear(grid, number, first, gap=gap, time_limit_s=time_limit_s)
    if solver == "cpsat":
        from halpiee.selection.cpsat import solve_cpsat

        return solve_cpsat(grid, number, first, gap=gap, time_limit_s=time_limit_s, seed=seed)
    return solve_joint(grid, number, first, gap=gap, time_limit_s=time_limit_s)


def solve_joint(
    grid: Grid,
    budget: float,
    start: IntArray | None = None,
    *,
    gap: float = 1e-3,
    time_limit_s: float | None = None,
) -> GridSolution:
    """Solves a normalised grid: dual bound and repair, then the frontier where the gap is not met yet."""
    from halpiee.selection.lagrangian import solve_dual

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
