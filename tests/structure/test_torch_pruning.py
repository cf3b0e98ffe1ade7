"""Coupling against Torch-Pruning, an independent tool, on networks that both can handle.

Every output and input channel of every layer gets our unit and its (group, index). Where both know a channel the two
partitions must be the same. Network outputs are an ordinary group there, inputs are absent. Around grouped
convolutions its graph leaves the tie of a group's channels to the caller, here a unit is a whole group.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from halpiee.structure import trace

tp = pytest.importorskip("torch_pruning", reason="a development-only comparison, needs torch-pruning")
torchvision = pytest.importorskip("torchvision")


CONVS = nn.Conv1d | nn.Conv2d | nn.Conv3d


def theirs(model: nn.Module, x: torch.Tensor) -> dict[tuple[str, str, int], tuple[int, int]]:
    names = {module: name for name, module in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    found: dict[tuple[str, str, int], tuple[int, int]] = {}
    for number, group in enumerate(graph.get_all_groups()):
        for item in group:
            dependency, indices = item.dep, item.idxs
            module = dependency.target.module
            if not isinstance(module, CONVS | nn.Linear):
                continue
            depthwise = isinstance(module, CONVS) and module.groups > 1
            is_out = graph.is_out_channel_pruning_fn(dependency.handler)
            for position, root in zip(indices, item.root_idxs, strict=True):
                for side in ("out", "in") if depthwise else (("out",) if is_out else ("in",)):
                    found[(names[module], side, int(position))] = (number, int(root))
    return found


def ours(model: nn.Module, x: torch.Tensor) -> dict[tuple[str, str, int], int]:
    structure = trace(model, (x,))
    found = {}
    for slot in structure.slots:
        if slot.tensor.endswith(".weight") and slot.side in ("out", "in"):
            module = model.get_submodule(slot.module)
            depthwise = isinstance(module, CONVS) and module.groups > 1
            for position, unit in enumerate(slot.units.tolist()):
                for side in ("out", "in") if depthwise else (slot.side,):
                    found[(slot.module, side, position)] = unit
    return found


ALIKE = {
    "resnet18": (1, 3, 64, 64),
    "vgg16_bn": (1, 3, 64, 64),
    "mobilenet_v2": (1, 3, 64, 64),
    "mobilenet_v3_small": (1, 3, 64, 64),
    "squeezenet1_1": (1, 3, 64, 64),
    "mnasnet1_0": (1, 3, 64, 64),
    "efficientnet_b0": (1, 3, 64, 64),
    "densenet121": (1, 3, 64, 64),
    "googlenet": (1, 3, 64, 64),
    "inception_v3": (1, 3, 96, 96),
    "convnext_tiny": (1, 3, 64, 64),
    "resnet50": (1, 3, 64, 64),
    "deeplabv3_mobilenet_v3_large": (1, 3, 64, 64),
    "vit_b_32": (1, 3, 224, 224),
    "r3d_18": (1, 3, 8, 64, 64),
}
"""Networks whose couplings are the same, with an input."""

PARTS: dict[str, dict[str, Any]] = {
    "deeplabv3_mobilenet_v3_large": {"weights_backbone": None},
    # its graph is of one forward, ours holds the heads of training beside it
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}
"""What such a network is built with."""


def compared(name: str, shape: tuple[int, ...]) -> tuple[float, int, int]:
    """Returns the share of our channels that both know, and on how many ours, or theirs, unites more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.get_model(name, weights=None, **PARTS.get(name, {})).eval()
        x = torch.randn(shape)
        their_map = theirs(model, x)
        our_map = ours(model, x)
    common = sorted(our_map.keys() & their_map.keys())
    forward: dict[int, set[tuple[int, int]]] = {}
    backward: dict[tuple[int, int], set[int]] = {}
    for key in common:
        forward.setdefault(our_map[key], set()).add(their_map[key])
        backward.setdefault(their_map[key], set()).add(our_map[key])
    coarser = sum(len(forward[our_map[key]]) > 1 for key in common)
    finer = sum(len(backward[their_map[key]]) > 1 for key in common)
    return len(common) / len(our_map), coarser, finer


@pytest.mark.slow  # its graph takes seconds to build
@pytest.mark.parametrize("name", ALIKE)
def test_the_coupling_of_channels_is_that_of_an_independent_tool(name: str) -> None:
    share, coarser, finer = compared(name, ALIKE[name])
    # attention modules are one item to it, so their projections (a sixth of a ViT) are not compared
    assert share > (0.8 if name.startswith("vit") else 0.9)
    assert (coarser, finer) == (0, 0)


@pytest.mark.slow  # its graph takes seconds to build
@pytest.mark.parametrize("name", ["resnext50_32x4d", "regnet_x_400mf", "regnet_y_400mf"])
def test_around_grouped_convolutions_only_our_tie_of_whole_groups_is_added(name: str) -> None:
    _, coarser, finer = compared(name, (1, 3, 64, 64))
    assert coarser > 0
    assert finer == 0
