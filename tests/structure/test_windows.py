"""Windowed attention: heads, hidden units and the stream go, shifted or not, in two and three dimensions.

What a head adds to the output is what the projection's columns of that head read, so the reference is the full
network with these columns zeroed by hand; the same holds for the hidden units of a perceptron.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from halpiee.structure import Structure, masked, relative_error, shrink, trace, verify

from . import nets

swin = pytest.importorskip("torchvision.models.swin_transformer")
video = pytest.importorskip("torchvision.models.video.swin_transformer")
maxvit = pytest.importorskip("torchvision.models.maxvit")

SMALL: dict[str, Any] = {"embed_dim": 8, "num_classes": 3, "stochastic_depth_prob": 0.0}


def plain() -> Any:
    return swin.SwinTransformer([2, 2], depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], **SMALL)


def second() -> Any:
    return swin.SwinTransformer(
        [2, 2],
        depths=[2],
        num_heads=[2],
        window_size=[4, 4],
        block=swin.SwinTransformerBlockV2,
        downsample_layer=swin.PatchMergingV2,
        **SMALL,
    )


def moving() -> Any:
    return video.SwinTransformer3d([2, 2, 2], depths=[2], num_heads=[2], window_size=[2, 4, 4], **SMALL)


def grid() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return maxvit.MaxVit((32, 32), 8, 4, [8], [1], 4, 0.0, num_classes=3)


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, str]] = {
    "swin": (plain, (2, 3, 16, 16), "features.1.1.attn.qkv", "features.1.1.attn.proj"),
    "swin, second version": (second, (2, 3, 16, 16), "features.1.1.attn.qkv", "features.1.1.attn.proj"),
    "swin of videos": (moving, (1, 3, 4, 16, 16), "features.0.1.attn.qkv", "features.0.1.attn.proj"),
    "maxvit": (
        grid,
        (1, 3, 32, 32),
        "blocks.0.layers.0.layers.grid_attention.attn_layer.1.to_qkv",
        "blocks.0.layers.0.layers.grid_attention.attn_layer.1.merge",
    ),
}
"""Builder, input shape, the layer that makes the heads (of a shifted window, where there is one), the one behind."""


@cache
def traced(name: str) -> tuple[nn.Module, torch.Tensor, Structure]:
    builder, shape, _, _ = KINDS[name]
    torch.manual_seed(0)
    model = nets.randomise(builder()).double().eval()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return model, x, trace(model, (x,))


@pytest.mark.parametrize("name", KINDS)
def test_a_window_without_a_head_is_the_one_whose_projection_does_not_read_it(name: str) -> None:
    _, _, rows, projection = KINDS[name]
    model, x, structure = traced(name)
    heads = next(layer.out_groups[0][0] for layer in structure.layers if layer.name == rows)
    group = structure.by_name[heads]
    assert group.prunable
    keep = {heads: torch.arange(group.size) != 0}
    reference = copy.deepcopy(model)
    columns = reference.get_submodule(projection).get_parameter("weight")
    with torch.no_grad():
        columns[:, : columns.shape[1] // group.size] = 0  # the first head
        expected = reference(x)
        assert relative_error(model(x), expected) > 1e-6  # the head does something
        assert relative_error(shrink(model, structure, keep)(x), expected) <= 1e-12
        assert relative_error(masked(model, structure, keep)(x), expected) <= 1e-12


@pytest.mark.parametrize("name", KINDS)
def test_everything_else_goes_with_the_heads(name: str) -> None:
    model, x, structure = traced(name)
    frozen = {g.reason for g in structure.groups if not g.prunable}
    assert frozen == {"a network input", "feeds the network's output"}
    for seed in range(2):
        keep = nets.random_keep(structure, seed)
        assert verify(model, structure, keep, (x,), tolerance=1e-12, seed=seed) <= 1e-12


def test_hidden_units_of_a_perceptron_are_those_its_second_layer_does_not_read() -> None:
    model, x, structure = traced("swin")
    group = structure.by_name["features.1.0.mlp.0"]
    keep = {group.name: torch.arange(group.size) % 3 == 0}
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference.get_submodule("features.1.0.mlp.3").get_parameter("weight")[:, ~keep[group.name]] = 0
        expected = reference(x)
        assert relative_error(shrink(model, structure, keep)(x), expected) <= 1e-12
        assert relative_error(masked(model, structure, keep)(x), expected) <= 1e-12
