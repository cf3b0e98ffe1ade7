"""Other values for the weights that hide a network from its own outputs, so that a comparison of outputs can tell.

A head that begins at zero (torchvision's ViT), a branch whose last norm does (``zero_init_residual``) or is scaled by
1e-6 (LayerScale) lets nothing through: two networks that differ before it have equal outputs.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

__all__ = ["redraw", "silent"]

SILENT = 1e-4
"""Largest weight of a parameter that lets next to nothing through: LayerScale begins at 1e-4 … 1e-6."""


def silent(model: nn.Module) -> list[str]:
    """Returns the names of the parameters, other than biases, that let next to nothing through."""
    return [
        name
        for name, p in model.named_parameters()
        if p.is_floating_point()
        and p.numel()
        and not name.endswith("bias")
        and float(p.detach().abs().max()) <= SILENT
    ]


def redraw(model: nn.Module, names: Collection[str], seed: int) -> dict[str, Tensor]:
    """Draws parameters anew, in place: 0.5 … 1.5 for a scale, normal of the size √(1 / inputs) for a weight.

    Args:
        model: the model.
        names: names of the parameters.
        seed: of the values.

    Returns:
        Name → new value.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name not in names or not p.is_floating_point():
                continue
            if p.dim() < 2 or p.numel() == max(p.shape):
                value = torch.rand(p.shape, generator=generator) + 0.5
            else:
                value = torch.randn(p.shape, generator=generator) * (p.shape[0] / p.numel()) ** 0.5
            p.copy_(value)
            drawn[name] = p.detach().clone()
    return drawn
