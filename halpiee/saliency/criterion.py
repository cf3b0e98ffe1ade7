"""The interface of a criterion: a score per unit from the weights and gradients of one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from halpiee.sparsity.granularity import Units

__all__ = ["Criterion", "Look"]

Look = Callable[[str], Tensor | None]
"""Tensor name → the parameter's value (or its gradient), ``None`` where there is none."""


class Criterion(Protocol):
    """Scores units; higher is more important."""

    @property
    def per_step(self) -> bool:
        """Whether it is scored on every step and averaged over a phase; otherwise it is read once at its end."""
        ...

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → float score of the unit's shape."""
        ...
