"""What a method did, written down as it happens: events, steps under their masks, and whoever listens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from halpiee.methods.event import Event
from halpiee.sparsity.mask import Mask

__all__ = ["Ledger"]


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
