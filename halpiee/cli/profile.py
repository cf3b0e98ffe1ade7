"""``halpiee profile``: latencies of a network's ops on this device, into a file, and which ops have none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from halpiee import advice, ranges
from halpiee.cli.options import SIZES, Ranged, examples, input_size, json_option
from halpiee.cli.output import ScreenTalk, answer, kept_in, say

__all__ = ["command"]


@click.command(
    "profile",
    epilog=examples(
        "halpiee profile resnet20 --size 32 --batch 1 --out resnet20.jsonl",
        "halpiee profile resnet50 --size 224 --dry-run",
    ),
)
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), help="Profile file; a killed sweep resumes into it.")
@click.option(
    "--backend",
    default="onnxruntime",
    show_default=True,
    type=click.Choice(["onnxruntime", "torch", "tensorrt"]),
)
@click.option(
    "--batch", default=1, type=Ranged(ranges.Images), show_default=True, help="Images per inference."
)
@click.option("--size", default="224", show_default=True, help=f"Image size: {SIZES}.")
@click.option("--width", type=Ranged(ranges.Width), help="Width multiplier of a zoo network.")
@click.option(
    "--classes", type=Ranged(ranges.Classes), help="Classes of the network, if not its own default."
)
@click.option(
    "--threads", default=1, type=Ranged(ranges.Threads), show_default=True, help="Threads of the runtime."
)
@click.option("--dry-run", is_flag=True, help="Say how many ops and cells, and how long; measure nothing.")
@click.option("--seed", default=0, type=Ranged(ranges.Seed), show_default=True)
@json_option
def command(
    model: str,
    out: Path | None,
    backend: str,
    batch: int,
    size: str,
    width: float | None,
    classes: int | None,
    threads: int,
    dry_run: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Measure how long MODEL's ops take on this device at every useful width."""
    shape = input_size(size)
    if out is None and not dry_run:
        raise click.UsageError("--out is missing; name the profile file, or add --dry-run to measure nothing")
    import latency
    from halpiee.cli.networks import traced
    from halpiee.selection.fixed import fixed_sides

    structure = traced(model, batch, shape, width=width, classes=classes).structure
    ops = [timed.op for timed in structure.ops]
    fixed = fixed_sides(structure)
    without = structure.details["untimed"]
    if dry_run:
        estimate = latency.sweep(ops, backend=backend, threads=threads, seed=seed, fixed=fixed, dry_run=True)

        def tell() -> None:
            say(str(estimate))
            for line in gaps(without, ()):
                say(line)

        answer({**vars(estimate), "untimed": without}, as_json, tell)
        return
    talk = ScreenTalk()
    talk.stage(f"Profile {model}")
    assert out is not None
    import warnings

    from halpiee.errors import HoldoutWarning

    with (
        warnings.catch_warnings(),
        kept_in(out, f"what was measured is in {out}; the same command continues it"),
    ):
        warnings.simplefilter("ignore", HoldoutWarning)  # said below, with the other notes
        profile = latency.sweep(
            ops, backend=backend, path=out, threads=threads, seed=seed, fixed=fixed, progress=talk.sweeping
        )
    from latency.inspect import inspect

    found = inspect(profile)
    refused = tuple(profile.environment.get("not_measured", ()))
    steps = sorted({op.steps for op in found.ops if op.op.startswith("conv")})
    result = {
        "out": str(out),
        "cells": len(profile.cells),
        "ops": len(found.ops),
        "steps": steps,
        "untimed": without,
        "not_measured": list(refused),
        "warnings": list(found.warnings),
    }

    def show() -> None:
        say(f"{result['cells']} cells of {result['ops']} ops in {out}")
        say("channels move in steps of (in, out): " + "; ".join(f"{i}, {o}" for i, o in steps))
        for line in gaps(without, refused):
            say(line)
        for warning in found.warnings:
            say(f"note: {warning}")
        following = advice.command(
            "plan", model, shape=shape, width=width, classes=classes, batch=batch, profile=out, budget="0.5"
        )
        say(f"next: {following}")

    answer(result, as_json, show)


def gaps(without: dict[str, int], refused: Sequence[str]) -> list[str]:
    """Returns what a profile does not answer for, in words; one line each.

    Args:
        without: ops of the network that have no entry in any profile, with how often they occur.
        refused: ops that this backend cannot build or this device has no memory for, each with the reason.
    """
    lines = []
    if without:
        ops = ", ".join(f"{name} ×{n}" for name, n in without.items())
        lines.append(
            f"not timed: {ops}; no profile has entries for them, so what `halpiee plan` predicts leaves out what they "
            "take, whatever the widths; `halpiee train` calibrates with whole networks"
        )
    for why in refused:
        lines.append(
            f"not measured: {why}; other cells of its table answer for it, and where there are none `halpiee plan` "
            "leaves it out, or refuses if it is a convolution or linear layer"
        )
    return lines
