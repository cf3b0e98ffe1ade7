"""Norms of a unit's weights: ``Σ|θ|`` (Li et al. 2017) or ``√Σθ²``, "magnitude" of Lubana & Dick 2021."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from halpiee.saliency.criterion import Look
from halpiee.sparsity.granularity import Units

__all__ = ["Norm"]


@dataclass(frozen=True)
class Norm:
    """``‖θ‖_p`` over a unit's scoring elements, read once.

    Attributes:
        p: 1 or 2.
    """

    p: Literal[1, 2] = 1
    per_step: bool = False

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score of the unit's shape."""

        def power(name: str) -> Tensor | None:
            w = value(name)
            return None if w is None else w.detach().abs().pow(self.p)

        return {name: total.pow(1 / self.p) for name, total in units.reduce(power).items()}
