"""The uniform-width network: every group keeps the same share of its units, as large as the budget allows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection

from halpiee.errors import BudgetError
from halpiee.selection.cost import LatencyCost

__all__ = ["uniform"]


def uniform(cost: LatencyCost, budget_us: float, *, protect: Collection[str] = ()) -> dict[str, int]:
    """Returns the counts of the widest uniform network within a latency.

    Every group keeps the largest candidate of at most ``ratio · size`` units, or its smallest above 0; the
    ratio is the largest whose network fits. All ratios at which some count changes are tried, from the widest
    down.

    Args:
        cost: the latency model.
        budget_us: the largest latency.
        protect: groups that stay whole.

    Raises:
        BudgetError: a budget below the narrowest uniform network; ``.minimum`` holds its latency.
    """
    sizes = {g.name: g.size for g in cost.structure.prunable}
    allowed = {
        name: [size] if name in protect else [k for k in cost.candidates[name] if k > 0]
        for name, size in sizes.items()
    }
    ratios = sorted({k / sizes[name] for name, options in allowed.items() for k in options}, reverse=True)
    counts: dict[str, int] = dict(sizes)
    latency_us = cost.total_us(counts)
    for ratio in ratios:
        counts = {
            name: options[max(0, bisect_right(options, ratio * sizes[name] + 1e-9) - 1)]
            for name, options in allowed.items()
        }
        latency_us = cost.total_us(counts)
        if latency_us <= budget_us:
            return counts
    if latency_us <= budget_us:
        return counts
    raise BudgetError(
        f"a uniform network of {budget_us:.1f} µs was asked; the narrowest one takes {latency_us:.1f} µs; "
        f"ask for at least {latency_us:.1f} µs",
        minimum=latency_us,
    )
