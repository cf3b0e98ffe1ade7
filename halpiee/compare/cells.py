"""One cell of a comparison is one run of ``halpiee train``: from its settings to a row, resumed where it was left.

A comparison's folder::

    ground/          the profile and the calibration that all cells share
    cells/KEY/       the run of a cell; a cell that another process holds is passed over
    rows.jsonl       one line a finished cell
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import halpiee
from halpiee.compare.comparison import DENSE, Comparison, Contestant, contestant
from halpiee.compare.results import Row, sheet_of
from halpiee.compare.torch_pruning import pruned_and_tuned
from halpiee.errors import OutputInUseError
from halpiee.methods.channels import uniform_counts
from halpiee.options import nested
from halpiee.selection.cost import LatencyCost
from halpiee.sheet import commit
from halpiee.training.checkpoint import read_settings, save_json
from halpiee.training.config import Settings
from halpiee.training.job import PROFILE, Run, Talk
from halpiee.training.pipeline import execute, priced
from halpiee.training.preflight import open_run
from halpiee.training.record import line_values
from latency.device import cpu_facts
from latency.files import FolderLock

SHARED = (
    "data", "width", "size", "device", "backend", "profile", "batch", "threads", "epochs", "batch_size", "weight_decay",
)  # fmt: skip
"""Options of ``halpiee train`` that a comparison has under the same name."""


@dataclass(frozen=True)
class Cell:
    """One training of a comparison; ``budget`` is a share of the dense latency, 1 for the dense network."""

    comparison: Comparison
    contestant: str
    budget: float
    seed: int

    @property
    def name(self) -> str:
        """What its folder is called; the key of its row."""
        return f"{self.contestant}-{self.budget:g}-s{self.seed}-{self.comparison.setting}"

    @property
    def dense(self) -> Cell:
        """The dense network of its seed."""
        return replace(self, contestant=DENSE, budget=1.0)

    @property
    def after(self) -> str | None:
        """The cell that must be done before."""
        return self.dense.name if self.who.needs_dense else None

    @property
    def who(self) -> Contestant:
        """What the contestant does."""
        return contestant(self.contestant)


@dataclass(frozen=True)
class Ground:
    """The run that measured profile and calibration for all cells, and the calibrated cost."""

    run: Run
    cost: LatencyCost

    @classmethod
    def of(cls, comparison: Comparison, out: Path, talk: Talk) -> Ground:
        """Measures profile and calibration, or reads them where they are; one process at a time."""
        folder = out / "ground" / comparison.setting
        dense = replace(
            settings_of(Cell(comparison, DENSE, 1.0, 0), out), budget=f"{min(comparison.budgets):g}"
        )
        while True:
            try:
                begun = (
                    folder / "settings.json"
                ).is_file()  # maybe for other budgets, whose ground is the same
                run = open_run(read_settings(folder) if begun else dense, folder, talk, resume=begun)
                with run.owned():
                    return cls(run, priced(run))
            except OutputInUseError:
                time.sleep(5.0)  # another process of this comparison is measuring

    @property
    def profile(self) -> str:
        """Where the profile lies."""
        return self.run.settings.profile or str(self.run.folder / PROFILE)

    def epochs(self, cell: Cell) -> int:
        """Returns the epochs that a cell trains."""
        times = cell.who.epochs
        if times == "flops":
            counts = uniform_counts(
                self.run.structure,
                latency_us=cell.budget * self.cost.dense_us,
                cost=self.cost,
                protect=self.run.protected,
            )
            times = self.run.macs({}) / self.run.macs(counts)
        return max(1, round(times * cell.comparison.epochs))


def cells(comparison: Comparison) -> Iterator[Cell]:
    """Yields the cells in the order of their seeds, so that what is there at any time can be compared in pairs."""
    for seed in comparison.seeds:
        for name in comparison.contestants:
            for budget in (1.0,) if name == DENSE else comparison.budgets:
                yield Cell(comparison, name, budget, seed)


def settings_of(cell: Cell, out: Path) -> Settings:
    """Returns the settings of a cell's run, without what the ground gives.

    ``out`` is the folder of the comparison, where the dense network's weights will be.
    """
    c, who = cell.comparison, cell.who
    given: dict[str, Any] = {name: getattr(c, name) for name in SHARED} | {
        "model": c.network,
        "lr": c.tuning_lr if who.pretrained else c.lr,
        "precision": "bf16" if c.bf16 else "fp32",
        "channels_last": c.bf16,
        "budget": f"{cell.budget:g}",
        "seed": cell.seed,
        "distill": "dense" if who.distilled else None,
        "distill_weight": c.distill,
        "baseline": who.distilled,
        "weights": str(_folder(out, cell.dense) / "pruned.safetensors") if who.pretrained else None,
    }
    given |= who.options
    return Settings.from_dict(nested(Settings, given, {}), where=f"the contestant {cell.contestant}")


def carry_out(cell: Cell, ground: Ground, out: Path, talk: Talk) -> Row | None:
    """Trains, exports and times a cell unless its row is there, and returns the row.

    Returns:
        The row; ``None`` where another process does the cell.
    """
    sheet = sheet_of(out)

    def made(one: Cell) -> Row | None:
        talk.stage(f"{one.contestant} at {one.budget:g}, seed {one.seed}")
        try:
            report, settings = (_outside if one.who.outside else _trained)(one, ground, out, talk)
        except OutputInUseError:
            talk.note("another process does this training")
            return None
        return _as_row(one, report, settings, sheet.row(one.after) if one.after else None)

    sheet.fill([*([cell.dense] if cell.who.needs_dense else ()), cell], made, wait=False)
    return sheet.row(cell.name)


def _folder(out: Path, cell: Cell) -> Path:
    return out / "cells" / cell.name


def _trained(cell: Cell, ground: Ground, out: Path, talk: Talk) -> tuple[dict[str, Any], Settings]:
    """Carries out the run of a cell."""
    folder = _folder(out, cell)
    settings = replace(settings_of(cell, out), profile=ground.profile, epochs=ground.epochs(cell))
    dense = _folder(out, cell.dense)
    run = open_run(settings, folder, talk, resume=(folder / "settings.json").is_file())
    calibration = ground.cost.calibration
    if calibration is not None and not (folder / "calibration.json").is_file():
        save_json(folder / "calibration.json", line_values(calibration))
    if cell.who.distilled and not cell.who.pretrained and not (folder / "dense.json").is_file():
        shutil.copyfile(dense / "pruned.safetensors", folder / "dense.safetensors")
        shutil.copyfile(dense / "pruned.json", folder / "dense.json")
    return execute(run), settings


def _outside(cell: Cell, ground: Ground, out: Path, talk: Talk) -> tuple[dict[str, Any], Settings]:
    """Carries out a cell of another library."""
    settings = replace(settings_of(cell, out), profile=ground.profile)
    dense = _folder(out, cell.dense)
    with FolderLock(_folder(out, cell)):
        report = pruned_and_tuned(
            ground.run, dense / "pruned.safetensors", settings, _folder(out, cell), talk
        )
    return {**report, "dense_us": ground.cost.dense_us}, settings


def _as_row(cell: Cell, report: dict[str, Any], settings: Settings, start: Row | None) -> Row:
    """Returns the row of a finished run; ``start`` is that of the dense network it began with."""
    before = start if cell.who.pretrained else None
    return Row(
        key=cell.name,
        contestant=cell.contestant,
        budget=cell.budget,
        seed=cell.seed,
        accuracy=report["accuracy_pruned"],
        latency_us=report["dense_us"] / report["speedup"],
        dense_us=report["dense_us"],
        setting=cell.comparison.setting,
        title=cell.comparison.title,
        network=cell.comparison.network,
        epochs=0.0 if settings.method == "repair" else settings.epochs,
        macs=report["macs_pruned"],
        dense_macs=report["macs_dense"],
        params=report["params_pruned"],
        seconds=float(report["seconds_training"]["pruned"] or 0.0),
        train_macs=report["train_macs"]["strict"],
        start_seconds=(before and before.seconds) or 0.0,
        start_macs=(before and before.train_macs) or 0.0,
        counts=report.get("widths") or {},
        commit=commit(),
        machine=machine(settings),
        date=time.strftime("%Y-%m-%d"),
        versions={
            "halpiee": halpiee.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    )


def machine(settings: Settings) -> str:
    """Returns what trained and timed: the accelerator, or the processor."""
    if settings.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return str(cpu_facts()["model"])
