"""``halpiee methods``, and how a recipe file reaches the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from halpiee.cli import methods, train
from halpiee.errors import UsageError


def test_every_method_is_listed_with_its_paper() -> None:
    shown = CliRunner().invoke(methods.command, ["--json"])
    listed = {m["name"]: m for m in json.loads(shown.output)["methods"]}
    assert set(listed) >= {"iee", "halp", "static", "set", "rigl", "snfs", "gmp", "granet", "snip", "filter"}
    assert listed["rigl"]["reference"] == "Evci et al. 2020, arXiv 1911.11134"
    assert "latency" in listed["halp"]["budgets"]


def test_a_recipe_file_gives_options_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "rigl.toml"
    file.write_text('method = "rigl"\nsparsity = 0.9\nbatch-size = 32\nmodel = "resnet20"\ndata = "digits"\n')
    given = {**train.read_recipe(file), "sparsity": 0.95}
    settings = train.gather(given, tmp_path / "run", resume=False)
    assert (settings.method, settings.masks.sparsity, settings.batch_size) == ("rigl", 0.95, 32)
    (tmp_path / "r.json").write_text('{"method": "set"}')
    assert train.read_recipe(tmp_path / "r.json") == {"method": "set"}


def test_a_recipe_with_an_unknown_option_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text("sparsety = 0.9\n")
    with pytest.raises(UsageError, match="'sparsety', which is no option"):
        train.read_recipe(file)
    file.write_text("sparsity: 0.9")
    with pytest.raises(UsageError, match="neither TOML nor JSON"):
        train.read_recipe(file)
    with pytest.raises(UsageError, match="there is no such file"):
        train.read_recipe(tmp_path / "none.toml")


def test_mask_options_reach_the_masks(tmp_path: Path) -> None:
    given = {"model": "m", "data": "d", "method": "filter", "sparsity": 0.65, "rounds": 5, "regrow": 0.3}
    settings = train.gather(given, tmp_path, resume=False)
    masks = settings.masks
    assert (masks.sparsity, masks.rounds, masks.regrow, settings.rounds) == (0.65, 5, 0.3, 30)
