"""The work of a study: every cell that has no row yet, done here or waited for where another process does it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from halpiee import __version__
from halpiee.data.opening import load
from halpiee.errors import DataError, ScoreWarning, UsageError
from halpiee.options import nested
from halpiee.sheet import Sheet
from halpiee.studies.probes import MEASURED, PROBES, QUANTITIES, Finished
from halpiee.studies.results import Row
from halpiee.studies.study import Cell, Study
from halpiee.studies.trajectory import Place
from halpiee.tasks import named
from halpiee.training.config import Settings
from halpiee.training.job import Silent, Talk
from halpiee.training.pipeline import execute, trained
from halpiee.training.preflight import open_run
from latency.device import cpu_facts

if TYPE_CHECKING:
    from halpiee.data.tensors import TensorData


Decoded = Callable[[str, int | None, torch.device], "TensorData"]
"""(source, size, device) → data that are decoded once for all cells."""


def work(study: Study, sheet: Sheet[Row], *, seeds: int, talk: Talk, only: str | None = None) -> list[Row]:
    """Does the cells that have no row, and returns the rows of all of them.

    Cells that other processes have claimed are waited for; where such a process dies, they are done here.

    Each cell is trained with the seeds 0 … ``seeds`` − 1; ``only`` names one cell, and the others are left.

    Raises:
        UsageError: an option, a cell or data that do not fit, or rows of another study.
    """
    cells = study.cells(seeds)
    if only is not None:
        cells = [cell for cell in cells if cell.name == only]
        if not cells:
            raise UsageError(
                f"--cell {only[:80]} was asked, and the study has no training of that name; --plan lists them"
            )
    check_rows(sheet, study.name, study.version)
    decoded = cache(lambda data, size, device: load(data, size=size).to(device))

    def made(cell: Cell) -> Row:
        labels = "".join(f"{axis} {study.shown(axis, label)}, " for axis, label in cell.labels.items())
        number = len({row.cell for row in sheet.rows()}) + 1
        talk.note(f"training {number} of {len(cells)}: {labels}seed {cell.seed}")
        begun = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScoreWarning)  # at a study's sparsities ties are what is studied
            values = _values(study, cell, sheet.folder, decoded)
        return Row(
            study=study.name,
            version=study.version,
            cell=cell.name,
            labels=dict(cell.labels),
            seed=cell.seed,
            values=values,
            seconds=round(time.perf_counter() - begun, 2),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=f"{cpu_facts()['model']}, torch {torch.__version__}, halpiee {__version__}",
        )

    sheet.fill(cells, made, wait=True)
    wanted = {cell.name for cell in cells}
    return [row for row in sheet.rows() if row.cell in wanted]


def check_rows(sheet: Sheet[Row], study: str, version: str) -> None:
    """Refuses a folder of another study, or of another version of this one.

    Raises:
        UsageError: it holds such rows.
    """
    for row in sheet.rows():
        if (row.study, row.version) != (study, version):
            raise UsageError(
                f"--out {sheet.folder} holds rows of {row.study} in version {row.version}, and this is {study} in "
                f"version {version}: its file, --data, --scale or another option differs; choose another --out"
            )


def settings_of(study: Study, cell: Cell, folder: Path) -> Settings:
    """Returns the settings of a cell's training.

    ``{run}`` in an option is the run that the cell comes after, in the study's folder.
    """
    earlier = folder / "runs" / cell.after if cell.after is not None else None
    given = {
        key: value.replace("{run}", str(earlier)) if isinstance(value, str) and earlier else value
        for key, value in cell.options.items()
    }
    given.setdefault("baseline", False)
    return Settings.from_dict(nested(Settings, {**given, "seed": cell.seed}), where=f"the study {study.name}")


def check_data(study: Study, data: str, size: int | None) -> None:
    """Refuses data that lacks what the study needs.

    Raises:
        DataError: fewer pixels or classes.
    """
    needs, options = study.file.needs, study.cells(1)[0].options
    task = named(options.get("task", "classification"))
    summary = task.source(data, size or options.get("size")).check()
    if summary.shape is not None and study.scale != "smallest" and min(summary.shape[1:]) < needs.pixels:
        raise DataError(
            f"the study {study.name} needs images of at least {needs.pixels} pixels a side, and --data {data} has "
            f"{summary.shape[1]}×{summary.shape[2]}; give other data, --size {needs.pixels}, or --scale smallest"
        )
    if summary.n_classes is not None and summary.n_classes < needs.classes:
        raise DataError(
            f"the study {study.name} needs {needs.classes} classes, and --data {data} has {summary.n_classes}; "
            "give other data"
        )


def _values(study: Study, cell: Cell, folder: Path, decoded: Decoded) -> dict[str, Any]:
    """Does one cell and returns its quantities."""
    s, wanted = settings_of(study, cell, folder), study.file.values
    probe = PROBES[study.file.probe]
    if probe.measure is not None:
        device = torch.device(s.device.replace("auto", "cuda" if torch.cuda.is_available() else "cpu"))
        place = Place(s, decoded(s.data, s.size, device), device, folder / "shared")
        found = probe.measure(place, probe.knobs(**cell.knobs))
        return {name: found[name] for name in wanted}
    own = folder / "runs" / cell.name
    run = open_run(s, own, Silent(), resume=(own / "settings.json").is_file())
    if s.task == "classification":
        vars(run)["data"] = decoded(s.data, s.size, run.device)
    report = execute(run) if MEASURED & set(wanted) else None
    with run.owned():
        dense, pruned = trained(run)
    finished = Finished(run, None if dense is None else dense.result(run), pruned.result(run), report)
    return {name: QUANTITIES[name](finished) for name in wanted}
