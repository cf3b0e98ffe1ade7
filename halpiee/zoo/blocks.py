"""What the families share: initialisation, scaled widths, conv + batch norm, residual blocks.

The blocks are those of He et al. 2016: basic (figure 5, left) and bottleneck (figure 5, right).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["BasicBlock", "Bottleneck", "conv_bn", "draw", "initialise", "scaled"]


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


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a skip."""

    expansion = 1

    def __init__(self, c_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(c_in, channels, 3, stride)
        self.conv2, self.bn2 = conv_bn(channels, channels)
        self.relu = nn.ReLU()
        self.shortcut = shortcut(c_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, c_in, H, W]`` to ``[N, channels, H / stride, W / stride]``."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """A 3×3 convolution between two 1×1 ones, four times as wide outside, and a skip."""

    expansion = 4

    def __init__(self, c_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(c_in, channels, 1)
        self.conv2, self.bn2 = conv_bn(channels, channels, 3, stride)
        self.conv3, self.bn3 = conv_bn(channels, channels * self.expansion, 1)
        self.relu = nn.ReLU()
        self.shortcut = shortcut(c_in, channels * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, c_in, H, W]`` to ``[N, 4 · channels, H / stride, W / stride]``."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


def shortcut(c_in: int, c_out: int, stride: int) -> nn.Module:
    """Returns the identity, or a 1×1 projection with batch norm where the shape changes (option B)."""
    if c_in == c_out and stride == 1:
        return nn.Identity()
    return nn.Sequential(*conv_bn(c_in, c_out, 1, stride))
