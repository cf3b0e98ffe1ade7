"""Weights that were never loaded or trained leave no command without a word, on the screen, in JSON or in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from halpiee.cli.app import program
from halpiee.deploy.onnx import run_metadata
from halpiee.report.values import facts
from latency.backends.onnxruntime.model import read_metadata

SAID = "has its initial weights: its times hold, its outputs mean nothing"


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))


def answered(verb: str, *options: object) -> dict[str, Any]:
    shown = CliRunner().invoke(program, [verb, "--json", *map(str, options)])
    assert shown.exception is None, shown.exception
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def test_an_exported_model_says_it_in_the_file_and_where_the_file_is_timed(tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    answered("export", "toy:net", "--size", "3x8x8", "--out", out)
    assert read_metadata(out)["weights"] == "initial"
    assert answered("bench", out, "--rounds", 9)["notes"] == [f"net {SAID}"]


def test_a_model_that_is_timed_says_it() -> None:
    found = answered("bench", "toy:net@eager", "--size", "3x8x8", "--rounds", 9)
    assert found["notes"] == [f"toy:net@eager {SAID}"]


def test_a_run_without_a_dense_network_says_it_of_its_dense_side_alone(finished_run: Path) -> None:
    (finished_run / "dense.safetensors").unlink()
    found = answered("bench", finished_run, "--against", "dense", "--rounds", 9)
    assert found["notes"] == [f"dense {SAID}"]


def test_trained_weights_are_told_nothing_of(finished_run: Path, tmp_path: Path) -> None:
    assert answered("bench", finished_run, "--against", "dense", "--rounds", 9)["notes"] == []
    found = answered("export", finished_run, "--out", tmp_path / "net.onnx")
    assert found["notes"] == []
    assert "weights" not in read_metadata(tmp_path / "net.onnx")


@pytest.mark.parametrize("trained", [True, False])
def test_the_file_of_a_run_says_it(trained: bool, tmp_path: Path) -> None:
    found = run_metadata({}, plan=tmp_path / "none", run="x", side="dense", trained=trained)
    assert found.get("weights") == (None if trained else "initial")


def test_a_report_says_it_among_its_circumstances() -> None:
    row = ("Weights of the dense file", "initial: no dense network was trained")
    assert row in facts({"weights_dense": "initial"})
    assert row not in facts({"weights_dense": "trained"})
