"""How ``halpiee train`` gathers its settings and ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from halpiee.cli import train
from halpiee.errors import UsageError
from halpiee.training import pipeline, preflight
from halpiee.training.config import Settings
from halpiee.training.record import promise

SETTINGS = Settings(model="resnet20", data="digits", budget="0.5")


class Finished:
    """A run that is done, with a given promise."""

    kept = True

    @classmethod
    def open(cls, *_: Any, **__: Any) -> Finished:
        return cls()


def report(run: Finished) -> dict[str, Any]:
    share = 100.0 if run.kept else 140.0
    return {"promise": promise(share, 100.0, 5.0), "measured_us": share, "events": []}


def test_a_missed_promise_ends_in_exit_code_4_after_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "open_run", Finished.open)
    monkeypatch.setattr(pipeline, "execute", report)
    train.carry_out(SETTINGS, tmp_path / "kept", resume=False, as_json=True)
    monkeypatch.setattr(Finished, "kept", False)
    capsys.readouterr()
    with pytest.raises(click.exceptions.Exit) as end:
        train.carry_out(SETTINGS, tmp_path / "missed", resume=False, as_json=True)
    assert end.value.exit_code == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out)["measured_us"] == 140.0
    assert "140.0% of the budget of 100 µs: over it" in shown.err


def test_resuming_takes_the_settings_of_the_folder_and_what_is_given_on_top(tmp_path: Path) -> None:
    stored = Settings(model="resnet20", data="digits", budget="0.4", epochs=3)
    (tmp_path / "settings.json").write_text(json.dumps(stored.as_dict()))
    assert train.gather({}, tmp_path, resume=True) == stored
    assert train.gather({"epochs": 5, "omega": 0.2}, tmp_path, resume=True).digest != stored.digest


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="MODEL and --budget missing"):
        train.gather({"data": "digits"}, tmp_path, resume=False)


def test_cycle_options_reach_the_cycle(tmp_path: Path) -> None:
    given = {"model": "m", "data": "d", "budget": "0.5", "h": 5, "q": 7, "solver": "linear"}
    cycle = train.gather(given, tmp_path, resume=False).cycle
    assert (cycle.h, cycle.j, cycle.q, cycle.solver) == (5, None, 7, "linear")


def test_a_sparsity_beside_a_recipe_to_a_latency_takes_its_protection_away_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = []
    monkeypatch.setattr(train, "carry_out", lambda settings, *_, **__: found.append(settings))
    for limit in (["--sparsity", "0.5"], ["--budget", "0.7"], ["--budget", "0.7", "--no-protect-first"]):
        command = ["resnet20", "--data", "digits", "--recipe", "iee-structured-imagenet", *limit]
        result = CliRunner().invoke(train.command, [*command, "--out", str(tmp_path / "run")])
        assert result.exit_code == 0, result.output
    assert [s.protect_first for s in found] == [None, True, False]


def test_a_scale_leaves_its_values_in_the_settings_and_says_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: list[Settings] = []
    monkeypatch.setattr(train, "carry_out", lambda settings, *_, **__: found.append(settings))
    command = [
        "resnet20",
        "--data",
        "digits",
        "--recipe",
        "iee-structured-imagenet",
        "--out",
        str(tmp_path / "run"),
    ]
    result = CliRunner().invoke(train.command, [*command, "--scale", "0.01"])
    assert result.exit_code == 0, result.output
    assert (found[0].epochs, found[0].cycle.h, found[0].cycle.j, found[0].cycle.q) == (2, 2, 2, 2)
    assert (
        "--scale 0.01: epochs 130 → 2; h 150 → 2 steps; j 150 → 2 steps; q 150 → 2 steps; " in result.stderr
    )
    assert "warmup 8 → 0.1231 epochs; end 5 → 0.07692 epochs" in result.stderr
    for wrong in ("0", "1.01", "nan", "-0.5", "inf", "much"):
        result = CliRunner().invoke(train.command, [*command, "--scale", wrong])
        assert isinstance(result.exception, UsageError)
        assert f"--scale {wrong} was asked; give more than 0 and at most 1" in str(result.exception)


def test_the_training_cost_is_stated_in_dense_trainings_of_a_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Half of the weights in every layer for 9 epochs, 90 dense ones before, in trainings of 90: (9 / 2 + 90) / 90."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))
    asked = ["toy:net", "--data", "toy:data", "--method", "static", "--sparsity", "0.5", "--epochs", "9"]
    asked += ["--distribution", "uniform", "--cost-reference", "epochs=90", "--pretraining", "90"]
    result = CliRunner().invoke(
        train.command, [*asked, "--no-baseline", "--json", "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["train_cost"]["paper"] == pytest.approx(1.05, abs=5e-4)
    for given, said in (("epochs=0", "give epochs above 0"), ("steps=90", "write epochs=90")):
        wrong = CliRunner().invoke(train.command, [*asked[:-3], given, "--out", str(tmp_path / "wrong")])
        assert isinstance(wrong.exception, UsageError)
        assert said in str(wrong.exception)
