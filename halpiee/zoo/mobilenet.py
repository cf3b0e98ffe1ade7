"""MobileNet v1, of depthwise separable convolutions (Howard et al. 2017, table 1)."""

from __future__ import annotations

from torch import Tensor, nn

from halpiee.zoo.blocks import conv_bn, initialise, scaled

__all__ = ["MobileNetV1", "mobilenet_v1", "mobilenet_v1_cifar"]

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
