"""The residual blocks of He et al. 2016: basic (figure 5, left) and bottleneck (figure 5, right)."""

from __future__ import annotations

from torch import Tensor, nn

from halpiee.zoo.layers import conv_bn

__all__ = ["BasicBlock", "Bottleneck"]


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
