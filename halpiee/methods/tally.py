"""Scores added up over a phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Tally"]


@dataclass
class Tally:
    """Sums of per-step scores over a phase.

    Attributes:
        total: unit name → sum of scores.
        steps: steps added.
        skipped: steps left out because a score was not finite.
    """

    total: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    skipped: int = 0

    def add(self, scores: Mapping[str, Tensor]) -> None:
        """Adds one step's scores; a step with any score that is not finite is left out whole, as HALP does."""
        flat = list(scores.values())
        if not flat or not bool(torch.stack([torch.isfinite(s).all() for s in flat]).all()):
            self.skipped += 1
            return
        for name, score in scores.items():
            held = self.total.get(name)
            self.total[name] = score.clone() if held is None else held + score
        self.steps += 1

    def mean(self) -> dict[str, Tensor]:
        """Returns unit name → mean score, on the CPU."""
        return {name: (total / max(self.steps, 1)).cpu() for name, total in self.total.items()}

    def state(self) -> dict[str, Any]:
        """Returns plain values and tensors."""
        return {"total": dict(self.total), "steps": self.steps, "skipped": self.skipped}
