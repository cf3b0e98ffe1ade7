"""Fifteen networks of torchvision at small inputs: masked against compact, and what of them can go."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from halpiee.structure import explain, trace, verify

from . import nets

torchvision = pytest.importorskip("torchvision")

FAST: dict[str, tuple[int, int | None]] = {
    "mobilenet_v2": (32, 25),
    "mobilenet_v3_small": (32, None),
    "resnet18": (32, 12),
    "shufflenet_v2_x0_5": (32, None),
    "squeezenet1_1": (64, 25),
}
SLOW: dict[str, tuple[int, int | None]] = {
    "alexnet": (64, 7),
    "convnext_tiny": (32, 22),
    "deeplabv3_mobilenet_v3_large": (32, None),
    "densenet121": (32, 120),
    "efficientnet_b0": (32, 40),
    "googlenet": (32, 57),
    "mnasnet1_0": (32, None),
    "regnet_x_400mf": (32, None),
    "resnet50": (32, 37),
    "vgg11_bn": (32, 10),
}
"""Network → input size, prunable groups as an independent tool (Torch-Pruning 1.6.1) counts them, or None."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # builders announce other initialisations
        yield


def built(name: str) -> Any:
    torch.manual_seed(0)
    model = torchvision.models.get_model(
        name, weights=None, **({"weights_backbone": None} if "lab" in name else {})
    )
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
    return model.eval()


def check(
    name: str, size: int, n_prunable: int | None, dtype: torch.dtype = torch.float32, tolerance: float = 1e-5
) -> None:
    model = built(name).to(dtype)
    x = torch.zeros(1, 3, size, size, dtype=dtype)
    structure = trace(model, (x,))
    assert n_prunable is None or len(structure.prunable) == n_prunable
    assert explain(structure).prunable_macs_share >= 0.95
    for seed in range(3):
        keep = nets.random_keep(structure, seed, share=(0.3, 0.5, 0.7)[seed])
        assert verify(model, structure, keep, (x,), tolerance=tolerance, seed=seed) <= tolerance


@pytest.mark.parametrize("name", FAST)
def test_small_networks_are_cut_exactly(name: str) -> None:
    check(name, *FAST[name])


@pytest.mark.slow  # construction, trace and six forwards take 3 to 15 s each
@pytest.mark.parametrize("name", SLOW)
def test_larger_networks_are_cut_exactly(name: str) -> None:
    check(name, *SLOW[name])


@pytest.mark.slow  # double precision of five networks takes 10 s
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "convnext_tiny"]
)
def test_double_precision_agrees_to_rounding(name: str) -> None:
    check(name, *(FAST | SLOW)[name], dtype=torch.float64, tolerance=1e-12)


@pytest.mark.slow  # a detector runs on real tensors, four times for the trace
@pytest.mark.parametrize("luck", [0, 1])  # of weights and image, on which it hangs how many objects are found
def test_a_detector_is_cut_exactly_up_to_its_heads(luck: int) -> None:
    torch.manual_seed(luck)
    model = torchvision.models.get_model(
        "fasterrcnn_mobilenet_v3_large_320_fpn", weights=None, weights_backbone=None, min_size=64, max_size=96
    ).eval()
    model = model.double()
    inputs = ([torch.rand(3, 64, 64, dtype=torch.float64)],)
    structure = trace(model, inputs)
    assert explain(structure).prunable_macs_share >= 0.95
    for seed in range(3):
        keep = nets.random_keep(structure, seed)
        assert verify(model, structure, keep, inputs, tolerance=1e-12, seed=seed) <= 1e-12
