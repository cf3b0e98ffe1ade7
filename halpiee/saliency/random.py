"""Random importance: the baseline that every criterion has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from halpiee.saliency.criterion import Look
from halpiee.sparsity.granularity import Units

__all__ = ["Random"]


@dataclass(frozen=True)
class Random:
    """Uniform in [0, 1), the same for the same seed."""

    seed: int = 0
    per_step: bool = False

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score of the unit's shape."""
        generator = torch.Generator().manual_seed(self.seed)
        return {name: torch.rand(size, generator=generator) for name, size in units.sizes.items()}
