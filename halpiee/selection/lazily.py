"""A plan from few measurements: solve, measure the cells the answer rests on, solve again, until nothing new is asked.

The first answer comes from the corners of every table. Each round measures the cells of the network it chose; when all
of these are known, the cells one candidate narrower and wider, group by group; when those are known too, the answer no
longer changes. Wrong prices elsewhere can hide a better network: the *regret*, measured in ``docs/results.md``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from halpiee.selection.choose import Selection, choose
from halpiee.selection.cost import LatencyCost
from halpiee.structure.groups import Structure

if TYPE_CHECKING:
    from latency.lazy import LazySweep
    from latency.op import Op
    from latency.predict import Calibration

__all__ = ["select_lazily"]

ROUNDS = 40
"""Rounds of measuring at most; a plan usually asks for fewer than ten."""


def select_lazily(
    scores: Mapping[str, Tensor],
    structure: Structure,
    tables: LazySweep,
    *,
    budget_us: float | None = None,
    fraction: float | None = None,
    calibration: Calibration | None = None,
    gap: float = 1e-3,
    protect: Collection[str] = (),
    offer: Callable[[LatencyCost], LatencyCost] = lambda cost: cost,
) -> tuple[Selection, LatencyCost]:
    """Returns a selection whose every cell, and those next to it, was measured, and the cost it was found with.

    Args:
        scores: every prunable group: Tensor ``[size]``.
        structure: of the network whose ops the tables were opened with.
        tables: an open lazy sweep.
        budget_us: the largest latency in µs.
        fraction: or this share of the dense latency.
        calibration: of the cost.
        gap: relative gap to prove, for the prices known at the time.
        protect: groups that stay whole.
        offer: what of a cost's candidate widths is offered: ``lambda cost: cost.restricted(…)``.

    Raises:
        BudgetError: a budget below the narrowest network.
    """
    for _ in range(ROUNDS):
        cost = offer(LatencyCost(structure, tables.profile, calibration))
        us = budget_us if budget_us is not None else (1.0 if fraction is None else fraction) * cost.dense_us
        selection = choose(scores, cost, us, gap=gap, protect=protect)
        if not tables.measure(_cells(structure, selection.counts)) and not tables.measure(
            _neighbours(structure, cost, selection.counts)
        ):
            break
    return selection, cost


def _cells(structure: Structure, counts: Mapping[str, int]) -> list[tuple[Op, int, int]]:
    """Returns the cell of every op at some counts."""
    return [(timed.op, *structure.sides(timed, counts)) for timed in structure.ops]


def _neighbours(
    structure: Structure, cost: LatencyCost, counts: Mapping[str, int]
) -> list[tuple[Op, int, int]]:
    """Returns the cells of the networks that differ by one candidate width of one group."""
    found: dict[tuple[Op, int, int], None] = {}
    for name, options in cost.candidates.items():
        at = bisect_left(options, counts[name])
        for other in options[max(0, at - 1) : at + 2]:
            for cell in _cells(structure, {**counts, name: other}):
                found[cell] = None
    return list(found)
