"""What a study is: its file, read and checked, and the cells of its grid.

A file holds::

    about, source, open      what it is, where it is printed, what is different here
    probe                    what a cell does; ``train`` where nothing is said (see ``halpiee.studies.probes``)
    options                  options of ``halpiee train`` for all cells; ``recipe`` names a paper's settings under them
    grid                     axis → values of the option of that name; or axis → label → options of its own
    values                   the quantities of a row (see ``halpiee.studies.probes``)
    table, figure            what is shown of them
    paper                    printed values that are shown beside
    only                     option → methods that take it; it is left out with the others
    needs                    what the data must have: ``pixels``, ``classes``
    smallest                 options and axes of ``--scale smallest``

A label with ``after: OTHER`` begins where the cell of that label ended: ``{run}`` in its options is the folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from halpiee.errors import UsageError, unknown
from halpiee.options import fitted
from halpiee.recipes import find, names_in, shortened, under
from halpiee.recipes import read as recipe
from halpiee.studies.probes import PROBES, QUANTITIES
from halpiee.training.config import OPTIONS

MOST_CELLS = 100_000
"""Cells of a grid; a file of a few lines can multiply out to billions."""

SMALLEST = "smallest"
"""The scale that takes seconds, to try a study out."""


class Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How rows become a table.

    Attributes:
        rows: axes whose labels are the rows.
        columns: axes whose labels are the columns; none: the values are.
        values: quantities that are shown.
        percent: whether they are shares, shown in per cent.
        digits: after the point.
    """

    rows: tuple[str, ...]
    values: tuple[str, ...]
    columns: tuple[str, ...] = ()
    percent: bool = True
    digits: int = 1


