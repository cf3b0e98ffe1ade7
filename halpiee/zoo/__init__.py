"""The networks of the papers, and what a MODEL string means."""

from halpiee.zoo.layers import draw
from halpiee.zoo.mobilenet import mobilenet_v1, mobilenet_v1_cifar
from halpiee.zoo.registry import build, names, resolve
from halpiee.zoo.resnet import resnet18_modified, resnet20, resnet50_cifar, resnet56
from halpiee.zoo.vgg import vgg13_bn, vgg16_bn, vgg19_bn
from halpiee.zoo.wide_resnet import wrn22_2

__all__ = [
    "build",
    "draw",
    "mobilenet_v1",
    "mobilenet_v1_cifar",
    "names",
    "resnet18_modified",
    "resnet20",
    "resnet50_cifar",
    "resnet56",
    "resolve",
    "vgg13_bn",
    "vgg16_bn",
    "vgg19_bn",
    "wrn22_2",
]
