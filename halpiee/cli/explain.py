"""``halpiee explain``: lists what can be removed from a network, what stays and why, and the ops that take time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from halpiee.cli.options import Answered, Imaged, verb
from halpiee.cli.output import answer, say, screen
from halpiee.inputs import spelled
from halpiee.options import option
from halpiee.shared_options import Batched
from latency.files import check_place, write

if TYPE_CHECKING:
    from rich.console import Console

    from halpiee.structure.explain import Explanation


@dataclass(frozen=True, kw_only=True)
class Explain(Imaged, Batched, Answered):
    """The network that is explained."""

    ops: Path | None = option(None, "Write the ops to profile, for a machine without torch.")


@verb(
    "explain",
    Explain,
    examples=(
        "halpiee explain resnet20 --size 32",
        "halpiee explain shufflenet_v2_x1_0 --size 64 --json",
        "halpiee explain resnet50 --batch 32 --ops resnet50.ops.jsonl",
    ),
)
def command(given: Explain) -> None:
    """Say for each layer of MODEL whether channels can be removed or which op prevents it; list the groups."""
    shape = given.shape
    if given.ops is not None:
        check_place(given.ops)
    from halpiee.cli.networks import traced
    from halpiee.selection.options import first_group, protected
    from halpiee.structure.explain import explain

    structure = traced(given.model, given.batch, shape, **given.arguments).structure
    found = explain(structure)
    first, kept = first_group(structure), protected(structure, given.model)
    if given.ops is not None:
        unique = {json.dumps(timed.op.key(), sort_keys=True): None for timed in structure.ops}
        write(given.ops, "".join(f"{line}\n" for line in unique))
        say(f"{len(unique)} ops in {given.ops}")

    def show() -> None:
        console = screen()
        _show_layers(console, found, given.model)
        _show_groups(console, found)
        _show_notes(console, found, spelled(shape) if given.inputs else given.size)
        if structure.nothing_prunable is not None:
            console.print(structure.nothing_prunable)
        console.print(f"first group: {_shielding(first, bool(kept))}")

    answer({**found.as_dict(), "first_group": first, "protected": list(kept)}, given.as_json, show)


def _shielding(first: str | None, kept: bool) -> str:
    """Returns in words whether the first group stays whole, and which option changes that."""
    if first is None:
        return "nothing to protect: the first layer's channels are frozen, or shared with later layers"
    if kept:
        return f"{first} stays whole in a plan, as in the papers; --no-protect-first frees it"
    return f"{first} is of the first layer alone; plan --protect-first leaves it whole"


def _show_layers(console: Console, found: Explanation, model: str) -> None:
    from rich.table import Table
    from rich.text import Text

    layers = Table(
        title=f"{model}: {found.prunable_macs_share:.1%} of the MACs lie in prunable layers", box=None
    )
    for title in ("layer", "kind", "in", "out", "MACs", "can go", "what stays, and why"):
        layers.add_column(
            title, justify="right" if title in ("in", "out", "MACs") else "left", overflow="fold"
        )
    for layer in found.layers:
        word = "prunable" if layer.prunable else "frozen"
        if layer.in_prunable != layer.out_prunable:
            word = f"{'in' if layer.in_prunable else 'out'} only"
        layers.add_row(
            layer.name,
            layer.kind,
            str(layer.c_in),
            str(layer.c_out),
            f"{layer.macs:,}",
            Text(word, style="yellow" if word == "frozen" else "green"),
            "; ".join(layer.reasons),
        )
    console.print(layers)


def _show_groups(console: Console, found: Explanation) -> None:
    from rich.table import Table

    groups = Table(title="groups: channels that go together", box=None)
    for title in (
        "group",
        "units",
        "MACs",
        "can go",
        "layer sides",
        "why not, where, and what would unlock it",
    ):
        groups.add_column(title, overflow="fold")
    for group in found.groups:
        state = (
            "prunable"
            if group.prunable and group.trainable
            else "by plan only"
            if group.prunable
            else "frozen"
        )
        text = " · ".join(part for part in (group.reason, group.source, group.unlock) if part)
        groups.add_row(
            group.name, str(group.size), f"{group.macs_share:.1%}", state, ties(group.members), text
        )
    console.print(groups)


SMALL_SHARE = 0.001
"""Share of the multiply-accumulates below which a group is said to save next to nothing."""


def _show_notes(console: Console, found: Explanation, size: str) -> None:
    """Prints which ops have no time, which groups are not worth cutting, and what was not run."""
    if found.untimed:
        console.print("not timed: " + ", ".join(f"{name} ×{n}" for name, n in found.untimed.items()))

    small = [g.name for g in found.groups if g.prunable and g.macs_share < SMALL_SHARE]
    if small:
        console.print(
            f"{len(small)} groups are on layers of less than {SMALL_SHARE:.1%} of the MACs each, such as "
            f"{small[0]} (squeeze and excitation is often among them): cutting them saves next to no time, "
            "so a plan seldom moves them"
        )
    if found.training_alone:
        console.print(
            f"run in training alone: {', '.join(found.training_alone)}; cut where they read the rest, whole within"
        )
    if found.unread:
        console.print(
            f"not run on an input of {size}: {', '.join(found.unread)}; left whole, and may not fit what is cut "
            "around them when they run"
        )


def ties(members: tuple[str, ...]) -> str:
    """Returns the layers that are cut together, each once, with the side or both sides."""
    sides: dict[str, list[str]] = {}
    for member in members:
        layer, _, side = member.rpartition(".")
        sides.setdefault(layer, []).append(side)
    shown = [f"{layer} {'+'.join(found)}" for layer, found in sides.items()]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
