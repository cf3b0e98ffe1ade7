"""What a method did, recorded as it happens: changes of the active units, steps under their masks, listeners."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from halpiee.sparsity.mask import Mask

__all__ = ["Event", "Ledger"]


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


class Ledger:
    """Events and steps of one training.

    Attributes:
        reports: the events so far.
        log: (steps, kind, active units per group) of every run of like steps, for the training FLOPs.
        listeners: called with every event and the units that are active after it.
    """

    def __init__(self) -> None:
        self.reports: list[Event] = []
        self.log: list[tuple[int, str, dict[str, int]]] = []
        self.listeners: list[Callable[[Event, Mask], None]] = []
        self._after: dict[str, Mask] = {}

    def event(self, alive: Mask, **values: Any) -> Event:
        """Writes down that ``alive`` are the active units from now on.

        Args:
            alive: the active units.
            values: the other fields of the event but ``iou`` and ``counts``.
        """
        kind = values["event"]
        previous = self._after.get(kind)
        overlap = previous.iou(alive) if previous is not None else math.nan
        self._after[kind] = alive
        event = Event(**values, iou=overlap, counts=alive.counts)
        self.reports.append(event)
        for listener in self.listeners:
            listener(event, alive)
        return event

    def step(self, kind: str, counts: dict[str, int]) -> None:
        """Counts one optimizer step under its masks."""
        if self.log and self.log[-1][1] == kind and self.log[-1][2] == counts:
            self.log[-1] = (self.log[-1][0] + 1, kind, counts)
        else:
            self.log.append((1, kind, counts))

    def state(self) -> dict[str, Any]:
        """Returns plain values and tensors."""
        return {
            "masks_after": {kind: dict(mask) for kind, mask in self._after.items()},
            "reports": [asdict(event) for event in self.reports],
            "log": [list(entry) for entry in self.log],
        }

    def load(self, state: Mapping[str, Any], *, masks: bool = True) -> None:
        """Takes over what was written; the masks only where the units are still those."""
        self.reports = [Event(**{**e, "flat": tuple(e.get("flat", ()))}) for e in state["reports"]]
        self.log = [(int(n), str(kind), dict(counts)) for n, kind, counts in state["log"]]
        if masks:
            self._after = {kind: Mask(dict(mask)) for kind, mask in state["masks_after"].items()}
