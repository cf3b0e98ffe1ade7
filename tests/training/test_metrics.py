"""One line an epoch, of every training of a run, also after a resume."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from halpiee.errors import MissingError
from halpiee.training.record import Metrics, flat


def entry(epoch: int, **more: Any) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "loss": 1 / epoch,
        "accuracy": 0.5,
        "latency_us": None,
        **more,
    }


def test_both_files_hold_a_line_for_every_epoch_of_every_training(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, "none")
    metrics.write("dense", [entry(1)])
    metrics.write("pruned", [entry(1, latency_us=120.0, train_flops={"paper": 0.5, "strict": 0.75})])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"training": "dense", "epoch": 1, "step": 10, "loss": 1.0, "accuracy": 0.5}
    assert (lines[1]["latency_us"], lines[1]["train_flops_strict"]) == (120.0, 0.75)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["training"] for row in rows] == ["dense", "pruned"]
    assert list(rows[0])[:5] == ["training", "epoch", "step", "loss", "accuracy"]
    assert (rows[0]["latency_us"], float(rows[1]["latency_us"])) == ("", 120.0)


def test_epochs_that_are_trained_again_after_a_resume_stand_there_once(tmp_path: Path) -> None:
    Metrics(tmp_path, "none").write("dense", [entry(1), entry(2)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"half a li')
    Metrics(tmp_path, "none").write("dense", [entry(1), entry(2, loss=0.25)])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.25)]


def test_nested_values_get_joined_names_and_unknown_ones_go() -> None:
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": None, "f": 3}) == {"a_b": 1, "a_c_d": 2, "f": 3}


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed_is_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="--track wandb was asked; install it: pip install wandb"):
        Metrics(tmp_path, "wandb")
