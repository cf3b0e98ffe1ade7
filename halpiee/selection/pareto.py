"""The whole curve at once: what each latency keeps, from one dual pass shared by all budgets.

Every choice that is best at some multiplier lies on the upper hull of (latency, value); budgets next to each
other meet the same ones, so each budget starts from the hull points around it that earlier budgets found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from halpiee.errors import BudgetError
from halpiee.selection.cost import Cost
from halpiee.selection.dual import Dual
from halpiee.selection.lagrangian import solve_dual
from halpiee.selection.offer import offer
from halpiee.selection.solution import relative_gap
from halpiee.selection.terms import Term, normalise

__all__ = ["ParetoPoint", "pareto"]


@dataclass(frozen=True)
class ParetoPoint:
    """One budget of the curve.

    Attributes:
        budget_us: what was asked.
        latency_us: of the selection, calibrated.
        value: summed score of what it keeps.
        upper_bound: no selection within the budget has a higher value.
        counts: units kept per prunable group.
    """

    budget_us: float
    latency_us: float
    value: float
    upper_bound: float
    counts: dict[str, int]

    @property
    def gap(self) -> float:
        """Certified relative gap."""
        return relative_gap(self.value, self.upper_bound)


def pareto(
    scores: Mapping[str, Tensor],
    cost: Cost,
    budgets_us: Sequence[float],
    *,
    gap: float = 1e-3,
    protect: Collection[str] = (),
) -> list[ParetoPoint]:
    """Solves many budgets of one network.

    Args:
        scores: Tensor ``[size]`` per group; a group without scores stays whole.
        cost: the latency model.
        budgets_us: the latencies; those below the narrowest network are left out of the answer.
        gap: relative gap to prove at every point.
        protect: groups that stay whole.

    Returns:
        One point per reachable budget, in the order given.
    """
    offers = offer(scores, cost, protect=protect)
    grid = normalise(offers.values, [Term(*term) for term in offers.terms], offers.counts)
    dual = Dual(grid)
    points = []
    for budget_us in budgets_us:
        try:
            found = solve_dual(grid, cost.to_raw(float(budget_us)), gap=gap, dual=dual)
        except BudgetError:
            continue
        counts = {name: int(mask.sum()) for name, mask in offers.keep(found.choice).items()}
        points.append(
            ParetoPoint(
                budget_us=float(budget_us),
                latency_us=cost.total(counts),
                value=found.value,
                upper_bound=found.upper_bound,
                counts={g.name: counts[g.name] for g in cost.structure.prunable},
            )
        )
    return points
