"""Corrupted and hostile folders of runs: one sentence each; whose names they are decides whether they are called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings

from halpiee.cli.app import main, program
from halpiee.cli.scores import read_scores
from halpiee.errors import UsageError
from halpiee.report import render_html, render_markdown, table
from halpiee.report.values import read_report
from halpiee.shared_options import Cycle
from halpiee.training.checkpoint import load_state, read_settings, save_settings, save_state
from halpiee.training.config import Masks, Settings
from halpiee.training.record import read_calibration, read_log, read_result, read_seconds, read_threads

from .conftest import content, one_sentence, refusal
from .mutations import files
from .test_plans import DRAWS, MANY

EVENT = {"step": 3, "event": "prune", "budget_us": 120.0, "used_us": 100.0, "omega_us": 20.0, "slack_us": 1.0}
REPORT: dict[str, Any] = {
    "schema": 1, "model": "resnet20", "data": "digits", "method": "iee", "budget": "0.5", "backend": "onnxruntime",
    "batch": 1, "threads": 1, "environment": {"device": "a CPU", "caches": {"L1": "48K"}}, "dense_us": 250.0,
    "budget_us": 125.0, "predicted_us": 120.0, "measured_us": 123.5, "measured_iqr_us": 2.0, "speedup": 2.0,
    "speedup_ci": [1.9, 2.1], "accuracy_dense": 0.9, "accuracy_pruned": 0.8, "macs_dense": 100, "macs_pruned": 40,
    "train_flops_ratio": {"paper": 0.5, "strict": 0.6}, "widths": {"a": 3}, "widths_dense": {"a": 8},
    "layers": [{"layer": "a", "dense_us": 3.0, "pruned_us": 1.0}], "events": [EVENT, {**EVENT, "event": "grow"}],
    "closed_loop": [{"round": 1, "predicted_us": 1.0, "measured_us": 2.0, "lower_us": 1.0, "upper_us": 3.0}],
    "history": {"dense": [{"step": 1, "accuracy": 0.5, "loss": 1.0}], "pruned": [{"step": 1, "accuracy": 0.4}]},
    "pareto": {"points": [{"share": 0.5, "kept": 0.8, "gap": 0.0}], "run": {"share": 0.5, "kept": 0.7}},
    "calibration": {"a_us": 1.0, "b": 1.0, "points": [[1.0, 2.0]], "bend": [[1.0, 2.0], [3.0, 4.0]], "worst": 0.1},
    "seconds_by_stage": {"dense": 3.0, "pruned": 4.0}, "files": {"onnx": "pruned.onnx"},
    "promise": {"met": True, "text": "measured 124 µs"},
}  # fmt: skip
SETTINGS = Settings(
    model="resnet20",
    data="digits",
    method="lrr",
    masks=Masks(sparsity=0.9, rounds=3),
    cycle=Cycle(h=3),
    drops=(0.5, 0.75),
)
RESULT = {
    "accuracy": 0.5, "top5": None, "params": 100, "seconds": 3.0, "history": [{"step": 1}], "counts": {"a": 3},
    "events": [EVENT], "train_flops_ratio": {"paper": 0.5}, "dense_us": 3.0, "predicted_us": 2.0, "sparsity": None,
}  # fmt: skip


def fuzz(valid: Any, path: Path, use: Callable[[], object], least: float, n: int) -> None:
    """Uses a file in ``n`` malformed versions, of which at least a share must be refused; none may be written."""
    refused: list[str] = []

    @settings(MANY, max_examples=n)
    @given(files(valid))
    def one(text: bytes) -> None:
        if text not in known:
            path.write_bytes(text)
            before = content(path.parent)
            said = refusal(use)
            assert said is None or (one_sentence(said) and path.name in said), said
            known[text] = [said] if said else []
            assert content(path.parent) == before
        refused.extend(known[text])

    known: dict[bytes, list[str]] = {}
    one()
    assert len(refused) >= least * n, len(refused)


@DRAWS
@pytest.mark.usefixtures("charts_drawn_once")
def test_a_corrupted_report_is_refused_in_one_sentence_or_drawn(tmp_path: Path, n: int) -> None:
    def use() -> None:
        report = read_report(tmp_path)
        render_html(report).encode("utf-8")
        render_markdown(report).encode("utf-8")
        table(report)

    fuzz(REPORT, tmp_path / "report.json", use, 0.3, n)


@DRAWS
def test_corrupted_settings_are_refused_in_one_sentence_or_are_settings(tmp_path: Path, n: int) -> None:
    fuzz(SETTINGS.as_dict(), tmp_path / "settings.json", lambda: read_settings(tmp_path), 0.7, n)


@pytest.mark.parametrize(
    ("name", "valid", "read"),
    [
        ("dense.json", RESULT, read_result),
        ("pruned.json", RESULT, lambda path: read_result(path, pruned=True)),
        ("calibration.json", {"a_us": 1.0, "b": 1.0, "points": [[1.0, 2.0]], "bend": None}, read_calibration),
        ("seconds.json", {"dense": 3.0, "pruned": 4.0}, read_seconds),
        ("round1.json", {"accuracy": 0.5, "log": [[30, "train", {"a": 3}]]}, read_log),
        ("threads.json", 2, read_threads),
    ],
)
def test_a_corrupted_record_of_a_stage_is_refused_in_one_sentence(
    name: str, valid: Any, read: Callable[[Path], object], tmp_path: Path
) -> None:
    fuzz(valid, tmp_path / name, lambda: read(tmp_path / name), 0.3, n=100)


@pytest.mark.parametrize("key", ["model", "data"])
@pytest.mark.parametrize(
    "verb",
    [
        ["export", "RUN", "--out", "net.onnx"],
        ["bench", "RUN"],
        ["report", "RUN", "--layers"],
        ["train", "--resume", "--out", "RUN"],
    ],
)
def test_a_run_from_elsewhere_names_code_in_vain(
    verb: list[str], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    values = {**SETTINGS.as_dict(), key: "forbidden_code:call", "seal": "0" * 64}
    (folder / "settings.json").write_text(json.dumps(values))
    (folder / "report.json").write_text(json.dumps(REPORT))
    before = content(tmp_path)
    done = CliRunner().invoke(program, [str(folder) if word == "RUN" else word for word in verb])
    assert isinstance(done.exception, UsageError), done.output
    assert f"{folder / 'settings.json'} names the {key} 'forbidden_code:call', which is code" in str(
        done.exception
    )
    assert "--trust-run" in str(done.exception)
    assert content(tmp_path) == before


def test_a_run_of_ones_own_is_known_by_its_seal_until_a_name_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Settings(model="mine:net", data="mine:data", budget="0.5")
    save_settings(tmp_path, mine)
    assert read_settings(tmp_path) == mine
    values = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps({**values, "epochs": 7}))
    assert read_settings(tmp_path).epochs == 7  # what is typed is the names
    (tmp_path / "settings.json").write_text(json.dumps({**values, "model": "forbidden_code:call"}))
    assert refusal(lambda: read_settings(tmp_path)) is not None
    (tmp_path / "settings.json").write_text(json.dumps(values))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another user"))
    assert refusal(lambda: read_settings(tmp_path)) is not None
    assert read_settings(tmp_path, trust=True) == mine


def test_a_path_that_is_no_path_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for verb in (
        ["explain", "resnet20", "--size", "8", "--ops"],
        ["plan", "resnet20", "--budget", "0.5", "--profile"],
    ):
        with pytest.raises(SystemExit) as end:
            main([*verb, "x" * 5000])
        shown = capsys.readouterr().err.strip()
        assert end.value.code == 2
        assert shown.startswith("halpiee: ")
        assert one_sentence(shown)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"conv1": "x"}', "holds something else at [...], where array is expected"),
        ('{"conv1": [null]}', "where float is expected"),
        ("[1]", "where object is expected"),
    ],
)
def test_malformed_scores_are_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    found = refusal(lambda: read_scores(tmp_path / "s.json", None)) or ""  # type: ignore[arg-type]
    assert said in found
    assert one_sentence(found)


@pytest.mark.parametrize(
    "state", [{}, {"stage": "masked"}, {"stage": 3}, {"model": {}}, {"step": -1}, {"threads": 10**9}]
)
def test_a_checkpoint_of_something_else_is_refused(state: dict[str, Any], tmp_path: Path) -> None:
    save_state(tmp_path / "x.state", state)
    with pytest.raises(
        UsageError, match=r"is no checkpoint of a run: it .*; delete it to start this stage again"
    ):
        load_state(tmp_path / "x.state")


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "owned",)

    torch.save({"stage": Code()}, tmp_path / "x.state")
    with pytest.raises(UsageError, match="cannot be read as a checkpoint"):
        load_state(tmp_path / "x.state")
    assert not (tmp_path / "owned").exists()
