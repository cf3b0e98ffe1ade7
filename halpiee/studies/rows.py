"""The rows of a study, and what they come to: means over seeds with their spread and interval, as a table.

The interval is that of Student's t at 95 %, so three seeds have one 2.5 times as wide as their spread: it stands in the
CSV file; the page and the Markdown table show mean ± standard deviation, as the papers do.
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

from halpiee.sheet import Mean, Sheet
from halpiee.studies.study import Study


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


def label_text(axes: Sequence[str], labels: Sequence[str]) -> str:
    """Returns labels as text; numbers and switches come with the name of their axis."""
    plain = ("True", "False")
    return ", ".join(
        f"{axis} {label}" if len(axes) > 1 and (label in plain or label.replace(".", "").isdigit()) else label
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
        head += [f"{value.replace('_', ' ')} {label_text(t.columns, labels)}".strip() for labels in columns]
    found = [head]
    for labels in of_axes(study, t.rows):
        line = [label_text(t.rows, labels)]
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
        body.append([label_text(axes, labels), *texts])
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
                writer.writerow([*labels, value, x, *shown, mean.n])
    return out.getvalue()
