"""Batch norms while inactive units are explored: what the active ones normalise by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["RunningNorms"]


class RunningNorms:
    """Makes active channels use the running statistics they had when a phase began; off until it is told."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def on(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        """Begins, with the statistics as they are now.

        Args:
            model: whose batch norms are meant.
            masks: tensor name → active elements; a batch norm without a mask is active whole.
        """
        for path, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                mask = masks.get(f"{path}.running_mean")
                active = torch.ones_like(module.running_mean, dtype=torch.bool) if mask is None else mask
                hook = running_norm(module.running_mean, module.running_var, active)
                self._handles.append(module.register_forward_hook(hook))

    def off(self) -> None:
        """Ends."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


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
