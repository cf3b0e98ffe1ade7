"""``halpiee profile``: measures the ops of a network on this device, and names the ops that have no times."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from halpiee import advice
from halpiee.cli.options import Answered, Imaged, verb
from halpiee.cli.output import ScreenTalk, answer, kept_in, say
from halpiee.errors import HoldoutWarning
from halpiee.options import option
from halpiee.shared_options import RUNTIME, Batched, Seeded, Threaded

if TYPE_CHECKING:
    import latency
    from halpiee.cli.inputs import Shape


@dataclass(frozen=True, kw_only=True)
class Profile(Imaged, Batched, Threaded, Seeded, Answered):
    """The network whose ops are timed, and where the times go."""

    out: Path | None = option(None, "Profile file; a killed sweep resumes into it.")
    dry_run: bool = option(
        False, "Print how many ops and cells there are and how long they take; measure nothing."
    )
    backend: str = option("onnxruntime", "Runtime that is timed; `halpiee doctor` lists them.", RUNTIME)
    device: str = option("auto", "Device of the runtime: cpu, cuda, cuda:1.", RUNTIME)
    precision: Literal["fp32", "tf32", "fp16", "bf16", "int8"] = option(
        "fp32", "Arithmetic of every op; int8: ONNX Runtime, as QDQ.", RUNTIME
    )
    channels_last: bool = option(False, "Let images lie in NHWC order.", RUNTIME)


@verb(
    "profile",
    Profile,
    examples=(
        "halpiee profile resnet20 --size 32 --batch 1 --out resnet20.jsonl",
        "halpiee profile resnet50 --size 224 --dry-run",
        "halpiee profile my.module:net --input image=3x128x128 --input depth=1x128x128 --out net.jsonl",
        "halpiee profile resnet20 --size 32 --precision int8 --out resnet20-int8.jsonl",
        "halpiee profile resnet50 --backend torch --device cuda --precision fp16 --channels-last --out h200.jsonl",
    ),
)
def command(given: Profile) -> None:
    """Measure how long MODEL's ops take on this device at every useful width."""
    shape, out = given.shape, given.out
    if out is None and not given.dry_run:
        raise click.UsageError("--out is missing; name the profile file, or add --dry-run to measure nothing")
    import latency
    from halpiee.cli.networks import traced
    from halpiee.deploy.target import Target
    from halpiee.selection.options import fixed_sides

    target = Target(given.backend, given.device, given.precision, given.channels_last)
    if out is not None:
        target = target.keeping(out)
    structure = target.of(traced(given.model, given.batch, shape, **given.arguments).structure)
    how: dict[str, Any] = {
        "backend": given.backend,
        "settings": target.settings,
        "threads": given.threads,
        "seed": given.seed,
        "fixed": fixed_sides(structure),
    }
    ops, without = [timed.op for timed in structure.ops], structure.details["untimed"]
    if out is None or given.dry_run:
        estimate = latency.sweep(ops, dry_run=True, **how)

        def show() -> None:
            for line in (str(estimate), *gaps(without, ())):
                say(line)

        answer({**vars(estimate), "untimed": without}, given.as_json, show)
        return
    talk = ScreenTalk()
    talk.stage(f"Profile {given.model}")
    going = f"what was measured is in {out}; the same command continues it"
    with warnings.catch_warnings(), kept_in(out, going):
        warnings.simplefilter("ignore", HoldoutWarning)  # said below, with the other notes
        profile = latency.sweep(ops, path=out, progress=talk.sweeping, **how)
    _answer(given, out, shape, profile, without)


def _answer(
    given: Profile, out: Path, shape: Shape, profile: latency.Profile, without: dict[str, int]
) -> None:
    """Prints what was measured, what was not, and the next command."""
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
        built = {"shape": shape, "batch": given.batch, **given.arguments}
        say(f"next: {advice.command('plan', given.model, **built, profile=out, budget='0.5')}")

    answer(result, given.as_json, show)


def gaps(without: dict[str, int], refused: Sequence[str]) -> list[str]:
    """Returns a line for each kind of op that the profile has no times for.

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
