"""``halpiee explain``: what of a network can be removed, what stays and why, and the ops that take time."""

from __future__ import annotations

import json
from pathlib import Path

import click

from halpiee import ranges
from halpiee.cli.options import SIZES, Ranged, examples, input_size, json_option
from halpiee.cli.output import answer, say, screen
from halpiee.errors import StructureError
from latency._files import check_place, write

__all__ = ["command"]


@click.command(
    "explain",
    epilog=examples(
        "halpiee explain resnet20 --size 32",
        "halpiee explain shufflenet_v2_x1_0 --size 64 --json",
        "halpiee explain resnet50 --batch 32 --ops resnet50.ops.jsonl",
    ),
)
@click.argument("model")
@click.option(
    "--batch", default=1, type=Ranged(ranges.Images), show_default=True, help="Images per inference."
)
@click.option("--size", default="224", show_default=True, help=f"Image size: {SIZES}.")
@click.option("--width", type=Ranged(ranges.Width), help="Width multiplier of a zoo network.")
@click.option(
    "--classes", type=Ranged(ranges.Classes), help="Classes of the network, if not its own default."
)
@click.option(
    "--ops", type=click.Path(path_type=Path), help="Write the ops to profile, for a machine without torch."
)
@json_option
def command(
    model: str,
    batch: int,
    size: str,
    width: float | None,
    classes: int | None,
    ops: Path | None,
    as_json: bool,
) -> None:
    """Say per layer of MODEL whether channels can go, or which op holds them; list ties and protected ends."""
    shape = input_size(size)
    if ops is not None:
        check_place(ops)
    from halpiee.cli.networks import traced
    from halpiee.selection.protect import first_group, protected
    from halpiee.structure.explain import explain

    try:
        structure = traced(model, batch, shape, width=width, classes=classes).structure
    except StructureError as error:
        if "positional argument" not in str(error):
            raise
        raise StructureError(
            f"{model} takes more inputs than the one image that the command line gives it "
            f"({str(error).split(': ')[-1].split(';')[0]}); in Python, "
            f"halpiee.structure.explain(halpiee.trace(model, (first, second))) says the same of it"
        ) from error
    found = explain(structure)
    first, kept = first_group(structure), protected(structure, model)
    if first is None:
        shielding = "nothing to protect: the first layer shares its channels with later ones"
    elif kept:
        shielding = f"{first} stays whole in a plan, as in the papers; --no-protect-first frees it"
    else:
        shielding = f"{first} is of the first layer alone; plan --protect-first leaves it whole"
    if ops is not None:
        unique = {json.dumps(timed.op.key(), sort_keys=True): None for timed in structure.ops}
        write(ops, "".join(f"{line}\n" for line in unique))
        say(f"{len(unique)} ops in {ops}")

    def show() -> None:
        from rich.table import Table
        from rich.text import Text

        console = screen()
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
        console.print(f"first group: {shielding}")

    answer({**found.as_dict(), "first_group": first, "protected": list(kept)}, as_json, show)


SMALL_SHARE = 0.001
"""Share of the multiply-accumulates below which a group is said to save next to nothing."""


def ties(members: tuple[str, ...]) -> str:
    """Returns the layers that are cut together, each once, with the side or both sides."""
    sides: dict[str, list[str]] = {}
    for member in members:
        layer, _, side = member.rpartition(".")
        sides.setdefault(layer, []).append(side)
    shown = [f"{layer} {'+'.join(found)}" for layer, found in sides.items()]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
