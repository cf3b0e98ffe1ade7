"""``halpiee profile``: which ops of a network its file does not answer for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import halpiee
from halpiee.cli.app import program
from latency import Profile

from .plans import MODEL, SIZES, write_profile

NETS = """
from torch import nn
from torch.nn import functional


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x):
        rows = self.stem(x).flatten(2).transpose(1, 2)
        for _ in range(2):
            rows = functional.scaled_dot_product_attention(rows, rows, rows)
        return self.head(rows.mean(1))


def build():
    return Attending().eval()
"""


def profiled(*arguments: str) -> tuple[str, dict]:
    """What a profile says on the screen, and as an object."""
    shown = CliRunner().invoke(program, ["profile", *arguments])
    assert shown.exception is None, shown.exception
    as_json = CliRunner().invoke(program, ["profile", *arguments, "--json"])
    return " ".join(shown.output.split()), json.loads(as_json.stdout)


@pytest.fixture
def attending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A network with two attentions, which no backend times."""
    (tmp_path / "twice_attending.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return ["twice_attending:build", "--size", "4"]


def test_a_dry_run_names_the_ops_that_no_profile_has_and_what_that_means(attending: list[str]) -> None:
    said, found = profiled(*attending, "--dry-run")
    assert "not timed: scaled_dot_product_attention ×2; no profile has entries for them, so what" in said
    assert "predicts leaves out what they take, whatever the widths" in said
    assert found["untimed"] == {"scaled_dot_product_attention": 2}


def test_a_network_whose_ops_are_all_timed_is_told_nothing() -> None:
    said, found = profiled(*MODEL, *SIZES, "--dry-run")
    assert "not timed" not in said
    assert found["untimed"] == {}


def test_a_sweep_names_what_has_no_entry_and_what_could_not_be_measured(
    attending: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twice_attending import build

    structure = halpiee.trace(build(), (torch.zeros(1, 3, 4, 4),))
    made = Profile.load(write_profile(structure, tmp_path / "made.jsonl"))
    why = "conv 3×3 at 4×4 batch 1 3→8: out of memory"
    swept = Profile({**made.environment, "not_measured": [why]}, made.cells)
    monkeypatch.setattr("latency.sweep", lambda *_, **__: swept)
    said, found = profiled(*attending, "--out", str(tmp_path / "p.jsonl"))
    assert "not timed: scaled_dot_product_attention ×2; " in said
    assert f"not measured: {why}; other cells of its table answer for it" in said
    assert (found["untimed"], found["not_measured"]) == ({"scaled_dot_product_attention": 2}, [why])
