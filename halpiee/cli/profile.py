"""``halpiee profile`` measures the ops of a network on this device, and names the ops that have no times.

``halpiee inspect`` shows what a profile holds and how far to trust it, ``pack`` sorts one, ``merge`` joins several.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from halpiee import advice, ranges
from halpiee.cli.options import Answered, Imaged, check_picture, verb
from halpiee.cli.output import ScreenTalk, answer, kept_in, say, screen
from halpiee.errors import HoldoutWarning
from halpiee.options import described, option
from halpiee.shared_options import RUNTIME, Batched, Seeded, Threaded

if TYPE_CHECKING:
    import latency
    from halpiee.inputs import Shape
    from latency.inspect import Inspection


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
    """Returns a line for each kind of op without an entry in any profile, and for each that was refused here."""
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


@dataclass(frozen=True, kw_only=True)
class Inspect(Answered):
    """The profile that is shown, and what is written."""

    profile: Path = field(metadata=described("A profile.", argument=True))
    plot: Path | None = option(None, "Draw staircases and heat maps per op: a new .svg or .png file.")
    tables: ranges.Rounds | None = option(None, "Draw only this many ops, the slowest first.", unset="all")


@verb(
    "inspect",
    Inspect,
    examples=(
        "halpiee inspect resnet20.jsonl",
        "halpiee inspect resnet20.jsonl --plot staircases.svg",
    ),
)
def inspect(given: Inspect) -> None:
    """Show PROFILE's coverage, spread, contention, age and environment, and warn where it should not be trusted."""
    import latency
    from latency.inspect import inspect

    if given.plot is not None:
        check_picture(given.plot)
    loaded = latency.Profile.load(given.profile)
    if given.plot is not None and loaded.cells:
        from latency.inspect import draw

        draw(loaded, given.plot, tables=given.tables)
    found = inspect(loaded)
    warnings = list(found.warnings)
    if not loaded.cells:
        warnings.append(
            f"{given.profile} holds no cells: its sweep was cut short; the `halpiee profile MODEL … --out "
            f"{given.profile}` that began it continues it"
        )

    def show() -> None:
        if not loaded.cells:
            screen().print(warnings[-1])
            return
        _show(found, warnings)
        if given.plot is not None:
            screen().print(f"written: {given.plot}")

    answer({**found.as_dict(), "warnings": warnings}, given.as_json, show)


def _show(found: Inspection, warnings: Sequence[str]) -> None:
    """Prints the tables of a profile, and notes on it."""
    from rich.table import Table

    table = Table(box=None)
    table.add_column("op", overflow="fold")
    for title in ("widest", "cells", "µs", "held out: off by"):
        table.add_column(title, justify="right", no_wrap=True)
    for op in found.ops:
        table.add_row(
            op.op.replace("batch_norm", "bn"),
            f"{op.c_in}→{op.c_out}",
            f"{op.cells}/{op.edges}",
            f"{op.dense_us:.1f}",
            f"{op.holdout}: {_share(op.holdout_median)}, ≤ {_share(op.holdout_worst)}" if op.holdout else "–",
        )
    console = screen()
    console.print(table)
    steps, median = sorted({op.steps for op in found.ops}), found.contention_median
    console.print("steps (in, out): " + "; ".join(f"{i}, {o}" for i, o in steps))
    console.print(
        f"spread {_share(found.spread_median)} median, {_share(found.spread_p95)} at the 95th percentile; "
        f"contention {'not measured' if math.isnan(median) else f'{_share(median)} median'}; held-out cells off by "
        f"{_share(found.holdout_median)} median, {_share(found.holdout_p95)} at the 95th percentile by time, "
        f"{_share(found.holdout_p95_cells)} with all cells alike; "
        f"{found.newest_days:.1f} to {found.oldest_days:.1f} days old"
    )
    console.print(", ".join(f"{key} {value}" for key, value in found.environment.items() if key != "id"))
    for warning in warnings:
        console.print(f"note: {warning}", style="yellow")


@dataclass(frozen=True, kw_only=True)
class Pack(Answered):
    """The profile that is packed."""

    profile: Path = field(metadata=described("A profile.", argument=True))
    out: Path = field(metadata=described("The packed profile: a new file."))


@verb("pack", Pack, examples=("halpiee pack resnet20.jsonl --out resnet20-packed.jsonl",))
def pack(given: Pack) -> None:
    """Write PROFILE sorted and without superseded lines, so that two versions compare line by line."""
    import latency

    loaded = latency.Profile.load(given.profile)
    loaded.save(given.out)
    answer(
        {"out": str(given.out), "cells": len(loaded.cells)},
        given.as_json,
        lambda: click.echo(f"{len(loaded.cells)} cells in {given.out}"),
    )


@dataclass(frozen=True, kw_only=True)
class Merge(Answered):
    """The profiles that are joined."""

    profiles: tuple[Path, ...] = field(metadata=described("Profiles of one device.", argument=True))
    out: Path = field(metadata=described("The joined profile: a new file."))


@verb("merge", Merge, examples=("halpiee merge gpu0.jsonl gpu1.jsonl --out resnet50.jsonl",))
def merge(given: Merge) -> None:
    """Join PROFILES of one device: the newest of two measurements counts; differences beyond 5 % are listed."""
    import latency
    from latency.profile_io import conflicts

    loaded = [latency.Profile.load(path) for path in given.profiles]
    joined = loaded[0].merge(*loaded[1:])
    apart = conflicts(loaded)
    joined.save(given.out)

    def show() -> None:
        click.echo(f"{len(joined.cells)} cells of {len(loaded)} profiles in {given.out}")
        for one in apart[:10]:
            click.echo(f"  {one}")
        if len(apart) > 10:
            click.echo(f"  and {len(apart) - 10} more")

    answer(
        {"out": str(given.out), "cells": len(joined.cells), "conflicts": [vars(one) for one in apart]},
        given.as_json,
        show,
    )


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
