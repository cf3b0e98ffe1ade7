"""The networks of the papers: MobileNet v1, VGG and residual networks for small images, drawn by Kaiming.

MobileNet v1: Howard et al. 2017, table 1. VGG (Simonyan & Zisserman 2015) has a batch norm after each convolution and
one linear layer. Residual networks: He et al. 2016, sections 4.1 and 4.2, and, pre-activated and wide, Zagoruyko &
Komodakis 2016. ``resnet20`` and ``resnet56`` are the CIFAR networks 16-32-64, with 1×1 projections where the shape
changes; ``resnet18_modified`` and ``resnet50_cifar`` are ImageNet's with a 3×3 stem of stride 1 and no max-pool.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


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

    The same seed draws the same weights; the global generator is left as it was.
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


BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Output channels and stride of each separable convolution."""


class MobileNetV1(nn.Module):
    """A 3×3 stem, 13 separable convolutions, global average pooling and one linear layer.

    The stem's stride is 2 for ImageNet, 1 for CIFAR; ``width``, the paper's α, is a factor on all channels.
    """

    def __init__(self, stem_stride: int, *, width: float = 1, num_classes: int = 1000) -> None:
        super().__init__()
        c_in = scaled(32, width)
        layers: list[nn.Module] = [*conv_bn(3, c_in, 3, stem_stride), nn.ReLU()]
        for base, stride in BLOCKS:
            c_out = scaled(base, width)
            layers += [*conv_bn(c_in, c_in, 3, stride, groups=c_in), nn.ReLU()]
            layers += [*conv_bn(c_in, c_out, 1), nn.ReLU()]
            c_in = c_out
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[N, 3, H, W]`` to logits ``[N, num_classes]``."""
        logits: Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return logits


def mobilenet_v1(width: float = 1, num_classes: int = 1000) -> MobileNetV1:
    """Builds MobileNet v1: 4,231,976 parameters, 568.7 M MACs at 224×224."""
    return MobileNetV1(2, width=width, num_classes=num_classes)


def mobilenet_v1_cifar(width: float = 1, num_classes: int = 10) -> MobileNetV1:
    """Builds MobileNet v1 with a stem of stride 1 (CIFAR, 32×32)."""
    return MobileNetV1(1, width=width, num_classes=num_classes)


class VGG(nn.Module):
    """Five stages of 3×3 convolutions with 2×2 max-pools between, global pooling, one linear layer.

    Args:
        depths: convolutions per stage; the stages have 64, 128, 256, 512 and 512 channels.
        hidden: channels of further linear layers before the last, a ReLU behind each.
        width: factor on all channels.
        num_classes: outputs.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        *,
        hidden: tuple[int, ...] = (),
        width: float = 1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 3
        for stage, (depth, base) in enumerate(zip(depths, (64, 128, 256, 512, 512), strict=True)):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                layers += [*conv_bn(c_in, scaled(base, width)), nn.ReLU()]
                c_in = scaled(base, width)
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        head: list[nn.Module] = []
        for base in hidden:
            head += [nn.Linear(c_in, scaled(base, width)), nn.ReLU()]
            c_in = scaled(base, width)
        last = nn.Linear(c_in, num_classes)
        self.classifier = nn.Sequential(*head, last) if head else last
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[N, 3, H, W]`` (H, W ≥ 16) to logits ``[N, num_classes]``."""
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits


def vgg11_bn(width: float = 1, num_classes: int = 10) -> VGG:
    """Builds the CIFAR VGG-11: eight convolutions and one linear layer."""
    return VGG((1, 1, 2, 2, 2), width=width, num_classes=num_classes)


def vgg2_16_bn(width: float = 1, num_classes: int = 10) -> VGG:
    """Builds the CIFAR VGG-16 with two further linear layers of 512, as Lee et al. 2019 (SNIP) have VGG-D.

    Frankle et al. 2021 name it VGG2-16; that it is this network is our reading.
    """
    return VGG((2, 2, 3, 3, 3), hidden=(512, 512), width=width, num_classes=num_classes)


def vgg13_bn(width: float = 1, num_classes: int = 10) -> VGG:
    """Builds the CIFAR VGG-13: ten convolutions and one linear layer."""
    return VGG((2, 2, 2, 2, 2), width=width, num_classes=num_classes)


def vgg16_bn(width: float = 1, num_classes: int = 10) -> VGG:
    """Builds the CIFAR VGG-16: 14,724,042 parameters, 313.2 M MACs at 32×32."""
    return VGG((2, 2, 3, 3, 3), width=width, num_classes=num_classes)


def vgg19_bn(width: float = 1, num_classes: int = 10) -> VGG:
    """Builds the CIFAR VGG-19: sixteen convolutions and one linear layer."""
    return VGG((2, 2, 4, 4, 4), width=width, num_classes=num_classes)


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


class Pyramid(nn.Module):
    """ResNet-50 without its last stage, whose third keeps the size, and six smaller maps: SSD's backbone.

    Each smaller map comes of a 1×1 and a 3×3 convolution of stride 2, half as wide and as wide as the map.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        stem = nn.Conv2d(3, c_in := scaled(64, width), 7, 2, padding=3, bias=False)
        layers = [stem, nn.BatchNorm2d(c_in), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
        for depth, base, stride in ((3, 64, 1), (4, 128, 2), (6, 256, 1)):
            for index in range(depth):
                layers.append(Bottleneck(c_in, scaled(base, width), stride if index == 0 else 1))
                c_in = scaled(base, width) * Bottleneck.expansion
        self.layers = nn.Sequential(*layers)
        self.out_channels = [c_in]
        self.smaller = nn.ModuleList()
        for base in (512, 512, 256, 256, 256, 256):
            inner, c_out = scaled(base // 2, width), scaled(base, width)
            first, second = conv_bn(c_in, inner, 1), conv_bn(inner, c_out, 3, 2)
            self.smaller.append(nn.Sequential(*first, nn.ReLU(), *second, nn.ReLU()))
            self.out_channels.append(c_in := c_out)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps images ``[N, 3, H, W]`` to maps of an eighth of the side, of a sixteenth, and so on, at least 1×1."""
        maps = [self.layers(x)]
        for smaller in self.smaller:
            maps.append(smaller(maps[-1]))
        return {str(i): made for i, made in enumerate(maps)}


def ssd512_resnet50(width: float = 1, num_classes: int = 21) -> nn.Module:
    """Builds SSD512 on ResNet-50: 16,102,340 parameters, 45.9 G MACs at 512×512; class 0 is the background.

    Scales and shapes of the 24,564 boxes are those of Liu et al. 2016 for 512 pixels and PASCAL VOC.
    """
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD

    scales = [0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05]
    boxes = DefaultBoxGenerator([[2], *[[2, 3]] * 4, [2], [2]], scales=scales)
    backbone = Pyramid(width)
    initialise(backbone)
    detector: nn.Module = SSD(backbone, boxes, (512, 512), num_classes)
    return detector


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

    The depth is 6·n + 4 layers for n blocks per stage; ``width`` is a further factor on all channels.
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


BUILDERS: tuple[Callable[..., nn.Module], ...] = (
    mobilenet_v1, mobilenet_v1_cifar, resnet8, resnet18_modified, resnet20, resnet50_cifar, resnet56, ssd512_resnet50,
    vgg2_16_bn, vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn, wrn14_8, wrn14_10, wrn20_8, wrn22_2, wrn32_2,
)  # fmt: skip

ZOO = {builder.__name__: builder for builder in BUILDERS}
"""The project's own networks by name; they come before torchvision's of the same name."""
