"""Gradient-flow measures of filters: loss preservation, alone and times the magnitude (Lubana & Dick 2021, Eqs. 3, 8).

``|θᵀg|`` is the first-order change of the loss when the filter goes; ``‖θ‖·|θᵀg|`` prefers, among filters of the same
change, the large ones. g is that of the batches given, batch norms in the mode the model is in (the paper's: eval). One
in training mode undoes any scale of the filter before it, so there θᵀg is zero: score in ``InMode(…, "eval")``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from halpiee.saliency.cancelled import settled
from halpiee.saliency.criterion import Look
from halpiee.saliency.norm import Norm
from halpiee.sparsity.granularity import Units

__all__ = ["LossPreservation"]


@dataclass(frozen=True)
class LossPreservation:
    """``|θᵀg|``, or ``‖θ‖₂·|θᵀg|``, over a unit's scoring elements.

    Attributes:
        magnitude: whether the norm multiplies it.
        elementwise: as the released code computes it: ``Σ|θ_i g_i|``, with the magnitude ``Σ|θ_i² g_i|``.
    """

    magnitude: bool = False
    elementwise: bool = False
    per_step: bool = True

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score of the unit's shape; units without any gradient are missing."""

        def product(name: str) -> Tensor | None:
            w, g = value(name), gradient(name)
            if w is None or g is None:
                return None
            if not self.elementwise:
                return w.detach() * g
            return (w.detach().pow(2 if self.magnitude else 1) * g).abs()

        found = {name: total.abs() for name, total in settled(units.reduce, product).items()}
        if self.magnitude and not self.elementwise:
            size = Norm(2)(units, value, gradient)
            found = {name: size[name] * total for name, total in found.items()}
        return found
