"""SNIP: ``|w·g|``, the loss's sensitivity to a gate on each connection (Lee et al. 2019, Eq. 4).

The gate of a whole unit has the derivative ``Σ w·g``, so a unit's score is its absolute value. The loss gradient is
that of ten examples a class with batch norms in training mode (Frankle et al. 2021; measured by neuron collapse,
see ``halpiee.analysis.collapse``); only weights are scored, and nothing is drawn again after pruning.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from halpiee.saliency.criterion import Batches, Look, LossFn, Passes
from halpiee.saliency.probe import NormMode, loss_gradients, norm_mode
from halpiee.saliency.taylor import Taylor
from halpiee.sparsity.granularity import Units

__all__ = ["SNIP"]


@dataclass(frozen=True)
class SNIP:
    """``|Σ w·g|`` over a unit's scoring elements.

    Attributes:
        norms: mode of the batch norms while scoring.
    """

    norms: NormMode = "train"
    per_step: bool = True

    def probe(self, model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
        """Yields the loss gradients of each batch."""
        with norm_mode(model, self.norms):
            yield from loss_gradients(model, batches, loss_fn)

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score of the unit's shape; units without any gradient are missing."""
        return Taylor()(units, value, gradient)
