"""Networks without shortcuts: MobileNet v1 of depthwise separable convolutions, and VGG in its CIFAR form.

MobileNet v1: Howard et al. 2017, table 1. VGG (Simonyan & Zisserman 2015) has a batch norm after each convolution and
one linear layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from halpiee.zoo.blocks import conv_bn, initialise, scaled

__all__ = [
    "VGG",
    "MobileNetV1",
    "mobilenet_v1",
    "mobilenet_v1_cifar",
    "vgg2_16_bn",
    "vgg11_bn",
    "vgg13_bn",
    "vgg16_bn",
    "vgg19_bn",
]


BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Output channels and stride of each separable convolution."""


class MobileNetV1(nn.Module):
    """A 3×3 stem, 13 separable convolutions, global average pooling and one linear layer.

    Args:
        stem_stride: 2 for ImageNet, 1 for CIFAR.
        width: factor on all channels (the paper's α).
        num_classes: outputs.
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
