"""The page of a study: its table, its figure on the paper's axes, its cells, and the command that repeats it.

The figure shows means over seeds with their spread; what the paper prints is hollow.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from halpiee.report.page import templates
from halpiee.sheet import Mean
from halpiee.studies.rows import (
    Row,
    curves,
    label_text,
    means,
    of_axes,
    paper_value,
    table_csv,
    table_markdown,
    table_rows,
)
from halpiee.studies.study import Study
from latency._files import write


def show(study: Study, rows: Sequence[Row], folder: Path, command: str) -> list[Path]:
    """Writes table, figure and page, and returns the files.

    The ``command`` repeats the study.
    """
    figures = draw(study, rows, folder)
    files = [folder / name for name in ("table.md", "table.csv", "index.html")]
    file = study.file
    notes = "".join(f"- {note}\n" for note in file.open)
    heading = f"# {file.about}\n\n{file.source}\n\n"
    shown = f"\n![{file.about}]({figures[0].name})\n\n`{command}`\n"
    different = f"\nDifferent here:\n\n{notes}" if notes else ""
    write(files[0], f"{heading}{table_markdown(study, rows)}{shown}{different}", overwrite=True)
    write(files[1], table_csv(study, rows), overwrite=True)
    svg = figures[0].read_text(encoding="utf-8")
    head, *body = table_rows(study, rows)
    page = templates().get_template("study.html")
    html = page.render(
        file=file,
        head=head,
        body=body,
        rows=rows,
        figure=svg[svg.index("<svg") :],
        seeds=len({row.seed for row in rows}),
        hours=sum(row.seconds for row in rows) / 3600,
        command=command,
    )
    write(files[2], html, overwrite=True)
    return [*files, *figures]


COLOURS = ("#3060c0", "#d06020", "#2a8c4a", "#a03080", "#8a6d1a", "#1a8c9c", "#c03040", "#606060", "#7050c0")
MARKERS = "osD^vP*Xdhp"


def draw(study: Study, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes the figure as SVG and PNG, and returns the files."""
    found = []
    drawn = figure(study, rows)
    for ending in ("svg", "png"):
        content = io.BytesIO()
        # without the date, the same rows give the same file
        drawn.savefig(content, format=ending, dpi=150, metadata={"Date": None} if ending == "svg" else None)
        path = folder / f"{Path(study.name).stem}.{ending}"
        write(path, content.getvalue(), overwrite=True)
        found.append(path)
    return found


def figure(study: Study, rows: Sequence[Row]) -> Any:
    """Returns the figure of a study: one panel for each label of its axis of panels."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = study.name
    f = study.file.figure
    panels = of_axes(study, f.panels)
    across = min(4, len(panels))
    down = math.ceil(len(panels) / across)
    drawn = Figure(figsize=(1.4 + 3.8 * across, 0.9 + 3.0 * down), layout="constrained")
    FigureCanvasAgg(drawn)
    grid = drawn.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid, panels, strict=False):
        own = dict(zip(f.panels, panel, strict=True))
        _panel(axes, study, _with_labels(rows, f.panels, panel), own)
        axes.set_title(label_text(f.panels, panel), fontsize=10)
        axes.set_xlabel(f.xlabel or (f.x or ""))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for row in range(down):
        grid[row * across].set_ylabel(f.ylabel or f.y.replace("_", " "))
    handles, labels = grid[0].get_legend_handles_labels()
    if len(labels) > 1:
        drawn.legend(
            handles, labels, loc="outside right upper", fontsize=8, frameon=False, title=", ".join(f.series)
        )
    return drawn


def _with_labels(rows: Sequence[Row], axes: Sequence[str], labels: Sequence[str]) -> list[Row]:
    return [row for row in rows if all(row.labels[a] == label for a, label in zip(axes, labels, strict=True))]


def _panel(axes: Any, study: Study, rows: Sequence[Row], panel: Mapping[str, str]) -> None:
    f = study.file.figure
    factor = 100 if f.percent else 1
    names: list[str] = []
    heights: list[float] = []
    for number, labels in enumerate(of_axes(study, f.series)):
        label = label_text(f.series, labels)
        points = _points(study, _with_labels(rows, f.series, labels))
        if f.kind in ("layers", "bars") or f.xscale == "labels":
            names = names or [str(x) for x in points]
            xs: list[float] = [names.index(str(x)) for x in points if str(x) in names]
            points = {x: m for x, m in points.items() if str(x) in names}
        else:
            xs = [float(x) for x in points]
        ys = [factor * m.mean for m in points.values()]
        spread = [0.0 if math.isnan(m.std) else factor * m.std for m in points.values()]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        if f.kind == "bars":
            heights += [y for y in ys if math.isfinite(y)]
            count = len(of_axes(study, f.series))
            place = [x + (number - (count - 1) / 2) * 0.8 / count for x in xs]
            axes.bar(place, ys, 0.8 / count, yerr=spread, color=colour, label=label, error_kw={"lw": 1})
        else:
            small = 3 if len(xs) <= 40 else 0
            axes.plot(xs, ys, color=colour, marker=marker, ms=small, lw=1.3, label=label)
            low, high = ([y + sign * s for y, s in zip(ys, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, lw=0)
        _printed(axes, study, {**panel, **dict(zip(f.series, labels, strict=True))}, names, colour)
    if f.xscale == "log":
        axes.set_xscale("log")
    if names:
        upright = {"rotation": 90, "fontsize": 6} if len(names) > 6 else {"rotation": 20, "fontsize": 8}
        axes.set_xticks(range(len(names)), names, **upright)
    if f.kind == "bars" and heights and min(heights) > 0:
        least, most = min(heights), max(heights)
        room = max(most - least, 0.02 * most)
        axes.set_ylim(max(0.0, least - 2 * room), most + room)
    if f.xlim is not None:
        axes.set_xlim(*f.xlim)
    if f.ylim is not None:
        axes.set_ylim(*f.ylim)


def _points(study: Study, rows: Sequence[Row]) -> dict[Any, Mean]:
    """Returns x → mean of one line."""
    f = study.file.figure
    if f.kind in ("curves", "layers"):
        by_x = curves(rows, f.y, []).get((), {})
        return dict(sorted(by_x.items())) if f.kind == "curves" else by_x
    if f.x in study.file.grid:
        found = means(rows, f.y, [f.x])
        number = str if f.kind == "bars" or f.xscale == "labels" else _number
        return {number(label): found[label,] for label in study.axes[f.x] if (label,) in found}
    # x is a quantity: one point for each cell of the grid, seeds together
    axes = list(study.file.grid)
    xs, ys = means(rows, f.x or "", axes), means(rows, f.y, axes)
    return dict(sorted((xs[labels].mean, ys[labels]) for labels in ys if labels in xs))


def _number(label: str) -> Any:
    try:
        return float(label)
    except ValueError:
        return label


def _printed(axes: Any, study: Study, own: Mapping[str, str], names: Sequence[str], colour: str) -> None:
    """Draws what the paper prints of one line."""
    f = study.file.figure
    if f.kind not in ("lines", "bars") or f.x not in study.file.grid:
        return
    factor = 100 if f.percent else 1
    points = []
    for label in study.axes[f.x]:
        printed = paper_value(study, {**own, f.x: label}, f.y)
        x = names.index(label) if label in names else _number(label)
        if isinstance(printed, int | float) and isinstance(x, int | float):
            points.append((x, factor * printed))
    if points:
        line, shade = "none" if f.kind == "bars" else ":", "black" if names else colour
        axes.plot(*zip(*points, strict=True), color=shade, ls=line, marker="o", mfc="none", ms=6)