class Figure(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How rows become a figure.

    Attributes:
        kind: ``lines`` over an axis; ``curves``, whose value is a list of (x, y); ``layers``, whose value is one number
            a layer; ``bars`` over an axis.
        y: quantity.
        x: axis of ``lines`` and ``bars``, or a quantity.
        series: axes whose labels are the lines.
        panels: axes whose labels are the panels, one beside another.
        xlabel, ylabel, xlim, ylim, xscale: as the paper has them; ``labels``: equally far apart, in the grid's order.
        percent: whether y is a share, shown in per cent.
    """

    y: str
    kind: Literal["lines", "curves", "layers", "bars"] = "lines"
    x: str | None = None
    series: tuple[str, ...] = ()
    panels: tuple[str, ...] = ()
    xlabel: str = ""
    ylabel: str = ""
    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None
    xscale: Literal["linear", "log", "labels"] = "linear"
    percent: bool = True


Labels = Annotated[list[float | int | str | bool], msgspec.Meta(min_length=1)]
Axis = Labels | Annotated[dict[str, dict[str, Any]], msgspec.Meta(min_length=1)]


class Smallest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What is different at the smallest scale: options over all others, and values or labels of axes."""

    options: dict[str, Any] = msgspec.field(default_factory=dict)
    grid: dict[str, Labels] = msgspec.field(default_factory=dict)


class Needs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What the data must have: pixels of a side, classes; at the least."""

    pixels: Annotated[int, msgspec.Meta(ge=1)] = 1
    classes: Annotated[int, msgspec.Meta(ge=2)] = 2


class File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A study's file."""

    about: str
    options: dict[str, Any]
    grid: dict[str, Axis]
    values: tuple[str, ...]
    table: Table
    figure: Figure
    source: str = ""
    open: tuple[str, ...] = ()
    probe: str = "train"
    paper: tuple[dict[str, Any], ...] = ()
    only: dict[str, list[str]] = msgspec.field(default_factory=dict)
    needs: Needs = Needs()
    smallest: Smallest = Smallest()


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    labels: Mapping[str, str]  # axis → label
    seed: int  # of the training
    options: Mapping[str, Any]  # of ``halpiee train``, by name
    knobs: Mapping[str, Any] = field(default_factory=dict)  # of the probe, by name
    after: str | None = None  # name of the cell whose run it begins with; None: it begins with nothing

    @property
    def name(self) -> str:
        """Name of its folder: labels and seed, with a hash that tells apart labels that are spelt alike."""
        words = [re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-") for label in self.labels.values()]
        text = json.dumps([dict(self.labels), self.seed], sort_keys=True)
        tail = hashlib.sha256(text.encode()).hexdigest()[:6]
        return f"{'_'.join(words)[:80]}_seed{self.seed}_{tail}".lstrip("_")


@dataclass(frozen=True)
class Study:
    """A study at a scale."""

    name: str  # of its file, or its path
    file: File  # what it holds
    scale: float | Literal["smallest"] = 1.0  # share of the paper's epochs, or ``smallest``
    over: Mapping[str, Any] = field(default_factory=dict)  # options that were typed over those of the file

    @property
    def version(self) -> str:
        """A hash of everything that decides what a cell does; rows with different hashes are never mixed."""
        shown = ("about", "source", "open", "table", "figure", "paper")
        decides = {key: value for key, value in msgspec.to_builtins(self.file).items() if key not in shown}
        text = json.dumps([decides, self.scale, dict(self.over)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def axes(self) -> dict[str, list[str]]:
        """Axis → labels, at this scale."""
        return {axis: [label for label, _ in self._steps(axis)] for axis in self.file.grid}

    def cells(self, seeds: int) -> list[Cell]:
        """Returns the cells, seed by seed, those that others begin with before them.

        Raises:
            UsageError: an option that is not known, or a value of another type or range.
        """
        count = seeds * math.prod(len(labels) for labels in self.axes.values())
        if count > MOST_CELLS:
            raise UsageError(
                f"the study {self.name} has {count:,} trainings, and at most {MOST_CELLS:,} are taken; leave out values"
            )
        found: list[Cell] = []
        for seed in range(seeds):
            for chosen in itertools.product(*(self._steps(axis) for axis in self.file.grid)):
                found.append(self._cell(dict(zip(self.file.grid, chosen, strict=True)), seed))
        names = {None, *(cell.name for cell in found)}
        if missing := next((cell.after for cell in found if cell.after not in names), None):
            raise UsageError(
                f"the study {self.name} has a training after {missing}, which is not in its grid"
            )
        return sorted(found, key=lambda cell: cell.after is not None)

    def shown(self, axis: str, label: str) -> str:
        """Returns a label as tables and figures print it: before it the network, where another than its own trained."""
        own = dict(self._steps(axis)).get(label, {}).get("model")
        trained = {**(self.file.smallest.options if self.scale == SMALLEST else {}), **self.over}.get("model")
        return label if own is None or trained in (None, own) else f"{trained} (for {label})"

    def _steps(self, axis: str) -> list[tuple[str, dict[str, Any]]]:
        """Returns the labels of an axis with the options of each."""
        values = self.file.grid[axis]
        chosen = self.file.smallest.grid.get(axis) if self.scale == SMALLEST else None
        if isinstance(values, dict):
            labels = list(values) if chosen is None else [str(label) for label in chosen]
            if (odd := next((label for label in labels if label not in values), None)) is not None:
                raise UsageError(
                    f"the study {self.name} has no {axis} {odd!r}; {unknown(odd, values, 'see its grid')}"
                )
            return [(label, dict(values[label])) for label in labels]
        return [(f"{value}", {axis: value}) for value in (values if chosen is None else chosen)]

    def _cell(self, chosen: Mapping[str, tuple[str, dict[str, Any]]], seed: int) -> Cell:
        labels = {axis: label for axis, (label, _) in chosen.items()}
        given = dict(self.file.options)
        after = None
        for axis, (_, own) in chosen.items():
            own = dict(own)
            if "after" in own:
                earlier = {**labels, axis: str(own.pop("after"))}
                after = Cell(earlier, seed, {}).name
            given |= own
        if self.scale == SMALLEST:
            given |= self.file.smallest.options
        given |= self.over
        options, knobs = self._resolved(given)
        if isinstance(self.scale, float) and self.scale < 1:
            options = shortened(options, self.scale)
            if "onward" in knobs:
                knobs["onward"] = shortened({"epochs": knobs["onward"]}, self.scale)["epochs"]
        return Cell(labels, seed, options, knobs, after)

    def _resolved(self, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the options of the training, a recipe's under them, and the knobs of the probe."""
        what = f"the study {self.name}"
        named = given.pop("recipe", None)
        lower = {} if named is None else _recipe(str(named)).options
        known = {f.name for f in fields(PROBES[self.file.probe].knobs)}
        plain = {key.replace("-", "_"): value for key, value in given.items()}
        knobs = {key: value for key, value in plain.items() if key in known}
        typed: dict[str, Any] = {}
        method = str(plain.get("method", lower.get("method", "iee")))
        for name, value in plain.items():
            if name in knobs or (name in self.file.only and method not in self.file.only[name]):
                continue
            if isinstance(value, str):
                value = value.replace("{method}", method)
            if name not in OPTIONS:
                close = unknown(name, {*OPTIONS, *known, "recipe"}, "see `halpiee train --help`")
                raise UsageError(
                    f"{what} has the option {name[:80]!r}, which `halpiee train` does not know; {close}"
                )
            typed |= fitted(OPTIONS[name].owner, {name: value}, where=what)
        return {**under(lower, typed), **typed}, fitted(PROBES[self.file.probe].knobs, knobs, where=what)


def scale_of(text: str) -> float | Literal["smallest"]:
    """Returns the scale that a text names; refuses what is neither a share nor ``smallest``."""
    if text == SMALLEST:
        return "smallest"
    with suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise UsageError(
        f"--scale {text[:40]} was asked; give a share of the paper's epochs above 0 and up to 1, or `smallest`"
    )


_recipe = cache(recipe)
"""Reads a recipe once for all cells."""


def names() -> tuple[str, ...]:
    """Returns the names of the studies that come with the package, sorted."""
    return names_in("halpiee.studies")


def read(
    study: str | Path, *, scale: float | Literal["smallest"] = 1.0, over: Mapping[str, Any] | None = None
) -> Study:
    """Returns a study by its name, or one's own by the path of its file.

    Raises:
        UsageError: no such study or file, one that is no study, an unknown quantity, axis or probe: each with the
            nearest that is known.
    """
    name = str(study)
    what = f"the study {name}"
    values = find(study, "halpiee.studies", what=what, kind="study", listing="halpiee study --list")
    try:
        found = msgspec.convert(values, File)
    except (msgspec.ValidationError, OverflowError, RecursionError, UnicodeError) as error:
        raise UsageError(f"{what} is no study: {error}; see docs/studies.md for what a file holds") from error
    _check(found, what)
    made = Study(name, found, scale, dict(over or {}))
    made.cells(1)
    return made


def _check(file: File, what: str) -> None:
    """Refuses unknown names of quantities, axes and probes."""
    if file.probe not in PROBES:
        raise UsageError(
            f"{what} has the probe {file.probe!r}; {unknown(file.probe, PROBES, _listed(PROBES))}"
        )
    quantities = {*QUANTITIES, *PROBES[file.probe].values}
    f, t = file.figure, file.table
    printed = [key for row in file.paper for key in row if key not in file.values]
    shown: list[tuple[str, Sequence[str], set[str]]] = [
        ("quantity", file.values, quantities),
        ("quantity", [*t.values, f.y], set(file.values)),
        ("axis", [*t.rows, *t.columns, *f.series, *f.panels, *printed, *file.smallest.grid], set(file.grid)),
    ]
    for kind, names, known in shown:
        for name in names:
            if name not in known:
                raise UsageError(f"{what} has no {kind} {name!r}; {unknown(name, known, _listed(known))}")
    by_cell = f.x is not None and f.x not in file.grid  # one point for each cell
    for where, axes in (("table", {*t.rows, *t.columns}), ("figure", {*f.series, *f.panels, f.x})):
        if (lost := set(file.grid) - axes) and not (where == "figure" and by_cell):
            raise UsageError(
                f"{what} has an axis {min(lost)!r} that its {where} does not show, so that means would run over it; "
                f"name it under {where}"
            )


def _listed(known: Mapping[str, Any] | set[str]) -> str:
    return f"known are {', '.join(sorted(known))}"
