"""Scores without gradients: the size of weights, chance, scores that are known already, the change of norms' scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from halpiee.errors import UsageError
from halpiee.saliency.criterion import Look, elementwise
from halpiee.saliency.registry import criterion
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.granularity import Units


@criterion("magnitude", paper="Li et al. 2017, arXiv 1608.08710")
@dataclass(frozen=True)
class Magnitude:
    """``|w|`` of a weight, ``Σ|w|`` over the scoring elements of a channel; read once."""

    per_step: bool = False

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        return units.reduce(elementwise(torch.abs, value))


@criterion("l1", paper="Li et al. 2017, arXiv 1608.08710", options={"p": 1})
@criterion("l2", paper="Lubana & Dick 2021, arXiv 2009.11839", options={"p": 2})
@dataclass(frozen=True)
class Norm:
    """``‖θ‖_p``, p = 1 or 2, over a unit's scoring elements; read once.

    ``Σ|θ|`` (Li et al. 2017) or ``√Σθ²``, "magnitude" of Lubana & Dick 2021.
    """

    p: Literal[1, 2] = 1
    per_step: bool = False

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        power = elementwise(lambda w: w.abs().pow(self.p), value)
        return {name: total.pow(1 / self.p) for name, total in units.reduce(power).items()}


@criterion("random", invertible=False)
@dataclass(frozen=True)
class Random:
    """Uniform in [0, 1), the same for the same seed: the baseline that every criterion has to beat."""

    seed: int = 0
    per_step: bool = False

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        generator = torch.Generator().manual_seed(self.seed)
        return {name: torch.rand(size, generator=generator) for name, size in units.sizes.items()}


@dataclass(frozen=True, eq=False)
class Given:
    """The scores as they are given, from a file, another training or another program; read once."""

    scores: Mapping[str, Tensor]  # unit name → tensor of the unit's shape
    per_step = False

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        for name, size in units.sizes.items():
            if name not in self.scores or tuple(self.scores[name].shape) != size:
                found = tuple(self.scores[name].shape) if name in self.scores else "none"
                raise UsageError(
                    f"scores of {name!r} of shape {size} were asked, and {found} are given; "
                    "give those of this very network and these units"
                )
        return {name: self.scores[name].float() for name in units.sizes}


@criterion("scale-change", paper="Lubana & Dick 2021, arXiv 2009.11839", units=("filters",))
@dataclass(frozen=True)
class ScaleChange:
    """``|σ·Δσ|`` on the scale σ of the batch norm behind a filter (Lubana & Dick 2021, Fig. 2), in place of ``|θᵀg|``.

    Δσ is the change of σ since the earlier state ``before`` (parameter name → value, as ``state_dict`` holds it; clone
    it), which is read once. Without one it is the gradient of σ at every step: the same, at a step of plain SGD, up to
    the learning rate.
    """

    before: Mapping[str, Tensor] | None = None

    @property
    def per_step(self) -> bool:
        """Whether gradients are read."""
        return self.before is None

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
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
        change = gradient
        if self.before is not None:
            change = elementwise(lambda now, then: now - then.to(now.device), value, self.before.get)
        scale, delta = units.scales(value), units.scales(change)
        return {path: (scale[path] * d).abs() for path, d in delta.items()}
