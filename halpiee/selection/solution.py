"""What every solver answers: one option per group, what it costs and is worth, and what was missed at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from halpiee.selection.terms import IntArray

__all__ = ["GridSolution", "Solver", "relative_gap"]

Solver = Literal["joint", "linear", "cpsat"]


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
