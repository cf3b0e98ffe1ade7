"""Which groups does a score not tell apart? Those whose units all have the same one, or none.

A ranking of such a group is a ranking by index, so it is reported by name and never used in silence.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from halpiee.errors import ScoreWarning

__all__ = ["NO_GRADIENT", "flat", "tell", "undecided"]

NO_GRADIENT = "no gradient reaches them"

ALL_ZERO = "all their scores are 0"

ADVICE = {NO_GRADIENT: "take them out of torch.no_grad() or detach(), choose another criterion"}
"""Why → what else helps than another criterion."""

SAME = 1e-6
"""Scores that differ by less than this share of the largest are the same: the precision of 32 bits."""


def flat(score: Tensor) -> str | None:
    """Returns why a score does not tell units apart, or ``None`` where it does, or there are not two of them.

    Args:
        score: float, any shape.
    """
    if score.numel() < 2:
        return None
    low, high = torch.aminmax(score.detach().float())
    largest = float(torch.maximum(low.abs(), high.abs()))
    if float(high - low) > SAME * largest:
        return None
    return ALL_ZERO if largest == 0 else f"all their scores are {float(high):.4g}"


def undecided(
    scores: Mapping[str, Tensor], may: Mapping[str, Tensor], chosen: Mapping[str, Tensor]
) -> dict[str, str]:
    """Returns the groups of which a choice took some units and left others that have the same score.

    Args:
        scores: group → scores of its units.
        may: group → bool, the units that could be chosen.
        chosen: group → bool, the units that were.

    Returns:
        Group → why its scores do not tell its units apart.
    """
    found = {}
    for name, score in scores.items():
        open_, taken = may[name].cpu(), chosen[name].cpu()
        if bool((open_ & taken).any()) and bool((open_ & ~taken).any()):
            why = flat(score.cpu()[open_])
            if why is not None:
                found[name] = why
    return found


def tell(found: Mapping[str, str], criterion: object, *, stacklevel: int = 3) -> None:
    """Warns, once, of groups that a score does not tell apart.

    Args:
        found: group → why.
        criterion: whose score it is.
        stacklevel: of the warning; 3 is the caller of the function that calls this.
    """
    if not found:
        return
    kinds: dict[str, list[str]] = {}
    for name, why in found.items():
        kinds.setdefault(why if why in (NO_GRADIENT, ALL_ZERO) else "same", []).append(name)
    for kind, names in kinds.items():
        whys = {found[name] for name in names}
        why = whys.pop() if len(whys) == 1 else "all scores within each of them are the same"
        shown = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        warnings.warn(
            f"{_spoken(criterion)} does not tell the units of {shown} apart: {why}, so they are ranked by index; "
            f"{ADVICE.get(kind, 'choose another criterion')}, or leave them whole with protect=…",
            ScoreWarning,
            stacklevel=stacklevel,
        )


def _spoken(criterion: object) -> str:
    inner = getattr(criterion, "of", None)
    name = type(criterion).__name__
    return name if inner is None else f"{name} {_spoken(inner)}"
