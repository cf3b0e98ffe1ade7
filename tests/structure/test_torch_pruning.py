"""Coupling against Torch-Pruning, an independent tool, on networks that both can handle.

Every output and input channel of every layer gets our unit and its (group, index). Where both know a channel the two
partitions must be the same. Network outputs are an ordinary group there, inputs are absent. Grouped convolutions are
left out: there its graph leaves the tie across groups to the caller, here a unit is a whole group.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from halpiee.structure import trace

tp = pytest.importorskip("torch_pruning", reason="a development-only comparison, needs torch-pruning")
torchvision = pytest.importorskip("torchvision")


def theirs(model: nn.Module, x: torch.Tensor) -> dict[tuple[str, str, int], tuple[int, int]]:
    names = {module: name for name, module in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    found: dict[tuple[str, str, int], tuple[int, int]] = {}
    for number, group in enumerate(graph.get_all_groups()):
        for item in group:
            dependency, indices = item.dep, item.idxs
            module = dependency.target.module
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
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
            depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
            for position, unit in enumerate(slot.units.tolist()):
                for side in ("out", "in") if depthwise else (slot.side,):
                    found[(slot.module, side, position)] = unit
    return found


@pytest.mark.slow  # its graph takes seconds to build
@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", "vgg11_bn", "mobilenet_v2", "squeezenet1_1", "densenet121", "efficientnet_b0"],
)
def test_the_coupling_of_channels_is_that_of_an_independent_tool(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.get_model(name, weights=None).eval()
        x = torch.randn(1, 3, 64, 64)
        their_map = theirs(model, x)
    our_map = ours(model, x)
    common = sorted(our_map.keys() & their_map.keys())
    assert len(common) > 0.9 * len(our_map)
    forward: dict[int, set[tuple[int, int]]] = {}
    backward: dict[tuple[int, int], set[int]] = {}
    for key in common:
        forward.setdefault(our_map[key], set()).add(their_map[key])
        backward.setdefault(their_map[key], set()).add(our_map[key])
    different = [key for key in common if len(forward[our_map[key]]) > 1 or len(backward[their_map[key]]) > 1]
    assert not different, f"{len(different)} of {len(common)} channels, first {different[0]}"
