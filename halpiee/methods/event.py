"""One change of the active units, as it is recorded."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Event"]


@dataclass(frozen=True)
class Event:
    """One change of the active units.

    Attributes:
        step: optimizer steps done before it.
        event: ``init``, ``prune``, ``drop`` (the first half of an exchange), ``grow``,
            ``load`` (the mask of a saved state) or ``shrink``.
        budget: Ψ, in the pool's unit (µs, or units kept).
        used: R of the active units after it.
        omega: Ω, what this cycle exchanges, in the same unit.
        gap: certified relative gap of the selection.
        slack: capacity minus used; the capacity is Ψ − Ω after a prune, Ψ otherwise.
        next_step: smallest extra cost of any next allowed size.
        iou: overlap with the units that were active after the previous event of the same kind.
        skipped: steps of the phase whose scores were not finite and did not count.
        counts: active units per group.
        flat: groups that were cut into by scores that do not tell their units apart.
    """

    step: int
    event: str
    budget: float
    used: float
    omega: float
    gap: float
    slack: float
    next_step: float
    iou: float
    skipped: int
    counts: dict[str, int]
    flat: tuple[str, ...] = ()
