"""Gradient importance: ``|g|`` of a weight (the growth score of RigL, Evci et al. 2020), ``Σ|g|`` over a filter.

On a filter that is zeroed while γ and β stay, ``Σ|g|`` is the regrowth score of structured GraNet (Liu et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from halpiee.saliency.criterion import Look
from halpiee.sparsity.granularity import Units

__all__ = ["Gradient"]


@dataclass(frozen=True)
class Gradient:
    """Taken on every step, batch norms in the mode the model is in."""

    per_step: bool = True

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score of the unit's shape; units without any gradient are missing."""

        def size(name: str) -> Tensor | None:
            g = gradient(name)
            return None if g is None else g.detach().abs()

        return units.reduce(size)
