"""The networks of the papers, and what a MODEL string means."""

from halpiee.zoo.networks import (
    draw,
    mobilenet_v1,
    mobilenet_v1_cifar,
    resnet8,
    resnet18_modified,
    resnet20,
    resnet50_cifar,
    resnet56,
    ssd512_resnet50,
    vgg2_16_bn,
    vgg11_bn,
    vgg13_bn,
    vgg16_bn,
    vgg19_bn,
    wrn14_8,
    wrn14_10,
    wrn20_8,
    wrn22_2,
    wrn32_2,
)
from halpiee.zoo.registry import build, names, resolve

__all__ = [
    "build", "draw", "mobilenet_v1", "mobilenet_v1_cifar", "names", "resnet8", "resnet18_modified", "resnet20",
    "resnet50_cifar", "resnet56", "resolve", "ssd512_resnet50", "vgg2_16_bn", "vgg11_bn", "vgg13_bn", "vgg16_bn",
    "vgg19_bn", "wrn14_8", "wrn14_10", "wrn20_8", "wrn22_2", "wrn32_2",
]  # fmt: skip
