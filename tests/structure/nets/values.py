"""Irregular weights and random keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def randomise(model: nn.Module, seed: int = 0) -> Any:
    """Gives every parameter and statistic an irregular value, so that nothing is equal by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return model


def random_keep(structure: Any, seed: int = 0, share: float = 0.5) -> dict[str, Tensor]:
    """Draws a keep of every prunable group with at least one unit."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in structure.prunable:
        mask = torch.rand(group.size, generator=generator) < share
        mask[torch.randint(group.size, (1,), generator=generator)] = True
        keep[group.name] = mask
    return keep
