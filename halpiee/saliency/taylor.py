"""First-order Taylor importance: how much the loss changes when a unit is removed.

Weights: ``|w·g|`` (Molchanov et al. 2017). Coupled channels: ``|Σ_l (γ_l·g_γl + β_l·g_βl)|``, the sum over the
coupled layers taken before the absolute value (Molchanov et al. 2019, Eq. 8; HALP, Sec. 3). Filters: the same on the
norm behind each. Units without a norm: ``|Σ w·g|`` over the weights and biases that produce them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from halpiee.saliency.cancelled import settled
from halpiee.saliency.criterion import Look
from halpiee.sparsity.granularity import Units

__all__ = ["Taylor"]


@dataclass(frozen=True)
class Taylor:
    """``|Σ w·g|`` over a unit's scoring elements, on every step."""

    per_step: bool = True

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score of the unit's shape; units without any gradient are missing."""

        def product(name: str) -> Tensor | None:
            w, g = value(name), gradient(name)
            return None if w is None or g is None else w.detach() * g

        gate = getattr(units, "gate", units.reduce)
        return {name: total.abs() for name, total in settled(gate, product).items()}
