"""GraSP: ``w·(H g)``, the change of gradient flow when a weight stays (Wang et al. 2020, Eq. 8, sign turned).

Removing weights with the highest ``−w·(H g)`` keeps the gradient norm; so the lowest ``w·(H g)`` go first. Its absolute
value is "magnitude GraSP" (Frankle et al. 2021). On filters ``θᵀHg`` (Lubana & Dick 2021) is the sum over a filter.
H and g are those of the loss on ``logits / T``; T = 200 in the released code, 1 is the plain product. Batch norms are
in training mode for pruning at initialisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from halpiee.errors import UsageError
from halpiee.saliency.criterion import (
    Batches,
    Look,
    LossFn,
    NormMode,
    Passes,
    elementwise,
    hessian_gradients,
    norm_mode,
)
from halpiee.saliency.registry import criterion
from halpiee.sparsity.granularity import Units


@criterion("grasp", paper="Wang et al. 2020, arXiv 2002.07376")
@criterion("grasp-magnitude", paper="Frankle et al. 2021, arXiv 2009.08576", options={"magnitude": True})
@criterion("grasp-plain", paper="Wang et al. 2020, arXiv 2002.07376", options={"temperature": 1.0})
@dataclass(frozen=True)
class GraSP:
    """``Σ w·(H g)`` over a unit's scoring elements; needs batches, and cannot be read off a training step.

    Attributes:
        temperature: T.
        magnitude: its absolute value: magnitude GraSP.
        norms: mode of the batch norms while scoring.
        pooled: g is the mean over all batches, not that of each.
        halves: each batch is split in two, as the released code does.
        redraw_linear: a seed to draw linear weights from Xavier's normal with while scoring, as the released code
            does; ``None`` scores the weights as they are.
    """

    temperature: float = 200.0
    magnitude: bool = False
    norms: NormMode = "train"
    pooled: bool = False
    halves: bool = False
    redraw_linear: int | None = None
    per_step: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UsageError(f"a temperature of {self.temperature} was asked of GraSP; give a positive one")

    @classmethod
    def released(cls, seed: int = 0) -> GraSP:
        """Returns the conventions of the authors' code: T = 200, halves, g over both, Xavier for linear layers."""
        return cls(pooled=True, halves=True, redraw_linear=seed)

    def probe(self, model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
        """Yields H·g of each batch (or half)."""
        if self.halves:
            batches = (half for x, y in batches for half in zip(x.chunk(2), y.chunk(2), strict=True))
        with norm_mode(model, self.norms), _linear_redrawn(model, self.redraw_linear):
            yield from hessian_gradients(
                model, batches, loss_fn, temperature=self.temperature, pooled=self.pooled
            )

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        found = units.reduce(elementwise(torch.mul, value, gradient))
        if not found:
            raise UsageError(
                "GraSP was asked for without batches: its Hessian-gradient product cannot be read off a training "
                "step; score over batches, or use taylor or magnitude"
            )
        return {name: total.abs() if self.magnitude else total for name, total in found.items()}


@contextmanager
def _linear_redrawn(model: nn.Module, seed: int | None) -> Iterator[None]:
    """Inside, the weights of linear layers are redrawn; afterwards they are restored, bit for bit."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)] if seed is not None else []
    before = [layer.weight.detach().clone() for layer in layers]
    generator = torch.Generator().manual_seed(seed or 0)
    try:
        with torch.no_grad():
            for layer in layers:
                std = (2 / (layer.in_features + layer.out_features)) ** 0.5
                drawn = torch.randn(layer.weight.shape, generator=generator) * std
                layer.weight.copy_(drawn)
        yield
    finally:
        with torch.no_grad():
            for layer, value in zip(layers, before, strict=True):
                layer.weight.copy_(value)
