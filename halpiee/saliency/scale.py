"""``|σ·Δσ|`` on the scale σ of the batch norm behind a filter (Lubana & Dick 2021, Fig. 2): a stand-in for ``|θᵀg|``.

Δσ is the change of σ since an earlier state, or, at one step of plain SGD, its gradient up to the learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from halpiee.errors import UsageError
from halpiee.saliency.criterion import Look
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.granularity import Units

__all__ = ["ScaleChange"]


@dataclass(frozen=True)
class ScaleChange:
    """``|σ·(σ − σ_before)|``, read once; without an earlier state ``|σ·g_σ|`` on every step.

    Attributes:
        before: parameter name → value at the earlier state, as ``state_dict`` holds it; clone it.
    """

    before: Mapping[str, Tensor] | None = None

    @property
    def per_step(self) -> bool:
        """Whether gradients are read."""
        return self.before is None

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns filter name → score ``[C_out]``.

        Raises:
            UsageError: units that are not filters, or a filter without a batch norm.
        """
        if not isinstance(units, Filters):
            raise UsageError(
                f"|σ·Δσ| was asked of {type(units).__name__}; it lives on the batch norm behind a filter: "
                "use units='filters', and taylor for coupled channels"
            )
        if bare := [path for path in units.sizes if path not in units.norms]:
            raise UsageError(
                f"|σ·Δσ| was asked of {bare[0]!r} (and {len(bare) - 1} more), which no batch norm follows; "
                "pin those convolutions, or use loss or l1"
            )
        before = self.before

        def change(name: str) -> Tensor | None:
            if before is None:
                return gradient(name)
            now = value(name)
            return None if now is None or name not in before else now.detach() - before[name].to(now.device)

        scale, delta = units.scales(value), units.scales(change)
        return {path: (scale[path] * d).abs() for path, d in delta.items()}
