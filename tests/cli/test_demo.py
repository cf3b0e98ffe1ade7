"""``halpiee demo``: what it trains, and what it shows side by side. ``make demo`` is the whole of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from halpiee.cli import train as demo
from halpiee.cli.app import program
from halpiee.report import read_report
from halpiee.training.config import Settings


def test_a_uniform_network_of_the_same_latency_is_trained_as_long_and_shown_beside(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[Path, Settings] = {}

    def finished(settings: Settings, out: Path) -> dict[str, Any]:
        trained[out] = settings
        return read_report(finished_run)

    monkeypatch.setattr(demo, "finished", finished)
    out = tmp_path / "demo"
    shown = CliRunner().invoke(program, ["demo", "--out", str(out), "--json"])
    assert shown.exit_code == 0, shown.exception
    pruned, uniform = trained[out], trained[out / "uniform"]
    assert (pruned.method, uniform.method) == ("iee", "small-dense")
    assert (uniform.budget, uniform.epochs, uniform.seed) == (pruned.budget, pruned.epochs, pruned.seed)
    assert uniform.profile == str(out / "profile.jsonl")
    assert list(json.loads(shown.stdout)["beside"]) == ["uniform"]
    index = (out / "site" / "index.html").read_text()
    assert "pruned.html" in index
    assert "uniform.html" in index
