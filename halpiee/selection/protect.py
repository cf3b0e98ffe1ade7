"""Which groups the recipes of the papers leave alone: the one rule of ``halpiee plan`` and ``halpiee train``."""

from __future__ import annotations

from halpiee.structure.groups import Structure

__all__ = ["RECIPES", "first_group", "protected"]

RECIPES = ("resnet50", "mobilenet_v1")
"""Networks whose recipes in HALP and IEE leave the first convolution whole."""


def first_group(structure: Structure) -> str | None:
    """Returns the group that the first layer alone produces, or ``None``.

    HALP and IEE never prune the first convolution of ResNet-50 and MobileNet-V1: it is cheap, and everything reads
    it. Where the stem writes into a residual stream with other layers, protecting it would pin the whole stream, so
    there is nothing to protect.
    """
    if not structure.layers:
        return None
    first = structure.layers[0]
    for name, _ in first.out_groups:
        producers = {
            layer.name for layer in structure.layers if any(name == other for other, _ in layer.out_groups)
        }
        own = {layer for layer in producers if not _passes_through(structure, layer)}
        if structure.by_name[name].prunable and own == {first.name}:
            return name
    return None


def protected(structure: Structure, model: str, *, asked: bool | None = None) -> tuple[str, ...]:
    """Returns the groups that stay whole: the first one where it is asked for, or is the recipe of a network.

    Args:
        structure: of the network.
        model: its MODEL string.
        asked: whether the first group is protected; ``None``: as the recipes have it.
    """
    if not (model in RECIPES if asked is None else asked):
        return ()
    name = first_group(structure)
    return () if name is None else (name,)


def _passes_through(structure: Structure, name: str) -> bool:
    """Returns whether a layer only hands its channels on: a depthwise one writes the group that it reads."""
    layer = next(layer for layer in structure.layers if layer.name == name)
    return bool(layer.in_groups) and layer.in_groups == layer.out_groups
