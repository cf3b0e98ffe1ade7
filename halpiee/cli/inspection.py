"""``halpiee inspect``: what is in a profile, and how far it can be trusted."""

from __future__ import annotations

import math
from pathlib import Path

import click

from halpiee.cli.common import answer, examples, json_option

__all__ = ["command"]


@click.command(
    "inspect", epilog=examples("halpiee inspect resnet20.jsonl", "halpiee inspect resnet20.jsonl --json")
)
@click.argument("profile", type=click.Path(path_type=Path))
@json_option
def command(profile: Path, as_json: bool) -> None:
    """Show PROFILE's coverage, spread, contention, age and environment, and what speaks against trusting it."""
    import latency
    from latency.inspect import inspect

    found = inspect(latency.Profile.load(profile))

    def show() -> None:
        from rich.console import Console
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
        console = Console()
        console.print(table)
        steps = sorted({op.steps for op in found.ops})
        console.print("steps (in, out): " + "; ".join(f"{i}, {o}" for i, o in steps))
        console.print(
            f"spread {_share(found.spread_median)} median, {_share(found.spread_p95)} at the 95th percentile; "
            f"contention {_share(found.contention_median)} median; held-out cells off by "
            f"{_share(found.holdout_median)} median, {_share(found.holdout_p95)} at the 95th percentile; "
            f"{found.newest_days:.1f} to {found.oldest_days:.1f} days old"
        )
        console.print(", ".join(f"{key} {value}" for key, value in found.environment.items() if key != "id"))
        for warning in found.warnings:
            console.print(f"[yellow]note[/yellow] {warning}")

    answer({**found.as_dict(), "warnings": list(found.warnings)}, as_json, show)


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
