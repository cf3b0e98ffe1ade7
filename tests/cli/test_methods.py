"""``halpiee methods``, and how a recipe file reaches the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from halpiee.cli import methods, train
from halpiee.errors import UsageError
from halpiee.training.config import OPTIONS, Settings


def test_every_method_is_listed_with_its_paper() -> None:
    shown = CliRunner().invoke(methods.command, ["--json"])
    listed = {m["name"]: m for m in json.loads(shown.output)["methods"]}
    assert set(listed) >= {"iee", "halp", "static", "set", "rigl", "snfs", "gmp", "granet", "snip", "filter"}
    assert listed["rigl"]["reference"] == "Evci et al. 2020, arXiv 1911.11134"
    assert "latency" in listed["halp"]["budgets"]


def given(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Settings:
    """The settings that the command line asks for."""
    found: list[Settings] = []
    monkeypatch.setattr(train, "carry_out", lambda settings, out, **_: found.append(settings))
    result = CliRunner().invoke(train.command, [*arguments, "--out", "nowhere"], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return found[0]


def test_a_recipe_by_name_gives_options_and_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    s = given(monkeypatch, "resnet20", "--data", "digits", "--recipe", "granet-cifar", "--sparsity", "0.95")
    assert (s.model, s.method, s.masks.sparsity, s.epochs) == ("resnet20", "granet", 0.95, 160)
    assert (s.masks.interval, s.masks.last, s.drops, s.nesterov) == (1000, 110 / 160, (0.5, 0.75), True)


def test_a_recipe_by_path_may_name_the_model_and_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rigl.yaml"
    file.write_text("method: rigl\nsparsity: 0.9\nbatch-size: 32\nmodel: resnet20\ndata: digits\n")
    s = given(monkeypatch, "--recipe", str(file), "--lr", "0.2")
    assert (s.model, s.data, s.method, s.batch_size, s.lr) == ("resnet20", "digits", "rigl", 32, 0.2)


def test_another_goal_replaces_that_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    start = ("resnet20", "--data", "digits", "--recipe", "iee-structured-imagenet")
    assert given(monkeypatch, *start).budget == "0.5"
    s = given(monkeypatch, *start, "--sparsity", "0.8")
    assert (s.budget, s.masks.sparsity) == (None, 0.8)


def test_the_switches_of_table_4_reach_the_cycle(monkeypatch: pytest.MonkeyPatch) -> None:
    switches = "--h 100 --j 0 --q 1 --no-freeze --grow-by random --grow-values zero --explore-init model"
    s = given(
        monkeypatch, "m", "--data", "d", "--sparsity", "0.9", *switches.split(), "--explore-norm", "running"
    )
    c = s.cycle
    assert (c.h, c.j, c.q, c.freeze) == (100, 0, 1, False)
    assert (c.grow_by, c.grow_values, c.explore_init, c.explore_norm) == (
        "random",
        "zero",
        "model",
        "running",
    )


def test_the_schedule_is_given_in_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    s = given(
        monkeypatch,
        "m",
        "--data",
        "d",
        "--budget",
        "0.5",
        "--drops",
        "80/160,0.75",
        "--drop",
        "0.2",
        "--no-nesterov",
    )
    assert (s.drops, s.drop, s.nesterov) == ((0.5, 0.75), 0.2, False)
    with pytest.raises(UsageError, match=r"ascending shares of the training, such as 0\.5,0\.75"):
        given(monkeypatch, "m", "--data", "d", "--budget", "0.5", "--drops", "0.75,0.5")
    with pytest.raises(UsageError, match="it takes a list, each a number or a share"):
        given(monkeypatch, "m", "--data", "d", "--budget", "0.5", "--drops", "early")


def test_every_option_of_the_settings_can_be_typed() -> None:
    typed = {p.name for p in train.command.params}
    left = {
        "model",
        "calibration_nets",
        "rounds",
        "prefetch",
        "lowered",
    }  # an argument; of timing, loader, --resume
    assert set(OPTIONS) - typed == left - {"model", "rounds"}


def test_recipes_are_listed_with_their_source_within_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(methods.command, ["--recipes"]).output
    assert "arXiv 2106.10404, Table 7" in shown
    assert "--epochs 160 --batch-size 128 --lr 0.1" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
    found = json.loads(CliRunner().invoke(methods.command, ["--recipes", "--json"]).output)["recipes"]
    assert {r["name"] for r in found} >= {"granet-cifar", "iee-imagenet", "ltr-imagenet"}
    assert all(r["source"] and r["open"] for r in found)


def test_methods_fit_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(methods.command, []).output.splitlines()
    assert max(map(len, shown)) <= 80
    assert shown[0] == "iee           prune, improve, explore, grow: what was pruned trains for a while"


def test_mask_options_reach_the_masks(tmp_path: Path) -> None:
    given = {"model": "m", "data": "d", "method": "filter", "sparsity": 0.65, "rounds": 5, "regrow": 0.3}
    settings = train.gather(given, tmp_path, resume=False)
    masks = settings.masks
    assert (masks.sparsity, masks.rounds, masks.regrow, settings.rounds) == (0.65, 5, 0.3, 30)
