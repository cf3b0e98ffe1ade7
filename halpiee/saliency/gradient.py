"""First-order scores: what the loss changes by when a unit is removed.

Taylor: ``|w·g|`` of a weight (Molchanov et al. 2017); of coupled channels ``|Σ_l (γ_l·g_γl + β_l·g_βl)|``, summed over
the coupled layers before the absolute value (Molchanov et al. 2019, Eq. 8; HALP, Sec. 3); of filters the same on the
norm behind each; of units without a norm ``|Σ w·g|`` over the weights and biases that produce them. SNIP (Lee et al.
2019, Eq. 4) is the same number at initialisation. Loss preservation (Lubana & Dick 2021, Eqs. 3, 8): ``|θᵀg|`` of a
filter, and ``‖θ‖·|θᵀg|``. Gradient: ``|g|`` of a weight (the growth score of RigL, Evci et al. 2020), ``Σ|g|`` over a
filter: the regrowth score of structured GraNet (Liu et al. 2021), on a filter that is zeroed while γ and β stay.

A batch norm in training mode undoes any scale of the layer before it, so ``Σ w·g`` over the weights of each of that
layer's units is zero, up to rounding and the norm's ε. A ranking by such remainders is chance. They become exact zeros,
which ``halpiee.score`` reports. Score in ``InMode(…, "eval")`` to avoid them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from halpiee.saliency.criterion import (
    Batches,
    Look,
    LossFn,
    NormMode,
    Passes,
    elementwise,
    loss_gradients,
    norm_mode,
)
from halpiee.saliency.magnitude import Norm
from halpiee.saliency.registry import criterion
from halpiee.sparsity.granularity import Units


@criterion("gradient", paper="Evci et al. 2020, arXiv 1911.11134")
@dataclass(frozen=True)
class Gradient:
    """``|g|`` of a weight, ``Σ|g|`` over other units, on every step; batch norms run in the mode the model is in."""

    per_step: bool = True

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        return units.reduce(elementwise(torch.abs, gradient))


@criterion("taylor", paper="Molchanov et al. 2019, arXiv 1906.10771")
@dataclass(frozen=True)
class Taylor:
    """``|Σ w·g|`` over a unit's scoring elements, on every step."""

    per_step: bool = True

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        product = elementwise(torch.mul, value, gradient)
        gate = getattr(units, "gate", units.reduce)
        return {name: total.abs() for name, total in exact_sums(gate, product).items()}


@criterion("snip", paper="Lee et al. 2019, arXiv 1810.02340")
@dataclass(frozen=True)
class SNIP:
    """``|Σ w·g|``: the loss's sensitivity to a gate on each unit (Lee et al. 2019, Eq. 4).

    Batch norms are in training mode, over ten examples a class (Frankle et al. 2021; measured by neuron collapse, see
    ``halpiee.analysis.measures``).

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
        """Returns unit name → score."""
        return Taylor()(units, value, gradient)


@criterion("loss", paper="Lubana & Dick 2021, arXiv 2009.11839")
@criterion("loss-magnitude", paper="Lubana & Dick 2021, arXiv 2009.11839", options={"magnitude": True})
@dataclass(frozen=True)
class LossPreservation:
    """``|θᵀg|``, or ``‖θ‖₂·|θᵀg|``, over a unit's scoring elements.

    Attributes:
        magnitude: whether the norm multiplies it.
        signed: whether the sign of θᵀg stays: what the correlation with θᵀHg is taken of.
        elementwise: as the released code computes it: ``Σ|θ_i g_i|``, with the magnitude ``Σ|θ_i² g_i|``.
    """

    magnitude: bool = False
    elementwise: bool = False
    signed: bool = False
    per_step: bool = True

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        product = elementwise(torch.mul, value, gradient)
        if self.elementwise:
            power = 2 if self.magnitude else 1
            product = elementwise(lambda w, g: (w.pow(power) * g).abs(), value, gradient)
        total = exact_sums(units.reduce, product)
        found = dict(total) if self.signed else {name: t.abs() for name, t in total.items()}
        if self.magnitude and not self.elementwise:
            size = Norm(2)(units, value, gradient)
            found = {name: size[name] * total for name, total in found.items()}
        return found


REST = 1e-3
"""A sum of products below this share of the sum of their sizes, for *every* unit of a group, is rounding.

Rounding leaves 1e-6 of it in 32 bits, the ε of a norm up to about 1e-4 at the variances of an initialisation. The
share of one unit of n independent products falls below r with a probability of about r·√n, so a group of a few units
passes by chance with less than one in a thousand.
"""


def exact_sums(reduce: Callable[[Look], dict[str, Tensor]], product: Look) -> dict[str, Tensor]:
    """Returns the sums over units of an element-wise product; exactly zero in a group where all of them cancel out."""
    sizes = reduce(elementwise(torch.abs, product))
    return {
        name: torch.where((total.abs() <= REST * sizes[name]).all(), total * 0, total)
        for name, total in reduce(product).items()
    }
