"""Batch norms while inactive units are explored: what the active ones normalise by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["running_norm"]


def running_norm(mean: Tensor, variance: Tensor | None, active: Tensor) -> Callable[..., Tensor | None]:
    """Returns a forward hook of a batch norm: active channels come out normalised by the statistics given here.

    Args:
        mean: float ``[C]``; copied, since a forward in train mode moves it.
        variance: float ``[C]``; likewise.
        active: bool ``[C]``.
    """
    held_mean = mean.detach().clone()
    held_variance = torch.ones_like(held_mean) if variance is None else variance.detach().clone()

    def hook(
        module: nn.modules.batchnorm._BatchNorm, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        if not module.training:
            return None
        x = inputs[0]
        fixed = nn.functional.batch_norm(
            x, held_mean, held_variance, module.weight, module.bias, False, 0.0, module.eps
        )
        channel = active.to(x.device).view(1, -1, *[1] * (x.dim() - 2))
        return torch.where(channel, fixed, output)

    return hook
