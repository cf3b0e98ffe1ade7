"""``halpiee bench``: ONNX files timed side by side, interleaved."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from halpiee.cli.common import answer, examples, json_option
from halpiee.errors import UsageError

__all__ = ["command"]


@click.command(
    "bench", epilog=examples("halpiee bench runs/demo/dense.onnx runs/demo/pruned.onnx --against dense")
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--against", help="Name (file name without .onnx) that ratios are taken against.  [default: the first]"
)
@click.option("--batch", default=1, show_default=True, help="Images per inference.")
@click.option("--threads", default=1, show_default=True, help="Threads of the runtime.")
@click.option("--rounds", default=30, show_default=True, help="Interleaved rounds.")
@json_option
def command(
    files: tuple[Path, ...], against: str | None, batch: int, threads: int, rounds: int, as_json: bool
) -> None:
    """Time FILES side by side: latency with its spread, FPS, and the ratio with its interval."""
    names = [f.stem for f in files]
    if len(set(names)) < len(names):
        names = [str(f) for f in files]
    base = against or names[0]
    if base not in names:
        raise UsageError(f"--against {base} was asked; the files are named {', '.join(names)}")
    for file in files:
        if not file.is_file():
            raise UsageError(f"{file} was asked for, and there is no such file; check the path")
    from latency.benchmark import compare

    found = compare(dict(zip(names, files, strict=True)), rounds=rounds, threads=threads, batch=batch)
    rows: list[dict[str, Any]] = []
    for name in names:
        ratio = found.ratio(base, name)
        rows.append(
            {
                "name": name,
                **asdict(found[name]),
                "fps": batch * 1e6 / found[name].median_us,
                "speedup": ratio.median,
                "speedup_ci": [ratio.lo, ratio.hi],
            }
        )

    def show() -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None)
        for title in ("", "median µs", "IQR µs", "n", "FPS", f"speed-up over {base}", "95 % interval"):
            table.add_column(title, justify="left" if not title else "right")
        for row in rows:
            lo, hi = row["speedup_ci"]
            sure = "" if lo > 1 or hi < 1 or row["name"] == base else "  (no difference shown)"
            table.add_row(
                row["name"],
                f"{row['median_us']:.1f}",
                f"{row['iqr_us']:.1f}",
                str(row["n"]),
                f"{row['fps']:.0f}",
                f"{row['speedup']:.3f}",
                f"{lo:.3f} … {hi:.3f}{sure}",
            )
        Console().print(table)

    answer({"batch": batch, "threads": threads, "rounds": rounds, "files": rows}, as_json, show)
