"""Magnitude importance: ``|w|`` of a weight, ``Σ|w|`` over the scoring elements of a channel (Li et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from halpiee.saliency.criterion import Look
from halpiee.sparsity.granularity import Units

__all__ = ["Magnitude"]


@dataclass(frozen=True)
class Magnitude:
    """Read once, when it is asked for."""

    per_step: bool = False

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score of the unit's shape."""

        def size(name: str) -> Tensor | None:
            w = value(name)
            return None if w is None else w.detach().abs()

        return units.reduce(size)
