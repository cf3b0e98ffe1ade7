"""Candidate widths of a group: the right edges of its staircase, thinned out, and those the user allows."""

from __future__ import annotations

from collections.abc import Mapping

from halpiee.errors import UsageError, unknown

STEP = 1e-6
"""A narrower width is a candidate when it is cheaper than every wider one by more than this share."""


MOST_CANDIDATES = 128
"""Candidate widths per group: a smooth table offers every width, and joined tables grow with their square."""


def thin(candidates: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Returns at most MOST_CANDIDATES: multiples of a power of two, the narrowest and the dense width."""
    step = 1
    kept = candidates
    while len(kept) > MOST_CANDIDATES:
        step *= 2
        kept = tuple(k for k in candidates if k % step == 0 or k in (candidates[0], size))
    return kept


def restrict(
    candidates: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    *,
    multiple: int = 1,
    least: float = 0.0,
    most: float = 1.0,
    vanish: bool = True,
    between: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Returns the candidates (group name → ascending widths) of every group that the given limits allow.

    A width that is no ``multiple`` is rounded down to one, the dense width aside: the widths between two candidates
    save nothing. Every group keeps at least ``least`` units, a share below 1 or a number, and at most the share
    ``most``, or its narrowest width; one with fewer units stays whole. ``vanish`` says whether groups with a candidate
    of 0 may be emptied, for which ``least`` does not hold; ``between`` gives a group's fewest and most units.

    Raises:
        UsageError: a multiple below 1, shares that leave nothing, an unknown group, a range without a width.
    """
    if multiple < 1 or least < 0 or not 0 < most <= 1 or (least < 1 and least > most):
        raise UsageError(
            f"widths of multiples of {multiple}, at least {least:g} and at most {most:g} of each group were asked; "
            "give a multiple of at least 1, a share below 1 or a number of units as the least, and a share as the most"
        )
    between = between or {}
    for name in between:
        if name not in sizes:
            hint = unknown(name, sizes, "see `halpiee explain` for their names")
            raise UsageError(f"a range was asked for {name!r}, which is no group that can be pruned; {hint}")
    found = {}
    for name, widths in candidates.items():
        size = sizes[name]
        low, high = between.get(name, (0, size))
        fewest = least * size if least < 1 else min(least, size)
        rounded = {k if k == size else k // multiple * multiple for k in widths} - {0}
        fits = {k for k in rounded if (k == size or k >= fewest) and k <= most * size + 1e-9}
        offered = fits or {min(rounded)}
        if 0 in widths and vanish:
            offered = offered | {0}
        kept = tuple(sorted(k for k in offered if low <= k <= high))
        if not kept:
            raise UsageError(
                f"{low} … {high} units of {name!r} were asked; its widths are "
                f"{', '.join(map(str, sorted(offered)))}; give a range that holds one of them"
            )
        found[name] = kept
    return found
