"""What a history of masks says: overlap, survival of what was grown, exploration, densities, distance, FLOPs over time.

Overlap and survival are those of the IEE paper (Fig. 5): intersection over union of consecutive masks, and the share of
grown units that the next prune leaves. The exploration rate R_s is ITOP's (Liu et al. 2021, Sec. 3): the share of all
units that were ever active.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from halpiee.analysis.flops import forward_share
from halpiee.analysis.history import History
from halpiee.sparsity.mask import Mask

__all__ = ["densities", "distance", "distances", "exploration", "flops", "overlaps", "survival_rates"]


def overlaps(history: History, event: str = "grow") -> list[tuple[int, float]]:
    """Returns (step, IoU with the mask after the previous event of that name)."""
    found: list[tuple[int, float]] = []
    before: Mask | None = None
    for step, mask in history.after(event):
        if before is not None:
            found.append((step, before.iou(mask)))
        before = mask
    return found


def survival_rates(history: History, *, regrown: bool = True) -> list[tuple[int, float]]:
    """Returns (step of a grow, share of what it grew that the next prune or drop leaves).

    A grow that nothing was pruned after, or that grew nothing, is left out.

    Args:
        history: of one training.
        regrown: whether units that the prune right before had removed count as grown.
    """
    found: list[tuple[int, float]] = []
    entries = history.entries
    for i, entry in enumerate(entries):
        if entry.event != "grow" or i == 0:
            continue
        later = next((j for j in range(i + 1, len(entries)) if entries[j].event in ("prune", "drop")), None)
        if later is None:
            continue
        grown = history.mask(i) & ~history.mask(i - 1)
        if not regrown and i >= 2:
            grown = grown & ~history.mask(i - 2)
        total = sum(grown.counts.values())
        if total:
            found.append((entry.step, sum((grown & history.mask(later)).counts.values()) / total))
    return found


def exploration(history: History) -> float:
    """Returns R_s: the share of all units that were active after some event."""
    ever = history.mask(0)
    for index in range(1, len(history)):
        ever = ever | history.mask(index)
    return ever.density


def densities(mask: Mask) -> dict[str, float]:
    """Returns layer → share of its units that is active."""
    return {name: float(units.float().mean()) for name, units in mask.items()}


def distance(first: Mask, second: Mask) -> float:
    """Returns the normalised Hamming distance of two masks: the share of units that only one of them has."""
    total = sum(mask.numel() for mask in first.values())
    either, both = (first | second).counts, (first & second).counts
    return (sum(either.values()) - sum(both.values())) / max(total, 1)


def distances(history: History, steps: Sequence[int]) -> list[tuple[int, float]]:
    """Returns (step, distance to the mask at the step before) over given steps: the ends of epochs, say."""
    at = [_active(history, step) for step in steps]
    return [(steps[i], distance(at[i - 1], at[i])) for i in range(1, len(steps))]


def flops(history: History, macs: Mapping[str, int]) -> list[tuple[int, float]]:
    """Returns (step, the forward's MACs over the dense one's) after every event.

    Args:
        history: of single weights.
        macs: layer → multiply-accumulates of its dense forward; a layer is named as its module or its weight.
    """
    by_layer = {name.removesuffix(".weight"): n for name, n in macs.items()}
    found = []
    for index, entry in enumerate(history.entries):
        shares = {n.removesuffix(".weight"): d for n, d in densities(history.mask(index)).items()}
        found.append((entry.step, forward_share(by_layer, shares)))
    return found


def _active(history: History, step: int) -> Mask:
    """Returns the units that were active once ``step`` optimizer steps were done."""
    index = 0
    for i, entry in enumerate(history.entries):
        if entry.step <= step:
            index = i
    return history.mask(index)
