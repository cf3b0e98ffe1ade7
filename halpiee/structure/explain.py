"""Lists what can be removed from a network, what cannot, and why: the data behind ``halpiee explain``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from halpiee.structure.groups import Structure, macs

UNLOCK = (
    ("a network input", "nothing: the inputs are given"),
    ("feeds the network's output", "nothing: the outputs are needed as they are"),
    ("feeds an output in training", "nothing: the loss in training reads it"),
    ("runs in training alone", "nothing: an inference would not be quicker"),
    ("a single unit", "nothing: its channels can only be removed together, which would empty the layer"),
    ("single channel", "nothing: it has one channel"),
    ("literal bounds", "cut with chunk(), or put the parts into layers of their own"),
    ("do not follow", "compute sizes from the tensor's shape instead of writing numbers"),
    ("does not follow", "compute sizes from the tensor's shape instead of writing numbers"),
    ("checks its widths", "compute widths from the tensor's shape instead of storing them"),
    ("computed from the width", "write the number down, so that it stays when channels are removed"),
    ("constant of the same width", "register the constant as a buffer, so that it can be cut"),
    ("over channels", "normalise with a norm layer, or work on each channel alone"),
    (
        "width of a head",
        "hold the number of heads in the module as num_heads, reshape to (…, self.num_heads, -1) and back with "
        "flatten(2), so that whole heads can be removed; or give scale= as a number",
    ),
    ("of no element", "trace with inputs that have something for it, such as an image with objects"),
    ("outside a", "use the norm module, so that its width can follow"),
    ("would drop a single channel", "name the dimensions: squeeze((2, 3)), or flatten(1)"),
    ("padded channels", "use a 1×1 projection instead of padding channels"),
)
"""Part of a reason → a change of the network that would help; the first that fits is shown."""

OTHERWISE = "the op is not understood: build the layer from ops that are, or leave it whole"


@dataclass(frozen=True)
class ExplainedGroup:
    """One group, described for a reader."""

    name: str
    size: int  # number of units
    prunable: bool
    trainable: bool  # training methods can mask it
    may_vanish: bool  # all units can be removed
    members: tuple[str, ...]  # layer sides that are cut together
    reason: str | None  # why it is frozen, or why training leaves it out
    source: str | None  # file and line of the forward that freezes it, where it is known
    unlock: str | None  # what would make it prunable
    macs_share: float  # share of the multiply-accumulates in the layers it is on


@dataclass(frozen=True)
class ExplainedLayer:
    """One layer call."""

    name: str
    kind: str  # conv, linear …
    c_in: int
    c_out: int
    macs: int  # for one input
    prunable: bool  # a group on either side is
    in_prunable: bool  # one on its input side is
    out_prunable: bool
    in_groups: tuple[str, ...]
    out_groups: tuple[str, ...]
    reasons: tuple[str, ...]  # why groups on its sides are frozen


@dataclass(frozen=True)
class Explanation:
    """What can be removed from a network.

    Beside its layer calls and groups in order: the share of the multiply-accumulates in layers with a prunable group on
    either side; ops that take time and have no entry in a profile, with how often they occur; modules that run in
    training and not in an evaluation, which are cut where they read what an evaluation sees, and whole within; and
    modules whose parameters no forward on these inputs reads, which stay whole and may not fit what is cut around them
    when they run.
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
    per_layer, details = macs(structure), structure.details
    layers = []
    for layer in structure.layers:
        ins, outs = (
            [structure.by_name[name] for name, _ in refs] for refs in (layer.in_groups, layer.out_groups)
        )
        layers.append(
            ExplainedLayer(
                name=layer.name,
                kind=layer.kind,
                c_in=structure.channels(layer.in_groups, {}),
                c_out=structure.channels(layer.out_groups, {}),
                macs=per_layer.get(layer.name, 0),
                prunable=any(g.prunable for g in (*ins, *outs)),
                in_prunable=any(g.prunable for g in ins),
                out_prunable=any(g.prunable for g in outs),
                in_groups=tuple(g.name for g in ins),
                out_groups=tuple(g.name for g in outs),
                reasons=tuple(dict.fromkeys(g.reason for g in (*ins, *outs) if g.reason is not None)),
            )
        )
    total = max(1, sum(item.macs for item in layers))
    groups = []
    for group in structure.groups:
        unlock = None
        if group.reason is not None:
            unlock = next((hint for part, hint in UNLOCK if part in group.reason), OTHERWISE)
        groups.append(
            ExplainedGroup(
                name=group.name,
                size=group.size,
                prunable=group.prunable,
                trainable=group.trainable,
                may_vanish=group.may_vanish,
                members=tuple(f"{layer}.{side}" for layer, side in group.members),
                reason=group.reason or group.untrainable_reason,
                source=details.get("sources", {}).get(group.name),
                unlock=unlock,
                macs_share=sum(per_layer.get(name, 0) for name in {name for name, _ in group.members})
                / total,
            )
        )
    return Explanation(
        layers=tuple(layers),
        groups=tuple(groups),
        prunable_macs_share=sum(item.macs for item in layers if item.prunable) / total,
        untimed=dict(details.get("untimed", {})),
        training_alone=tuple(details.get("training_alone", ())),
        unread=tuple(dict.fromkeys(name.split(".")[0] for name in details.get("unread", ()))),
    )
