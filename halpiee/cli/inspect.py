"""``halpiee inspect``: what a profile holds and how far to trust it; ``pack`` sorts one, ``merge`` joins several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from halpiee import ranges
from halpiee.cli.options import Answered, check_picture, verb
from halpiee.cli.output import answer, screen
from halpiee.options import described, option
from latency._files import check_place

if TYPE_CHECKING:
    from latency.inspect import Inspection


@dataclass(frozen=True, kw_only=True)
class Inspect(Answered):
    """The profile that is shown, and what is written."""

    profile: Path = field(metadata=described("A profile.", argument=True))
    plot: Path | None = option(None, "Draw staircases and heat maps per op: a new .svg or .png file.")
    tables: ranges.Rounds | None = option(None, "Draw only this many ops, the slowest first.", unset="all")
    export: Path | None = option(None, "Write the cells: a new .csv or .parquet file.")


@verb(
    "inspect",
    Inspect,
    examples=(
        "halpiee inspect resnet20.jsonl",
        "halpiee inspect resnet20.jsonl --plot staircases.svg",
        "halpiee inspect resnet20.jsonl --export cells.csv",
    ),
)
def command(given: Inspect) -> None:
    """Show PROFILE's coverage, spread, contention, age and environment, and warn where it should not be trusted."""
    import latency
    from latency.inspect import inspect

    if given.plot is not None:
        check_picture(given.plot)
    if given.export is not None:
        check_place(given.export)
    loaded = latency.Profile.load(given.profile)
    if given.export is not None:
        from latency.profile_io import export

        export(loaded, given.export)
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
        for written in (given.plot, given.export):
            if written is not None:
                screen().print(f"written: {written}")

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
    steps = sorted({op.steps for op in found.ops})
    console.print("steps (in, out): " + "; ".join(f"{i}, {o}" for i, o in steps))
    console.print(
        f"spread {_share(found.spread_median)} median, {_share(found.spread_p95)} at the 95th percentile; "
        f"contention {_contention(found.contention_median)}; held-out cells off by "
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


def _contention(median: float) -> str:
    return "not measured" if math.isnan(median) else f"{_share(median)} median"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
