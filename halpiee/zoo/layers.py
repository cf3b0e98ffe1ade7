"""What the families share: initialisation, scaled widths, conv + batch norm."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["conv_bn", "draw", "initialise", "scaled"]


def scaled(channels: int, width: float) -> int:
    """Returns ``channels * width``, rounded, at least 1."""
    return max(1, round(channels * width))


def conv_bn(
    c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Returns a convolution without bias that keeps the size at stride 1, and the batch norm behind it."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(c_out)


def initialise(model: nn.Module) -> None:
    """Sets weights to Kaiming normal over fan in (He et al. 2015, eq. 10), norms to 1 and 0, biases to 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def draw(model: nn.Module, seed: int) -> None:
    """Draws another sample of the same initialisation; running statistics of norms start anew.

    Args:
        model: a network of this package, changed in place.
        seed: the same seed draws the same weights; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initialise(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
