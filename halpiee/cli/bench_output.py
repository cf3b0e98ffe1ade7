"""How networks stand against one another: the table of ``halpiee bench`` on screen and as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halpiee.cli.output import screen

__all__ = ["show", "write_csv"]


def write_csv(path: Path, result: dict[str, Any]) -> None:
    """Writes a line per network and batch size, what is equal for all of them on each line."""
    import csv
    import io

    from latency._files import write

    shared = {key: result[key] for key in ("mode", "against", "threads", "clock")}
    shared |= {key: result["environment"].get(key) for key in ("device", "backend_version")}
    text = io.StringIO()
    lines = []
    for row in result["files"]:
        line = {key: value for key, value in row.items() if key not in ("speedup_ci", "device")}
        line |= {
            "runs_on": row["device"],
            "speedup_lo": row["speedup_ci"][0],
            "speedup_hi": row["speedup_ci"][1],
        }
        lines.append(line | shared)
    writer = csv.DictWriter(text, fieldnames=list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    write(path, text.getvalue())


def show(result: dict[str, Any]) -> None:
    """Prints the table; says below it where the spread supports no difference."""
    from rich.table import Table
    from rich.text import Text

    base, several = result["against"], len(result["batches"]) > 1
    clock = {"cpu": "CPU time of the calling thread", "wall": "wall time"}[result["clock"]]
    if result["mode"] == "latency":
        title = f"latency, {clock}, {result['threads']} thread{'s' * (result['threads'] > 1)}"
        columns = ["median", "predicted", "IQR", "p50", "p90", "p99", "n", "FPS"]
    else:
        title = f"throughput, {clock}, {result['callers']} at once, {result['threads']} thread(s) each"
        columns = ["FPS", "IQR", "n"]
    if all(row.get("predicted_us") is None for row in result["files"]):
        columns = [c for c in columns if c != "predicted"]
    if not several:
        title += f", batch {result['batch']}"
    table = Table(box=None, title=title, title_justify="left")
    table.add_column("")
    table.add_column("runs on")
    if several:
        table.add_column("batch", justify="right")
    for name in (*columns, f"speed-up over {base}", "95 % interval"):
        table.add_column(name, justify="right")
    unsure = []
    for row in result["files"]:
        lo, hi = row["speedup_ci"]
        if row["name"] != base and not row["difference_shown"]:
            unsure.append(row["name"] + (f" at batch {row['batch']}" if several else ""))
        cells = [
            row["name"],
            f"{row['runtime']} {row['precision']}",
            *([str(row["batch"])] if several else []),
        ]
        cells += [_cell(row, column) for column in columns]
        cells += [f"{row['speedup']:.3f}", f"{lo:.3f} … {hi:.3f}"]
        table.add_row(*(Text(cell) for cell in cells))
    console = screen()
    if not console.is_terminal:  # a pipe has no width; nothing is to be cut off
        console = screen(width=200)
    console.print(table)
    for name in unsure:
        console.print(Text(f"{name} against {base}: the spread supports no difference"))


def _cell(row: dict[str, Any], column: str) -> str:
    """Returns one number with the digits that its spread supports."""
    from halpiee.report.values import latency

    if column == "n":
        return str(row["n"])
    if column == "FPS":
        return f"{row['fps']:.3g}" if row["fps"] < 100 else f"{row['fps']:,.0f}"
    if "median_us" not in row:
        return f"{row['iqr_fps']:.3g}" if row["iqr_fps"] < 100 else f"{row['iqr_fps']:,.0f}"
    key = {"median": "median_us", "predicted": "predicted_us", "IQR": "iqr_us"}.get(column, f"{column}_us")
    return latency(row[key], None if column in ("IQR", "predicted") else row["iqr_us"])
