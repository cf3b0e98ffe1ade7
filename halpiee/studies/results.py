"""The rows of a study, and its page: table, figure on the paper's axes, cells, and the command that repeats it.

Means over seeds come with their spread and interval. The interval is that of Student's t at 95 %, so three seeds have
one 2.5 times as wide as their spread: it stands in the CSV file; the page and the Markdown table show mean ± standard
deviation, as the papers do. In the figure, what the paper prints is hollow.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from halpiee.report.page import templates
from halpiee.sheet import Mean, Sheet
from halpiee.studies.study import Study
from latency.files import write


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one cell.

    Attributes:
        study: its name.
        version: of the study's file, data and scale.
        cell: its name.
        labels: axis → label.
        seed: of the training.
        values: quantity → number, list of (x, y), or layer → number.
        seconds: wall time.
        date: when it ended, UTC.
        machine: processor and versions, in words.
    """

    study: str
    version: str
    cell: str
    labels: dict[str, str]
    seed: int
    values: dict[str, Any]
    seconds: float
    date: str
    machine: str


def sheet_of(folder: Path) -> Sheet[Row]:
    """Returns the rows of a study's folder."""
    return Sheet(folder, Row, lambda row: row.cell, "a study")


def means(rows: Sequence[Row], value: str, axes: Sequence[str]) -> dict[tuple[str, ...], Mean]:
    """Returns labels of some axes → mean of a value over the seeds and all other axes."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        number = row.values.get(value)
        if isinstance(number, int | float):
            groups.setdefault(tuple(row.labels[a] for a in axes), []).append(float(number))
    return {labels: Mean.of(found) for labels, found in groups.items()}


def curves(rows: Sequence[Row], value: str, axes: Sequence[str]) -> dict[tuple[str, ...], dict[Any, Mean]]:
    """Returns labels → x, or layer → mean of what a list or mapping holds there, over the seeds."""
    groups: dict[tuple[str, ...], dict[Any, list[float]]] = {}
    for row in rows:
        points = row.values.get(value)
        if isinstance(points, list | dict):
            pairs = points.items() if isinstance(points, dict) else ((float(x), y) for x, y in points)
            into = groups.setdefault(tuple(row.labels[a] for a in axes), {})
            for x, y in pairs:
                if y is not None:
                    into.setdefault(x, []).append(float(y))
    return {labels: {x: Mean.of(ys) for x, ys in found.items()} for labels, found in groups.items()}


def of_axes(study: Study, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the labels of some axes, each with each, in their order; one empty tuple where there is no axis."""
    labels = study.axes
    return list(itertools.product(*(labels[name] for name in names)))


def label_text(study: Study, axes: Sequence[str], labels: Sequence[str]) -> str:
    """Returns labels as text; numbers and switches come with the name of their axis, networks as what trained."""
    bare: Callable[[str], bool] = lambda text: text in ("True", "False") or text.replace(".", "").isdigit()  # noqa: E731
    return ", ".join(
        f"{axis} {label}" if len(axes) > 1 and bare(label) else study.shown(axis, label)
        for axis, label in zip(axes, labels, strict=True)
    )


def table_rows(study: Study, rows: Sequence[Row]) -> list[list[str]]:
    """Returns the table as texts, its head first."""
    t = study.file.table
    scalar = [v for v in t.values if any(isinstance(row.values.get(v), int | float) for row in rows)]
    lists = [v for v in t.values if v not in scalar]
    if lists and not scalar:
        return _listed(study, rows, lists[0])
    axes = [*t.rows, *t.columns]
    columns = of_axes(study, t.columns)
    by_value = {value: means(rows, value, axes) for value in scalar}
    head = [", ".join(t.rows)]
    for value in scalar:
        head += [
            f"{value.replace('_', ' ')} {label_text(study, t.columns, labels)}".strip() for labels in columns
        ]
    found = [head]
    for labels in of_axes(study, t.rows):
        line = [label_text(study, t.rows, labels)]
        for value in scalar:
            for column in columns:
                key = (*labels, *column)
                mean = by_value[value].get(key)
                text = "–" if mean is None else mean.text(percent=t.percent, digits=t.digits)
                printed = paper_value(study, dict(zip(axes, key, strict=True)), value)
                if isinstance(printed, int | float):
                    printed = f"{printed * (100 if t.percent else 1):.{t.digits}f}"
                line.append(text if printed is None else f"{text} ({printed})")
        found.append(line)
    return found


