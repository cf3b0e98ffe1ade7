"""Scores that are known already: from a file, another training, or another program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from halpiee.errors import UsageError
from halpiee.saliency.criterion import Look
from halpiee.sparsity.granularity import Units

__all__ = ["Given"]


@dataclass(frozen=True, eq=False)
class Given:
    """The scores as they are given. Read once.

    Attributes:
        scores: unit name → tensor of the unit's shape.
    """

    scores: Mapping[str, Tensor]
    per_step = False

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → float32 score of the unit's shape.

        Raises:
            UsageError: no scores of a unit, or of another shape.
        """
        for name, size in units.sizes.items():
            if name not in self.scores or tuple(self.scores[name].shape) != size:
                found = tuple(self.scores[name].shape) if name in self.scores else "none"
                raise UsageError(
                    f"scores of {name!r} of shape {size} were asked, and {found} are given; "
                    "give those of this very network and these units"
                )
        return {name: self.scores[name].float() for name in units.sizes}
