"""A whole comparison on a toy: every run real, only the clock is a formula; interrupted, it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from halpiee.cli.app import program
from halpiee.compare import torch_pruning
from halpiee.compare.cells import Cell, Ground, carry_out, cells
from halpiee.compare.comparison import read_comparison
from halpiee.compare.results import read_rows
from halpiee.compare.torch_pruning import bisected
from halpiee.errors import BudgetError
from halpiee.training.checkpoint import load_weights
from halpiee.training.job import Run
from latency.files import FolderLock
from tests.training.talk import Quiet
from tests.training.test_run import toy, write_profile

__all__ = ["toy"]

NAMES = ["dense", "uniform", "uniform-flops", "early", "repaired-distilled", "halp-joint", "l1"]


@pytest.fixture(scope="module")
def file(toy: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    profile = write_profile(folder / "profile.jsonl")
    path = folder / "toy.yaml"
    path.write_text(
        f"network: toy:net\ndata: toy:data\nprofile: {profile}\nbudgets: [0.5]\nseeds: [0]\nepochs: 2\n"
        f"batch_size: 12\ncontestants: [{', '.join(NAMES)}]\n"
    )
    return path


@pytest.fixture(scope="module")
def out(file: Path) -> Path:
    """The folder of a comparison that was interrupted in its second cell and went on."""
    comparison, folder = read_comparison(file), file.parent / "out"
    folder.mkdir()
    ground = Ground.of(comparison, folder, Quiet())
    first, second, *_ = cells(comparison)
    assert carry_out(first, ground, folder, Quiet()) is not None
    with pytest.raises(KeyboardInterrupt):
        carry_out(second, ground, folder, Quiet(("pruned", 7)))
    assert [row.contestant for row in read_rows(folder)] == ["dense"]
    done = CliRunner().invoke(
        program,
        ["compare", str(file), "--out", str(folder), "--json"],
        catch_exceptions=False,
        standalone_mode=False,
    )
    assert json.loads(done.stdout)["rows"] == len(NAMES)
    return folder


pytestmark = pytest.mark.slow  # trains and exports seven small networks


def test_every_cell_has_one_row_whose_latency_is_within_its_budget(out: Path) -> None:
    rows = {row.contestant: row for row in read_rows(out)}
    assert list(rows) == NAMES
    dense = 3 * 4 + 0.25 * (3 * 8 + 8 * 12 + 12 * 6) + 1 + 1.2
    for name, row in rows.items():
        a, b = row.counts["conv1"], row.counts["conv2"]
        used = 3 * 4 + 0.25 * (3 * a + a * b + b * 6) + 1 + 0.1 * b
        assert (a, b) == (8, 12) if name == "dense" else used <= 0.5 * dense + 1e-9
        assert row.macs == 36 * 9 * (3 * a + a * b) + b * 6
        assert row.latency_us > 0
        assert row.commit
        assert row.date


@pytest.mark.parametrize("budgets", [(0.7,), (0.5, 0.3)])
def test_budgets_that_come_later_stand_on_the_same_ground(
    file: Path, out: Path, budgets: tuple[float, ...]
) -> None:
    later = Ground.of(replace(read_comparison(file), budgets=budgets), out, Quiet())
    assert later.cost.calibration == Ground.of(read_comparison(file), out, Quiet()).cost.calibration


def test_what_a_training_costs_is_its_own_and_that_of_what_it_starts_from(out: Path) -> None:
    rows: dict[str, Any] = {row.contestant: row for row in read_rows(out)}
    images = 2 * 120  # of the two epochs
    assert rows["dense"].train_macs == 3 * images * rows["dense"].macs
    assert rows["uniform"].train_macs == pytest.approx(3 * images * rows["uniform"].macs)
    assert rows["uniform"].start_macs == rows["early"].start_macs == 0
    assert rows["repaired-distilled"].start_macs == rows["l1"].start_macs == rows["dense"].train_macs
    quarter = 5 / 20
    early = quarter * rows["dense"].macs + (1 - quarter) * rows["early"].macs
    assert rows["early"].train_macs == pytest.approx(3 * images * early)


def test_equal_flops_are_as_many_epochs_as_the_dense_training_pays_for(out: Path) -> None:
    rows: dict[str, Any] = {row.contestant: row for row in read_rows(out)}
    assert rows["uniform-flops"].epochs == round(2 * rows["dense"].macs / rows["uniform"].macs)
    assert rows["uniform-flops"].counts == rows["uniform"].counts == rows["l1"].counts


def test_the_interrupted_cell_ends_as_if_it_had_not_been(file: Path, out: Path, tmp_path: Path) -> None:
    comparison = read_comparison(file)
    ground = Ground.of(comparison, tmp_path, Quiet())
    cell = Cell(comparison, "uniform", 0.5, 0)
    carry_out(cell, ground, tmp_path, Quiet())
    a, b = (load_weights(f / "cells" / cell.name / "pruned.safetensors") for f in (out, tmp_path))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_cell_that_another_process_holds_is_passed_over(file: Path, tmp_path: Path) -> None:
    comparison = read_comparison(file)
    ground = Ground.of(comparison, tmp_path, Quiet())
    cell = Cell(comparison, "uniform", 0.5, 0)
    with FolderLock(tmp_path / "cells" / cell.name):
        assert carry_out(cell, ground, tmp_path, Quiet()) is None
    assert not (tmp_path / "rows.jsonl").exists()


def test_report_shows_a_comparison_again(out: Path) -> None:
    shown = CliRunner().invoke(
        program, ["report", str(out), "--json"], catch_exceptions=False, standalone_mode=False
    )
    found = json.loads(shown.stdout)["standings"]
    assert {one["contestant"] for one in found} == set(NAMES)
    assert "Top-1" in (out / "comparison.html").read_text()


def test_a_ratio_is_bisected_to_the_slowest_network_that_fits() -> None:
    tried: list[float] = []

    class Cut(nn.Module):
        def __init__(self, ratio: float) -> None:
            super().__init__()
            self.ratio = ratio

    def share(model: Cut) -> float:
        tried.append(model.ratio)
        return (1 - model.ratio) ** 2

    found: Any = bisected(Cut, share, 0.49, Quiet())
    assert 0.3 <= found.ratio <= 0.3 + 1 / 256
    assert len(tried) == 8
    # 0.5 takes 0.4 and fits; 0.25 does not, 0.375 takes less than what was found before
    uneven = {0.5: 0.4, 0.25: 0.6, 0.375: 0.3}
    kept: Any = bisected(Cut, lambda model: uneven.get(model.ratio, 0.6), 0.49, Quiet())
    assert kept.ratio == 0.5
    with pytest.raises(BudgetError, match=r"the fastest that it made takes 0\.9; ask for at least 0\.9"):
        bisected(Cut, lambda model: 0.9, 0.5, Quiet())


def test_torch_prunings_network_is_within_the_budget_and_trains_on(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_pruning")

    def parameters(run: Run, dense: object, model: nn.Module, *, rounds: int) -> float:
        return sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in run.build().parameters())

    monkeypatch.setattr(torch_pruning, "share_of", parameters)
    comparison = read_comparison(file)
    ground = Ground.of(comparison, tmp_path, Quiet())
    row = carry_out(Cell(comparison, "torch-pruning", 0.5, 0), ground, tmp_path, Quiet())
    assert row is not None
    assert row.params is not None
    dense = 8 * 27 + 12 * 72 + 12 * 6 + 6 + 2 * (8 + 12)
    assert 0.3 < row.params / dense <= 0.5
    assert row.start_macs > 0