def _listed(study: Study, rows: Sequence[Row], value: str) -> list[list[str]]:
    """Returns a table of a list or of layers: one column for each x; where there are many, one row."""
    t = study.file.table
    axes = [*t.rows, *t.columns]
    found = curves(rows, value, axes)
    xs = list(dict.fromkeys(x for by_x in found.values() for x in by_x))
    head = [", ".join(axes), *(f"{x:g}" if isinstance(x, float) else str(x) for x in xs)]
    body = []
    for labels in of_axes(study, axes):
        by_x = found.get(labels, {})
        texts = [by_x[x].text(percent=t.percent, digits=t.digits) if x in by_x else "–" for x in xs]
        body.append([label_text(study, axes, labels), *texts])
    return [head, *body] if len(xs) <= 12 else [list(line) for line in zip(head, *body, strict=True)]


def paper_value(study: Study, labels: Mapping[str, str], value: str) -> object | None:
    """Returns what the paper prints for some labels, if it does."""
    for printed in study.file.paper:
        own = {key: str(label) for key, label in printed.items() if key in study.file.grid}
        if value in printed and all(own.get(axis) == label for axis, label in labels.items()):
            found: object = printed[value]
            return found
    return None


def table_markdown(study: Study, rows: Sequence[Row]) -> str:
    """Returns the table in Markdown."""
    head, *body = table_rows(study, rows)
    rule = ["---", *["---:"] * (len(head) - 1)]
    clean: Callable[[str], str] = lambda text: text.replace("|", "\\|")  # noqa: E731
    return "".join(f"| {' | '.join(map(clean, line))} |\n" for line in (head, rule, *body))


def table_csv(study: Study, rows: Sequence[Row]) -> str:
    """Returns one line for each cell of the grid and quantity: mean, standard deviation, half interval, seeds."""
    axes = list(study.file.grid)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*axes, "quantity", "x", "mean", "std", "ci95", "n"])
    for value in study.file.values:
        numbers: dict[tuple[str, ...], dict[Any, Mean]] = curves(rows, value, axes)
        numbers |= {labels: {"": mean} for labels, mean in means(rows, value, axes).items()}
        for labels, by_x in numbers.items():
            for x, mean in by_x.items():
                shown = ("" if math.isnan(v) else f"{v:.6g}" for v in (mean.mean, mean.std, mean.half))
                writer.writerow([*map(study.shown, axes, labels), value, x, *shown, mean.n])
    return out.getvalue()


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
        shown=study.shown,
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
        axes.set_title(label_text(study, f.panels, panel), fontsize=10)
        axes.set_xlabel(f.xlabel or (f.x or ""))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for row in range(down):
        grid[row * across].set_ylabel(f.ylabel or f.y.replace("_", " "))
    handles, labels = grid[0].get_legend_handles_labels()
    if f.series:
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
        label = label_text(study, f.series, labels)
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
        turn = 90 if len(names) > 6 else 20 if max(map(len, names)) > 6 else 0
        shown = range(0, len(names), math.ceil(len(names) / 30))  # more names do not fit into a panel
        axes.set_xticks(shown, [names[i] for i in shown], rotation=turn, fontsize=6 if turn == 90 else 8)
    elif f.xlabel == "epoch":
        axes.xaxis.get_major_locator().set_params(integer=True)
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
