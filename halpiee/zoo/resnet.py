"""Residual networks for small images (He et al. 2016, sections 4.1 and 4.2; Zagoruyko & Komodakis 2016).

``resnet20`` and ``resnet56`` are the CIFAR networks 16-32-64, with 1×1 projections where the shape changes;
``resnet18_modified`` and ``resnet50_cifar`` are ImageNet's with a 3×3 stem of stride 1 and no max-pool. ``wrn22_2`` is
a wide, pre-activated one.
"""

from __future__ import annotations

from torch import Tensor, nn

from halpiee.zoo.blocks import BasicBlock, Bottleneck, conv_bn, initialise, scaled

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "WideResNet",
    "resnet8",
    "resnet18_modified",
    "resnet20",
    "resnet50_cifar",
    "resnet56",
    "wrn14_8",
    "wrn14_10",
    "wrn20_8",
    "wrn22_2",
    "wrn32_2",
]


class ResNet(nn.Module):
    """A 3×3 stem, stages of residual blocks, global average pooling and one linear layer.

    Args:
        block: the residual block.
        depths: blocks per stage.
        channels: channels per stage, before the block's expansion; every stage but the first halves the size.
        width: factor on all channels.
        num_classes: outputs.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        channels: tuple[int, ...],
        *,
        width: float = 1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        c_in = scaled(channels[0], width)
        self.conv1, self.bn1 = conv_bn(3, c_in)
        self.relu = nn.ReLU()
        stages = []
        for stage, (depth, base) in enumerate(zip(depths, channels, strict=True)):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(c_in, scaled(base, width), stride))
                c_in = scaled(base, width) * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[N, 3, H, W]`` to logits ``[N, num_classes]``."""
        x = self.layers(self.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def resnet8(width: float = 1, num_classes: int = 10) -> ResNet:
    """Builds the CIFAR ResNet-8, one block a stage: the smallest of its family, for trials on a CPU."""
    return ResNet(BasicBlock, (1, 1, 1), (16, 32, 64), width=width, num_classes=num_classes)


def resnet20(width: float = 1, num_classes: int = 10) -> ResNet:
    """Builds the CIFAR ResNet-20: 272,474 parameters, 40.8 M MACs at 32×32."""
    return ResNet(BasicBlock, (3, 3, 3), (16, 32, 64), width=width, num_classes=num_classes)


def resnet56(width: float = 1, num_classes: int = 10) -> ResNet:
    """Builds the CIFAR ResNet-56: 855,770 parameters, 125.8 M MACs at 32×32."""
    return ResNet(BasicBlock, (9, 9, 9), (16, 32, 64), width=width, num_classes=num_classes)


def resnet18_modified(width: float = 1, num_classes: int = 200) -> ResNet:
    """Builds ResNet-18 with a 3×3 stem of stride 1 and no max-pool (TinyImageNet, 64×64)."""
    return ResNet(BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), width=width, num_classes=num_classes)


def resnet50_cifar(width: float = 1, num_classes: int = 10) -> ResNet:
    """Builds ResNet-50 with a 3×3 stem of stride 1 and no max-pool (CIFAR, 32×32)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), width=width, num_classes=num_classes)


def wrn14_8(width: float = 1, num_classes: int = 10) -> ResNet:
    """Builds WRN-14-8 as Frankle et al. 2021 name it: the CIFAR ResNet-14 with eight times the channels.

    Depth counts 6·n + 2 layers and the blocks are those of He et al. 2016, the stem widened too; Zagoruyko & Komodakis
    2016 would call the depth 16.
    """
    return wide(2, 8, width, num_classes)


def wrn14_10(width: float = 1, num_classes: int = 10) -> ResNet:
    """Builds WRN-14-10; see ``wrn14_8``."""
    return wide(2, 10, width, num_classes)


def wrn20_8(width: float = 1, num_classes: int = 10) -> ResNet:
    """Builds WRN-20-8; see ``wrn14_8``."""
    return wide(3, 8, width, num_classes)


def wrn32_2(width: float = 1, num_classes: int = 10) -> ResNet:
    """Builds WRN-32-2; see ``wrn14_8``."""
    return wide(5, 2, width, num_classes)


def wide(blocks: int, widen: int, width: float, num_classes: int) -> ResNet:
    """Returns a CIFAR ResNet of 6·blocks + 2 layers, every layer ``widen`` times as wide."""
    channels = (16 * widen, 32 * widen, 64 * widen)
    return ResNet(BasicBlock, (blocks,) * 3, channels, width=width, num_classes=num_classes)


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
