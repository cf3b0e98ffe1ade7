"""Lists what can be removed from a network, what cannot, and why: the data behind ``halpiee explain``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from halpiee.structure.groups import ChannelGroup, Structure, macs

__all__ = ["ExplainedGroup", "ExplainedLayer", "Explanation", "explain"]

UNLOCK = (
    ("a network input", "nothing: the inputs are what they are"),
    ("feeds the network's output", "nothing: the outputs are what is asked for"),
    ("feeds an output in training", "nothing: the loss in training reads it"),
    ("runs in training alone", "nothing: an inference would not be quicker"),
    ("a single unit", "nothing: its channels can only go together, which would empty the layer"),
    ("single channel", "nothing: it has one channel"),
    ("literal bounds", "cut with chunk(), or put the parts into layers of their own"),
    ("do not follow", "work sizes out from the tensor's shape instead of writing numbers"),
    ("does not follow", "work sizes out from the tensor's shape instead of writing numbers"),
    ("checks its widths", "work widths out from the tensor's shape instead of storing them"),
    ("computed from the width", "write the number down, so that it stays when channels go"),
    ("literal number of groups", "use a Conv module, whose groups can follow"),
    ("constant of the same width", "register the constant as a buffer, so that it can be cut"),
    ("over channels", "normalise with a norm layer, or work on each channel alone"),
    (
        "width of a head",
        "hold the number of heads in the module as num_heads, reshape to (…, self.num_heads, -1) and back with "
        "flatten(2), so that whole heads go; or give scale= as a number",
    ),
    ("of no element", "trace with inputs that have something for it, such as an image with objects"),
    ("outside a", "use the norm module, so that its width can follow"),
    ("would drop a single channel", "name the dimensions: squeeze((2, 3)), or flatten(1)"),
    ("padded channels", "use a 1×1 projection instead of padding channels"),
)
"""Part of a reason → what the network's author could change; the first that fits is shown."""

OTHERWISE = "the op is not understood: build the layer from ops that are, or leave it whole"


@dataclass(frozen=True)
class ExplainedGroup:
    """One group, described for a reader."""

    name: str  # its name
    size: int  # number of units
    prunable: bool  # whether units can be removed
    trainable: bool  # whether training methods can mask it
    may_vanish: bool  # whether all of it can go
    members: tuple[str, ...]  # layer sides that are cut together
    reason: str | None  # why it stays, or why training leaves it out, or None
    source: str | None  # file and line of the forward that holds it, where it is known
    unlock: str | None  # what would make it prunable, or None
    macs_share: float  # share of the multiply-accumulates in the layers it is on


@dataclass(frozen=True)
class ExplainedLayer:
    """One layer call."""

    name: str  # its name
    kind: str  # conv, linear …
    c_in: int  # input channels
    c_out: int  # output channels
    macs: int  # multiply-accumulates for one input
    prunable: bool  # whether a group on either side is prunable
    in_prunable: bool  # whether one on its input side is
    out_prunable: bool  # whether one on its output side is
    in_groups: tuple[str, ...]  # groups on its input side
    out_groups: tuple[str, ...]  # groups on its output side
    reasons: tuple[str, ...]  # why its frozen sides stay


@dataclass(frozen=True)
class Explanation:
    """What can be removed from a network.

    Attributes:
        layers: every layer call, in order.
        groups: every group.
        prunable_macs_share: share of the multiply-accumulates in layers with a prunable group on either side.
        untimed: ops that take time and have no entry in a profile, with how often they occur.
        training_alone: modules that run in training and not in an evaluation: they are cut where they read what
            an evaluation sees, and whole within.
        unread: modules whose parameters no forward on these inputs reads: they stay whole, and may not fit what is
            cut around them when they run.
    """

    layers: tuple[ExplainedLayer, ...]
    groups: tuple[ExplainedGroup, ...]
    prunable_macs_share: float
    untimed: dict[str, int]
    training_alone: tuple[str, ...]
    unread: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns the explanation as plain lists and dicts, for JSON."""
        return asdict(self)


def explain(structure: Structure) -> Explanation:
    """Explains a traced network layer by layer and group by group."""
    per_layer = macs(structure)
    layers = []
    for layer in structure.layers:
        ins = [structure.by_name[name] for name, _ in layer.in_groups]
        outs = [structure.by_name[name] for name, _ in layer.out_groups]
        sides = [*ins, *outs]
        layers.append(
            ExplainedLayer(
                name=layer.name,
                kind=layer.kind,
                c_in=structure.channels(layer.in_groups, {}),
                c_out=structure.channels(layer.out_groups, {}),
                macs=per_layer.get(layer.name, 0),
                prunable=any(g.prunable for g in sides),
                in_prunable=any(g.prunable for g in ins),
                out_prunable=any(g.prunable for g in outs),
                in_groups=tuple(name for name, _ in layer.in_groups),
                out_groups=tuple(name for name, _ in layer.out_groups),
                reasons=tuple(dict.fromkeys(g.reason for g in sides if g.reason is not None)),
            )
        )
    total = sum(item.macs for item in layers)
    return Explanation(
        layers=tuple(layers),
        groups=tuple(
            explained(structure, group, share(group, per_layer, total)) for group in structure.groups
        ),
        prunable_macs_share=sum(item.macs for item in layers if item.prunable) / total if total else 0.0,
        untimed=dict(structure.details.get("untimed", {})),
        training_alone=tuple(structure.details.get("training_alone", ())),
        unread=modules_of(structure.details.get("unread", ())),
    )


def share(group: ChannelGroup, per_layer: Mapping[str, int], total: int) -> float:
    """Returns the share of the multiply-accumulates in the layers that a group is on."""
    layers = {layer for layer, _ in group.members}
    return sum(per_layer.get(layer, 0) for layer in layers) / total if total else 0.0


def modules_of(parameters: Iterable[str]) -> tuple[str, ...]:
    """Returns the outermost modules that hold the given parameters, in order."""
    return tuple(dict.fromkeys(name.split(".")[0] for name in parameters))


def explained(structure: Structure, group: ChannelGroup, macs_share: float) -> ExplainedGroup:
    """Explains one group."""
    unlock = None
    if group.reason is not None:
        unlock = next((hint for part, hint in UNLOCK if part in group.reason), OTHERWISE)
    return ExplainedGroup(
        name=group.name,
        size=group.size,
        prunable=group.prunable,
        trainable=group.trainable,
        may_vanish=group.may_vanish,
        members=tuple(f"{layer}.{side}" for layer, side in group.members),
        reason=group.reason or group.untrainable_reason,
        source=structure.details.get("sources", {}).get(group.name),
        unlock=unlock,
        macs_share=macs_share,
    )
