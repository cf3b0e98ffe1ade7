"""``halpiee profile``: which ops of a network its file does not answer for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import halpiee
from halpiee.cli.app import program
from latency import Profile

from .plans import MODEL, SIZES, write_profile
from .warping import twice

WARPING = ("warping:twice", "--size", "4")


def profiled(*arguments: str) -> tuple[str, dict[str, Any]]:
    """What a profile says on the screen, and as an object."""
    shown = CliRunner().invoke(program, ["profile", *arguments])
    assert shown.exception is None, shown.exception
    as_json = CliRunner().invoke(program, ["profile", *arguments, "--json"])
    return " ".join(shown.output.split()), json.loads(as_json.stdout)


def test_a_dry_run_names_the_ops_that_no_profile_has_and_what_that_means() -> None:
    said, found = profiled(*WARPING, "--dry-run")
    assert "not timed: grid_sampler_2d ×2; no profile has entries for them, so what" in said
    assert "predicts leaves out what they take, whatever the widths" in said
    assert found["untimed"] == {"grid_sampler_2d": 2}


def test_a_network_whose_ops_are_all_timed_is_told_nothing() -> None:
    said, found = profiled(*MODEL, *SIZES, "--dry-run")
    assert "not timed" not in said
    assert found["untimed"] == {}


def test_held_out_cells_that_are_far_off_are_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    structure = halpiee.trace(twice(), (torch.zeros(1, 3, 4, 4),))
    made = Profile.load(write_profile(structure, tmp_path / "made.jsonl"))
    # One held-out cell at a width between others takes a thousand times as long as its table says.
    held = next(c for c in made.cells if c["op"] == "conv" and c["c_out"] > 2)
    cells = [*made.cells, {**held, "c_out": held["c_out"] - 1, "us": 1000 * held["us"], "role": "holdout"}]
    monkeypatch.setattr("latency.sweeping._sweep", lambda *_, **__: None)
    monkeypatch.setattr("latency.sweeping.Profile", lambda *_: Profile(made.environment, cells))
    said, found = profiled(*WARPING, "--out", str(tmp_path / "p.jsonl"))
    assert said.count("holdout: one cell in twenty is off by 100% or more; measure more cells") == 1
    assert "HoldoutWarning" not in said
    assert [w for w in found["warnings"] if w.startswith("holdout")]


def test_a_sweep_names_what_has_no_entry_and_what_could_not_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    structure = halpiee.trace(twice(), (torch.zeros(1, 3, 4, 4),))
    made = Profile.load(write_profile(structure, tmp_path / "made.jsonl"))
    why = "conv 3×3 at 4×4 batch 1 3→8: out of memory"
    swept = Profile({**made.environment, "not_measured": [why]}, made.cells)
    monkeypatch.setattr("latency.sweep", lambda *_, **__: swept)
    said, found = profiled(*WARPING, "--out", str(tmp_path / "p.jsonl"))
    assert "not timed: grid_sampler_2d ×2; " in said
    assert f"not measured: {why}; other cells of its table answer for it" in said
    assert (found["untimed"], found["not_measured"]) == ({"grid_sampler_2d": 2}, [why])
