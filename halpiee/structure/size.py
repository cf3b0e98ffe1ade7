"""How large a network is at a choice of widths: channels, multiply-accumulates and parameters per layer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from halpiee.structure.groups import Structure

__all__ = ["macs", "parameters", "widths"]


def widths(structure: Structure, counts: Mapping[str, int] | None = None) -> dict[str, int]:
    """Returns the output channels of every layer.

    Args:
        structure: the network.
        counts: group name → units that stay; a missing group is whole.
    """
    return {layer.name: structure.channels(layer.out_groups, counts or {}) for layer in structure.layers}


def macs(structure: Structure, counts: Mapping[str, int] | None = None) -> dict[str, int]:
    """Returns the multiply-accumulates of every conv and linear layer for one input (batch 1).

    A convolution has C_out · C_in / groups · kernel · output positions of them, a transposed one counts input
    positions, a linear layer C_out · C_in · rows. Positions are those of all frames, patches or views that the network
    makes of an input. Biases, norms and activations are not counted.

    Args:
        structure: the network.
        counts: group name → units that stay; a missing group is whole.
    """
    counts = counts or {}
    found: dict[str, int] = {}
    for timed in structure.ops:
        op = timed.op
        if op.kind not in ("conv", "conv_transpose", "linear"):
            continue
        c_in, c_out = structure.sides(timed, counts)
        per_group_in = op.c_in // op.groups
        if op.groups == 1:
            weights = c_in * c_out
        elif timed.layer in structure.details["positions"]:
            weights = c_out * (c_in // op.groups)
        else:
            weights = c_out * per_group_in
        positions = structure.details["positions_of"][timed.layer]
        found[timed.layer] = weights * positions * math.prod(op.kernel) // structure.batch
    return found


def parameters(structure: Structure, counts: Mapping[str, int] | None = None) -> int:
    """Returns the number of parameters, buffers left out.

    Args:
        structure: the network.
        counts: group name → units that stay; a missing group is whole. Which units does not matter: within a
            group they are alike.
    """
    counts = counts or {}
    alive = np.zeros(structure.n_units, dtype=np.int64)
    for group in structure.groups:
        alive[group.start : group.start + counts.get(group.name, group.size)] = 1
    shapes = {name: list(shape) for name, shape in structure.details["shapes"].items()}
    for slot in structure.slots:
        stays = np.where(slot.units < 0, 1, alive[slot.units])
        shapes[slot.tensor][slot.dim] = int(stays.sum())
    learned = structure.details["learned"]
    return sum(math.prod(shape) for name, shape in shapes.items() if name in learned)
