"""The uniform-width network: every group keeps the same share of its units, as large as the budget allows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise

from halpiee.errors import BudgetError
from halpiee.selection.cost import Cost

__all__ = ["uniform", "widest"]


def uniform(cost: Cost, budget_us: float, *, protect: Collection[str] = ()) -> dict[str, int]:
    """Returns the counts of the widest uniform network within a latency; see ``widest``.

    Args:
        cost: the latency model; its candidates above 0 are the widths.
        budget_us: the largest latency.
        protect: groups that stay whole.

    Raises:
        BudgetError: a budget below the narrowest uniform network; ``.minimum`` holds its latency.
    """
    sizes = {g.name: g.size for g in cost.structure.prunable}
    options = {
        name: [size] if name in protect else [k for k in cost.candidates[name] if k > 0]
        for name, size in sizes.items()
    }
    counts = widest(sizes, options, cost.total, budget_us)
    if counts is None:
        least_us = cost.total({name: allowed[0] for name, allowed in options.items()})
        raise BudgetError(
            f"a uniform network of {budget_us:.1f} µs was asked; the narrowest one takes {least_us:.1f} µs; "
            f"ask for at least {least_us:.1f} µs",
            minimum=least_us,
        )
    return counts


def widest(
    sizes: Mapping[str, int],
    options: Mapping[str, Sequence[int]],
    measure: Callable[[Mapping[str, int]], float],
    limit: float,
    *,
    rising: bool = False,
) -> dict[str, int] | None:
    """Returns the counts of the widest uniform network within a limit, or None where not the narrowest fits.

    At a ratio r every group keeps the option nearest to r · size, the wider one of two equally near. The largest r
    whose network fits is taken. Then single groups step to their next option while one fits, always the one with the
    largest remainder (r · size − count) / (next − count), the first of equal ones, with r where the ratio stopped.
    Afterwards no single step of any group fits.

    Args:
        sizes: group name → units of the whole network.
        options: group name → ascending widths above 0.
        measure: the size of a network, in the unit of ``limit``.
        limit: the largest size.
        rising: whether the size never falls as a group grows; then the ratio is found by bisection. Else every
            ratio at which a count changes is tried, from the widest down.
    """
    steps = {
        name: [Fraction(a + b, 2 * sizes[name]) for a, b in pairwise(allowed)]
        for name, allowed in options.items()
    }
    ratios = sorted({ratio for found in steps.values() for ratio in found})

    def rounded(n: int) -> dict[str, int]:
        """Returns the network of the n-th ratio; that of 0 is the narrowest."""
        if n == 0:
            return {name: allowed[0] for name, allowed in options.items()}
        return {name: allowed[bisect_right(steps[name], ratios[n - 1])] for name, allowed in options.items()}

    def fits(counts: Mapping[str, int]) -> bool:
        return measure(counts) <= limit

    numbers = range(len(ratios) + 1)
    if rising:
        at = bisect_right(numbers, False, key=lambda n: not fits(rounded(n))) - 1
    else:
        at = next((n for n in reversed(numbers) if fits(rounded(n))), -1)
    if at < 0:
        return None
    counts = rounded(at)
    stopped = ratios[at] if at < len(ratios) else Fraction(1)
    grown = True
    while grown:
        # A step that did not fit fits later only where another one made the network cheaper.
        grown = False
        left = {name for name in options if counts[name] < options[name][-1]}
        while left:
            wider = {name: options[name][bisect_right(options[name], counts[name])] for name in left}
            name = max(
                (name for name in options if name in left),
                key=lambda name: (stopped * sizes[name] - counts[name]) / (wider[name] - counts[name]),
            )
            if fits({**counts, name: wider[name]}):
                counts[name], grown = wider[name], True
            if counts[name] != wider[name] or counts[name] == options[name][-1]:
                left.remove(name)
    return counts
