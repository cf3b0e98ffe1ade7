"""The public structure of a model: units, the groups they form, where each unit lives, and how large the network is.

A *unit* is one set of channel slots that can only be removed together; a *group* holds all units with the same
footprint (the same layers on the same sides, equally often), so a layer's width is a sum of group counts. Units are
numbered through the whole structure: unit ``j`` of group ``g`` has the global index ``g.start + j``. A *slot* is one
dimension of one parameter or buffer, with the global unit index of each of its positions; masks, shrinking and training
read nothing else. ``macs``, ``parameters`` and ``widths`` say how large the network is at a choice of counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from halpiee.errors import StructureError, need, unknown
from latency.op import CONTRACTIONS, Op

if TYPE_CHECKING:
    from torch import Tensor

GroupRef = tuple[str, int]
"""A group's name, and how many channels of a layer's side each of its units has."""


@dataclass(frozen=True)
class Layer:
    """One layer call that contracts channels (conv, linear) with the groups on both its sides.

    Attributes:
        name: module path; a second call of the same module gets the suffix ``#2``.
        kind: ``conv``, ``conv_transpose``, ``linear`` …
        in_groups: groups of its input channels; ``C_in = sum(size * multiplicity)``.
        out_groups: groups of its output channels.
    """

    name: str
    kind: str
    in_groups: tuple[GroupRef, ...]
    out_groups: tuple[GroupRef, ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Units that are interchangeable in cost.

    Attributes:
        name: deterministic across processes.
        size: number of units.
        start: global index of the first unit.
        prunable: whether units may be removed.
        may_vanish: whether all of them may be (every path through it has a parallel skip).
        reason: why it is not prunable, or ``None``.
        trainable: whether zeroing the producers' affine and the consumers' columns in place is exact, so that
            training methods can mask it; otherwise it is prunable by plan and shrink only.
        untrainable_reason: why not, or ``None``.
        members: ``(layer name, "in" | "out")`` of every layer side it is part of.
    """

    name: str
    size: int
    start: int
    prunable: bool
    may_vanish: bool = False
    reason: str | None = None
    trainable: bool = True
    untrainable_reason: str | None = None
    members: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class TimedOp:
    """One op of the network that takes time, in execution order, tied to the groups that set its width.

    Attributes:
        op: as built, at the batch size of the traced inputs, with its tail.
        layer: name of the layer (module path) it belongs to.
        in_groups: groups whose counts give its ``c_in``.
        out_groups: groups whose counts give its ``c_out``.
    """

    op: Op
    layer: str
    in_groups: tuple[GroupRef, ...]
    out_groups: tuple[GroupRef, ...]

    @property
    def tail(self) -> tuple[str, ...]:
        """The ops that follow and may be fused into this one; the backend decides which are."""
        return self.op.tail


@dataclass(frozen=True)
class Slot:
    """One dimension of one parameter or buffer whose positions belong to units.

    Attributes:
        tensor: qualified name, as in ``state_dict``.
        module: path of the module that holds it.
        kind: ``conv``, ``conv_transpose``, ``linear``, ``batch_norm`` …
        side: ``out`` (rows a layer produces), ``in`` (columns it contracts) or ``norm`` (affine and statistics).
        dim: the dimension.
        units: int64 ``[size of the dimension]``, global unit index of each position.
    """

    tensor: str
    module: str
    kind: str
    side: Literal["out", "in", "norm"]
    dim: int
    units: NDArray[np.int64]


AT_THE_ENDS = ("a network input", "feeds the network's output")
"""Reasons that every network has."""


