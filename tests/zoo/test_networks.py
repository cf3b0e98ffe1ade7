"""Parameter and multiply-accumulate counts against the numbers published for each network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from halpiee import zoo


def counted_macs(model: nn.Module, size: int) -> int:
    """Counts by hooks on the modules: output elements × weights behind each."""
    total = 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        positions = output.shape[2:].numel() if output.dim() == 4 else 1
        total += module.weight.numel() * positions

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.device("meta"):
        model.to("meta").eval()(torch.empty(1, 3, size, size))
    return total


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# resnet20, 56: the CIFAR network with projections, 0.27 M / 40.8 M and 0.86 M / 125.8 M in the literature;
# vgg16_bn: 14.72 M / 313 M; mobilenet_v1: Keras counts 4,231,976 trainable parameters, the paper 569 M MACs.
PUBLISHED = [
    (zoo.resnet20, 32, 272_474, 40_813_184),
    (zoo.resnet56, 32, 855_770, 125_747_840),
    (zoo.vgg16_bn, 32, 14_724_042, 313_201_664),
    (zoo.mobilenet_v1, 224, 4_231_976, 568_740_352),
]


@pytest.mark.parametrize(("builder", "size", "n_parameters", "macs"), PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(
    builder: Callable[[], nn.Module], size: int, n_parameters: int, macs: int
) -> None:
    model = builder()
    assert parameters(model) == n_parameters
    assert counted_macs(model, size) == macs


def test_wrn22_2_has_the_weights_and_macs_of_the_sparse_training_papers() -> None:
    model = zoo.wrn22_2()
    assert sum(p.numel() for p in model.parameters() if p.dim() > 1) == 1_076_912
    assert counted_macs(model, 32) == 157_730_048


def test_resnet50_cifar_is_resnet50_with_another_stem_and_head() -> None:
    # torchvision's ResNet-50 has 25,557,032 parameters; the stem is 7×7×3×64, the head 2048·1000 + 1000.
    expected = 25_557_032 - 7 * 7 * 3 * 64 + 3 * 3 * 3 * 64 - (2048 * 1000 + 1000) + (2048 * 10 + 10)
    assert parameters(zoo.resnet50_cifar()) == expected


def test_resnet18_modified_is_resnet18_with_another_stem_and_head() -> None:
    # torchvision's ResNet-18 has 11,689,512 parameters.
    expected = 11_689_512 - 7 * 7 * 3 * 64 + 3 * 3 * 3 * 64 - (512 * 1000 + 1000) + (512 * 200 + 200)
    assert parameters(zoo.resnet18_modified()) == expected


@pytest.mark.parametrize("name", zoo.names())
def test_every_network_maps_images_to_logits(name: str) -> None:
    kwargs = {"width": 0.25, "num_classes": 6}
    assert zoo.build(name, **kwargs).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 6)


def test_width_scales_every_channel() -> None:
    model = zoo.resnet20(width=2)
    widths = {m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert widths == {32, 64, 128}


def test_initialisation_is_kaiming_normal_over_the_fan_in() -> None:
    torch.manual_seed(0)
    model = zoo.vgg16_bn()
    conv = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
    fan_in = 512 * 9
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.01)
    assert abs(conv.weight.mean().item()) < 1e-4
