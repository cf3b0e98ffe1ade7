"""Wide residual networks for CIFAR, pre-activation (Zagoruyko & Komodakis 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from halpiee.zoo.layers import initialise, scaled

__all__ = ["WideResNet", "wrn22_2"]


class PreActivationBlock(nn.Module):
    """Norm, activation, convolution, twice; the projection reads the activated input."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.shortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, c_in, H, W]`` to ``[N, c_out, H / stride, W / stride]``."""
        activated = self.relu(self.bn1(x))
        y = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        skip = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = y + skip
        return out


class WideResNet(nn.Module):
    """A 3×3 stem of 16 channels and three stages of 16, 32 and 64 times ``widen`` channels.

    Args:
        depth: layers, 6·n + 4 for n blocks per stage.
        widen: the paper's k.
        width: further factor on all channels.
        num_classes: outputs.
    """

    def __init__(self, depth: int, widen: int, *, width: float = 1, num_classes: int = 10) -> None:
        super().__init__()
        c_in = scaled(16, width)
        self.conv1 = nn.Conv2d(3, c_in, 3, padding=1, bias=False)
        blocks = []
        for stage in range(3):
            c_out = scaled(16 * 2**stage * widen, width)
            for index in range((depth - 4) // 6):
                blocks.append(PreActivationBlock(c_in, c_out, 2 if stage > 0 and index == 0 else 1))
                c_in = c_out
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(c_in)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[N, 3, H, W]`` to logits ``[N, num_classes]``."""
        x = self.relu(self.bn(self.blocks(self.conv1(x))))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def wrn22_2(width: float = 1, num_classes: int = 10) -> WideResNet:
    """Builds WRN-22-2: 1,076,912 weights, 157,730,048 MACs at 32×32."""
    return WideResNet(22, 2, width=width, num_classes=num_classes)
