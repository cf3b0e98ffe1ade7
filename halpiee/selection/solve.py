"""The grid problem: one option per group, total cost within a budget, total value as large as possible.

``maximise  Σ_g V_g(k_g)   subject to   Σ_t C_t(in_t, out_t) ≤ budget``

where a side of a cost term is fixed, the option of one group, or the sum of the widths of several. Costs are
in the unit of the budget. Arguments are checked here, and every error names the place; the solvers work on the normal
form (``grid.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from halpiee.errors import UsageError
from halpiee.selection.cpsat import solve_cpsat
from halpiee.selection.grid import (
    FloatArray,
    GridSolution,
    IntArray,
    Search,
    Searching,
    Side,
    Term,
    normalise,
)
from halpiee.selection.lagrangian import solve_joint, solve_linear


def solve_grid(
    values: Sequence[ArrayLike],
    terms: Sequence[tuple[Side, Side, ArrayLike]],
    budget: float,
    *,
    widths: Sequence[ArrayLike] | None = None,
    start: Sequence[int] | NDArray[np.integer] | None = None,
    **searching: Unpack[Searching],
) -> GridSolution:
    """Chooses one option per group: the most value within the budget, with an upper bound.

    Args:
        values: per group a float array ``[n_g]``; options in ascending width, the last one is dense.
        terms: ``(ins, outs, cost [n_in, n_out])``. A side is ``None`` (fixed, axis of length 1), a group index (axis =
            its options) or a tuple of group indices (axis = the sum of ``widths[g][choice[g]]``). ``ins == outs`` makes
            a term of which only the diagonal counts (depthwise). Repeated pairs add up.
        budget: the largest total cost, in the unit of the costs.
        widths: int array ``[n_g]`` per group; needed where a side is a tuple.
        start: one option per group: where ``linear`` linearises (default: all dense); a first answer for others.
        **searching: ``solver``, ``gap``, ``time_limit_s``, ``seed``: see ``grid.Searching``.

    Returns:
        The solution. ``joint`` and ``cpsat`` cost at most ``budget · (1 + 1e-9)``, and no single group has a
        wider option of no less value that still fits.

    Raises:
        UsageError: an empty problem, wrong shapes, values or costs that are not finite.
        BudgetError: a budget below the cheapest choice; ``.minimum`` holds its cost.
    """
    search = Search(**searching)
    checked_values = check_values(values)
    checked_widths = check_widths(widths, checked_values)
    checked_terms = [check_term(i, t, checked_values, checked_widths) for i, t in enumerate(terms)]
    if math.isnan(number := float(budget)):
        raise UsageError("the budget is NaN; give a number in the unit of the costs")
    number = min(max(number, -1e300), 1e300)
    first = check_start(start, checked_values)
    grid = normalise(checked_values, checked_terms, checked_widths)
    return SOLVERS[search.solver](grid, number, search, first)


SOLVERS = {"joint": solve_joint, "linear": solve_linear, "cpsat": solve_cpsat}


def check_values(values: Sequence[ArrayLike]) -> list[FloatArray]:
    """Returns float64 arrays, one value per option."""
    if len(values) == 0:
        raise UsageError("a problem with no groups was given; pass one array of values per group")
    checked = []
    for g, value in enumerate(values):
        array = np.asarray(value, dtype=np.float64)
        if array.ndim != 1 or len(array) == 0:
            raise UsageError(
                f"values[{g}] must be a 1-d array with one value per option, found shape {array.shape}; "
                "give every group at least one option"
            )
        if not np.isfinite(array).all():
            at = int(np.flatnonzero(~np.isfinite(array))[0])
            raise UsageError(
                f"values[{g}] holds {array[at]} at option {at}; every value must be finite: "
                "drop that batch's scores"
            )
        checked.append(array)
    return checked


def check_widths(widths: Sequence[ArrayLike] | None, values: list[FloatArray]) -> list[IntArray] | None:
    """Returns int64 arrays, ascending, one per group."""
    if widths is None:
        return None
    if len(widths) != len(values):
        raise UsageError(f"widths has {len(widths)} arrays for {len(values)} groups; pass one per group")
    checked = []
    for g, width in enumerate(widths):
        array = np.asarray(width)
        if array.shape != values[g].shape or not np.issubdtype(array.dtype, np.number):
            raise UsageError(
                f"widths[{g}] must be {len(values[g])} integers, one per option, "
                f"found {array.dtype} {array.shape}"
            )
        whole = np.asarray(array, dtype=np.int64)
        if (whole != array).any() or (whole < 0).any() or (np.diff(whole) < 0).any():
            raise UsageError(
                f"widths[{g}] must be ascending non-negative integers, found {array.tolist()[:8]}; "
                "sort the options"
            )
        checked.append(whole)
    return checked


def check_term(
    index: int, term: tuple[Side, Side, ArrayLike], values: list[FloatArray], widths: list[IntArray] | None
) -> Term:
    """Returns a term whose axes fit its sides."""
    try:
        ins, outs, cost = term
    except (TypeError, ValueError):
        raise UsageError(f"terms[{index}] must be (ins, outs, cost [n_in, n_out]), found {term!r}") from None
    table = np.asarray(cost, dtype=np.float64)
    sides = (_check_side(index, ins, len(values)), _check_side(index, outs, len(values)))
    if table.ndim != 2:
        raise UsageError(f"terms[{index}]'s cost must have two axes [n_in, n_out], found shape {table.shape}")
    for axis, (name, side) in enumerate(zip(("ins", "outs"), sides, strict=True)):
        length = table.shape[axis]
        if isinstance(side, tuple):
            if widths is None:
                raise UsageError(
                    f"terms[{index}] has the tuple {side} as {name}, a sum of widths; pass widths=[...], "
                    "one int array per group"
                )
            need = 1 + sum(int(widths[g][-1]) for g in side)
            if length < need:
                raise UsageError(
                    f"terms[{index}]'s cost has {length} entries along {name}={side}; the widths of those "
                    f"groups add up to {need - 1}, so it needs {need} (index = sum of widths)"
                )
        else:
            need = 1 if side is None else len(values[side])
            if length != need:
                raise UsageError(
                    f"terms[{index}]'s cost has {length} entries along {name}={side}, expected {need}; "
                    "one per option of the group, or 1 where the side is fixed"
                )
    if not np.isfinite(table).all():
        i, j = (int(x) for x in np.argwhere(~np.isfinite(table))[0])
        raise UsageError(
            f"terms[{index}] (ins={sides[0]}, outs={sides[1]}) costs {table[i, j]} at [{i}, {j}]; "
            "every cost must be finite: measure that cell again or leave the option out"
        )
    return Term(sides[0], sides[1], table)


def _check_side(index: int, side: Side, n_groups: int) -> Side:
    if side is None:
        return None
    for g in side if isinstance(side, tuple) else (side,):
        if isinstance(g, bool) or not isinstance(g, (int, np.integer)) or not 0 <= g < n_groups:
            raise UsageError(
                f"terms[{index}] names the group {g!r}; groups are numbered 0 … {n_groups - 1}, "
                "a side is None, a number or a tuple of numbers"
            )
    if isinstance(side, tuple):
        if not side:
            raise UsageError(f"terms[{index}] has an empty tuple as a side; write None for a fixed side")
        return tuple(int(g) for g in side)
    return int(side)


def check_start(
    start: Sequence[int] | NDArray[np.integer] | None, values: list[FloatArray]
) -> IntArray | None:
    """Returns int64 ``[G]``, one option per group."""
    if start is None:
        return None
    array = np.asarray(start)
    if array.shape != (len(values),) or not np.issubdtype(array.dtype, np.integer):
        raise UsageError(
            f"start must be {len(values)} option indices, one per group, found {array.dtype} {array.shape}"
        )
    for g, k in enumerate(array):
        if not 0 <= k < len(values[g]):
            raise UsageError(f"start[{g}] is {k}, but group {g} has the options 0 … {len(values[g]) - 1}")
    return array.astype(np.int64)
