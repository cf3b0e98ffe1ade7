"""Which groups the recipes of the papers leave alone."""

from __future__ import annotations

from halpiee.structure.groups import Structure

__all__ = ["first_group"]


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
        if structure.by_name[name].prunable and producers == {first.name}:
            return name
    return None
