"""The grid problem: one option per group, total cost within a budget, total value as large as possible.

``maximise  Σ_g V_g(k_g)   subject to   Σ_t C_t(in_t, out_t) ≤ budget``

where a side of a cost term is fixed, the option of one group, or the sum of the widths of several. Costs are
in whatever unit the budget is in. This file holds the public verb ``solve_grid``; the checks of what comes
in are in ``checks.py``, the normal form the solvers work on in ``terms.py``, their answer in ``solution.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halpiee.errors import UsageError
from halpiee.selection.checks import check_budget, check_start, check_term, check_values, check_widths
from halpiee.selection.cpsat import solve_cpsat
from halpiee.selection.joint import solve_joint
from halpiee.selection.linear import solve_linear
from halpiee.selection.solution import GridSolution, Solver
from halpiee.selection.terms import Side, normalise

__all__ = ["GridSolution", "solve_grid"]


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
        return solve_linear(grid, number, first, gap=gap, time_limit_s=time_limit_s)
    if solver == "cpsat":
        return solve_cpsat(grid, number, first, gap=gap, time_limit_s=time_limit_s, seed=seed)
    return solve_joint(grid, number, first, gap=gap, time_limit_s=time_limit_s)
