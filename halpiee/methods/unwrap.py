"""The model inside its wrappers."""

from __future__ import annotations

from torch import nn

__all__ = ["bare"]


def bare(model: nn.Module) -> nn.Module:
    """Returns the model inside DDP, DataParallel and torch.compile wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
