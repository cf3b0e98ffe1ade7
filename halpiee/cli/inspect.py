"""``halpiee inspect``, ``pack``, ``merge``: what is in a profile, and how far it can be trusted; joining profiles."""

from __future__ import annotations

import math
from pathlib import Path

import click

from halpiee import ranges
from halpiee.cli.options import Ranged, examples, json_option
from halpiee.cli.output import answer, screen
from halpiee.cli.plan_curve import check_picture
from latency._files import check_place

__all__ = ["command", "merge", "pack"]


@click.command(
    "inspect",
    epilog=examples(
        "halpiee inspect resnet20.jsonl",
        "halpiee inspect resnet20.jsonl --plot staircases.svg",
        "halpiee inspect resnet20.jsonl --export cells.csv",
    ),
)
@click.argument("profile", type=click.Path(path_type=Path))
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Draw staircases and heat maps per op: a new .svg or .png file.",
)
@click.option("--tables", type=Ranged(ranges.Rounds), help="Draw only so many ops, the slowest first.")
@click.option(
    "--export", "cells", type=click.Path(path_type=Path), help="Write the cells: a new .csv or .parquet file."
)
@json_option
def command(profile: Path, plot: Path | None, tables: int | None, cells: Path | None, as_json: bool) -> None:
    """Show PROFILE's coverage, spread, contention, age and environment, and what speaks against trusting it."""
    import latency
    from latency.inspect import inspect

    if plot is not None:
        check_picture(plot)
    if cells is not None:
        check_place(cells)
    loaded = latency.Profile.load(profile)
    if cells is not None:
        from latency.tabular import export

        export(loaded, cells)
    if plot is not None and loaded.cells:
        from latency.pictures import draw

        draw(loaded, plot, tables=tables)
    found = inspect(loaded)
    warnings = list(found.warnings)
    if not loaded.cells:
        warnings.append(
            f"{profile} holds no cells: its sweep was cut short; the `halpiee profile MODEL … --out {profile}` that "
            "began it continues it"
        )

    def show() -> None:
        if not loaded.cells:
            screen().print(warnings[-1])
            return
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
                f"{op.holdout}: {_share(op.holdout_median)}, ≤ {_share(op.holdout_worst)}"
                if op.holdout
                else "–",
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
        for written in (plot, cells):
            if written is not None:
                console.print(f"written: {written}")

    answer({**found.as_dict(), "warnings": warnings}, as_json, show)


@click.command("pack", epilog=examples("halpiee pack resnet20.jsonl --out resnet20-packed.jsonl"))
@click.argument("profile", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The packed profile: a new file.")
@json_option
def pack(profile: Path, out: Path, as_json: bool) -> None:
    """Write PROFILE sorted and without superseded lines, so that two versions compare line by line."""
    import latency

    loaded = latency.Profile.load(profile)
    loaded.save(out)
    answer(
        {"out": str(out), "cells": len(loaded.cells)},
        as_json,
        lambda: click.echo(f"{len(loaded.cells)} cells in {out}"),
    )


@click.command("merge", epilog=examples("halpiee merge gpu0.jsonl gpu1.jsonl --out resnet50.jsonl"))
@click.argument("profiles", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The joined profile: a new file.")
@json_option
def merge(profiles: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Join PROFILES of one device; of cells measured twice the newest counts, and differences beyond 5 % are named."""
    import latency
    from latency.merging import conflicts

    loaded = [latency.Profile.load(path) for path in profiles]
    joined = loaded[0].merge(*loaded[1:])
    apart = conflicts(loaded)
    joined.save(out)

    def show() -> None:
        click.echo(f"{len(joined.cells)} cells of {len(profiles)} profiles in {out}")
        for one in apart[:10]:
            click.echo(f"  {one}")
        if len(apart) > 10:
            click.echo(f"  and {len(apart) - 10} more")

    answer(
        {"out": str(out), "cells": len(joined.cells), "conflicts": [vars(one) for one in apart]},
        as_json,
        show,
    )


def _contention(median: float) -> str:
    return "not measured" if math.isnan(median) else f"{_share(median)} median"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