@dataclass(frozen=True)
class Structure:
    """Layers, groups, timed ops and slots of one model.

    Attributes:
        layers: every conv and linear call, in execution order.
        groups: every group; network inputs, outputs and frozen units are groups too.
        ops: what takes time, in execution order.
        slots: where each unit lives in the model's parameters and buffers.
        details: what ``shrink`` needs beyond the slots (private to this package).
    """

    layers: tuple[Layer, ...]
    groups: tuple[ChannelGroup, ...]
    ops: tuple[TimedOp, ...]
    slots: tuple[Slot, ...]
    details: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        """Returns a table: one row per layer with its channels, multiply-accumulates and prunable output groups."""
        return "\n".join(table_of(self))

    @property
    def n_units(self) -> int:
        """Number of units of all groups."""
        return sum(g.size for g in self.groups)

    @cached_property
    def by_name(self) -> dict[str, ChannelGroup]:
        """Groups by name."""
        return {g.name: g for g in self.groups}

    @cached_property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The prunable groups, in order."""
        return tuple(g for g in self.groups if g.prunable)

    @property
    def nothing_prunable(self) -> str | None:
        """Says that none of the layers can lose channels, and the most frequent reasons; None where some can."""
        if self.prunable or not self.layers:
            return None
        counted = Counter(g.reason or "" for g in self.groups if g.reason not in AT_THE_ENDS)
        found = "; ".join(f"{reason} ({n})" for reason, n in counted.most_common(3))
        return f"none of the {len(self.layers)} layers can lose channels: {found or 'it has one layer alone'}"

    def channels(self, refs: tuple[GroupRef, ...], counts: Mapping[str, int]) -> int:
        """Returns how many channels a layer's side has; a group missing from ``counts`` counts whole."""
        return sum(mult * counts.get(name, self.by_name[name].size) for name, mult in refs)

    def sides(self, timed: TimedOp, counts: Mapping[str, int]) -> tuple[int, int]:
        """Returns C_in and C_out of a timed op; a group missing from ``counts`` counts whole.

        Channels that belong to no group are there at every choice: those of an op that is not understood, or that a
        layer contracts beside its channels.
        """

        def channels(refs: tuple[GroupRef, ...], built: int) -> int:
            return built - sum(
                mult * (self.by_name[name].size - counts.get(name, self.by_name[name].size))
                for name, mult in refs
            )

        return channels(timed.in_groups, timed.op.c_in), channels(timed.out_groups, timed.op.c_out)

    @property
    def batch(self) -> int:
        """Inputs in the batch that was traced."""
        return int(self.details.get("batch", 1))

    def keep_vector(self, keep: Mapping[str, Tensor]) -> NDArray[np.bool_]:
        """Returns bool ``[n_units]``: which units stay, of BoolTensors ``[size]`` by group name; others stay whole.

        Raises:
            StructureError: an unknown group, a wrong size or dtype, a unit removed from a group that is not prunable,
                or an emptied group that may not vanish.
        """
        import torch

        need(keep, Mapping, "a keep", "give {group name: torch.ones(size, dtype=torch.bool)}")
        alive = np.ones(self.n_units, dtype=np.bool_)
        for name, mask in keep.items():
            group = self.by_name.get(name)
            if group is None:
                hint = unknown(name, self.by_name, before="; ")
                raise StructureError(
                    f"keep names the group {name!r}, which this structure does not have{hint}"
                )
            found = type(mask).__name__
            if isinstance(mask, torch.Tensor):
                found = f"{mask.dtype} of shape {tuple(mask.shape)}"
            if found != f"torch.bool of shape ({group.size},)":
                raise StructureError(
                    f"keep[{name!r}] must be a bool tensor of shape ({group.size},), found {found}; "
                    f"build it with torch.ones({group.size}, dtype=torch.bool)"
                )
            vector = mask.detach().cpu().numpy()
            if not vector.all() and not group.prunable:
                raise StructureError(
                    f"keep removes units of {name!r}, which is not prunable ({group.reason}); "
                    "leave it out of keep"
                )
            if not vector.any() and not group.may_vanish:
                raise StructureError(
                    f"keep empties {name!r}, which may not vanish: no parallel skip carries its signal; "
                    "keep at least one unit"
                )
            alive[group.start : group.start + group.size] = vector
        return alive


def widths(structure: Structure, counts: Mapping[str, int] | None = None) -> dict[str, int]:
    """Returns the output channels of every layer.

    Args:
        structure: the network.
        counts: group name → units that stay; a missing group is whole.
    """
    return {layer.name: structure.channels(layer.out_groups, counts or {}) for layer in structure.layers}


def macs(structure: Structure, counts: Mapping[str, int] | None = None) -> dict[str, int]:
    """Returns the multiply-accumulates of every conv and linear layer for one input (batch 1), whole or at some counts.

    A convolution has C_out · C_in / groups · kernel · output positions of them, a transposed one counts input
    positions, a linear layer C_out · C_in · rows. Positions are those of all frames, patches or views that the network
    makes of an input. Biases, norms and activations are not counted. ``counts`` maps group names to units that stay.
    """
    counts = counts or {}
    found: dict[str, int] = {}
    for timed in structure.ops:
        op = timed.op
        if op.kind not in CONTRACTIONS:
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
        if timed.layer in structure.details["passing"]:
            refs, whole = structure.details["passing"][timed.layer]
            gone = structure.channels(refs, {}) - structure.channels(refs, counts)
            positions = positions * (whole - gone) // whole
        found[timed.layer] = weights * positions * math.prod(op.kernel) // structure.batch
    return found


def parameters(structure: Structure, counts: Mapping[str, int] | None = None) -> int:
    """Returns the number of parameters, buffers left out.

    Args:
        structure: the network.
        counts: group name → units that stay, whichever of the group; a missing group is whole.
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


def table_of(structure: Structure) -> list[str]:
    """Returns the lines of the table that ``print(structure)`` shows."""
    per_layer = macs(structure)
    rows = [["layer", "kind", "in", "out", "MACs", "output channels"]]
    for layer in structure.layers:
        sizes = [f"{structure.channels(refs, {}):,}" for refs in (layer.in_groups, layer.out_groups)]
        count = f"{per_layer[layer.name]:,}" if layer.name in per_layer else ""
        groups = [structure.by_name[name] for name, _ in layer.out_groups]
        said = dict.fromkeys(f"group {g.name}" if g.prunable else f"stay: {g.reason}" for g in groups)
        rows.append([layer.name, layer.kind, *sizes, count, "; ".join(said)])
    wide = [max(len(row[i]) for row in rows) for i in range(5)]
    aligned = ([f"{cell:{'<<>>>'[i]}{wide[i]}}" for i, cell in enumerate(row[:5])] for row in rows)
    lines = ["  ".join([*cells, row[5]]).rstrip() for cells, row in zip(aligned, rows, strict=True)]
    can = f"{len(structure.prunable)} of {len(structure.groups)} groups can lose units"
    return [*lines, f"{len(structure.layers)} layers, {sum(per_layer.values()):,} MACs for one input; {can}"]
