"""A run is written as a folder for the hub that any machine can load again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

import halpiee
from halpiee.cli.app import program
from halpiee.cli.networks import from_run
from halpiee.errors import OutputInUseError, UsageError


def test_the_folder_loads_the_same_network(finished_run: Path, tmp_path: Path) -> None:
    (finished_run / "checkpoint.pt").write_bytes(b"large")
    folder = halpiee.push(finished_run, tmp_path / "hub")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "plan.json", "pruned.safetensors", "report.json", "settings.json"
    ]  # fmt: skip
    x = torch.randn(2, 3, 6, 6)
    one, other = (from_run(path, trust=True).model(x) for path in (finished_run, folder))
    assert torch.equal(one, other)


def test_the_card_has_what_the_hub_reads_and_the_latency_as_a_table(
    finished_run: Path, tmp_path: Path
) -> None:
    card = (halpiee.push(finished_run, tmp_path / "hub") / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "halpiee"
    assert "| Latency, measured | 250 µs | 124 µs | 0.49× |" in body
    assert "| Device | a CPU |" in body
    assert f'model = halpiee.load("{tmp_path / "hub"}")' in body


def test_text_of_a_report_cannot_break_out_of_the_card(finished_run: Path, tmp_path: Path) -> None:
    path = finished_run / "report.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"model": "<script>|x", "data": "---\nlicense: no"})
    )
    card = (halpiee.push(finished_run, tmp_path / "hub") / "README.md").read_text()
    assert "<script>" not in card
    assert [line for line in card.splitlines() if line == "---"] == ["---", "---"]


def test_no_folder_is_written_over_and_no_unfinished_run_is_pushed(
    finished_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(OutputInUseError, match="name a new folder"):
        halpiee.push(finished_run, tmp_path)
    (finished_run / "report.json").unlink()
    with pytest.raises(UsageError, match="holds no finished run"):
        halpiee.push(finished_run, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_the_command_line_writes_it(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    shown = CliRunner().invoke(
        program, ["export", str(finished_run), "--format", "hub", "--out", str(out), "--json"]
    )
    assert shown.exit_code == 0, shown.exception
    assert "README.md" in json.loads(shown.stdout)["files"]
