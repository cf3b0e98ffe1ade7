"""The script that users run on a target: from a file of ops to a profile, with torch alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import latency

SCRIPT = Path(__file__).parents[2] / "tools" / "profile_gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.slow  # times a few convolutions with torch
def test_a_file_of_ops_becomes_a_profile_that_prices_them(tmp_path: Path) -> None:
    op = latency.Op(
        kind="conv", c_in=8, c_out=12, h=6, w=6, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
    )
    ops, out = tmp_path / "net.ops.jsonl", tmp_path / "profile.jsonl"
    ops.write_text(json.dumps(op.key()) + "\n")
    shown = run("--ops", str(ops), "--backend", "torch", "--device", "cpu", "--out", str(out))
    assert shown.returncode == 0, shown.stderr
    profile = latency.Profile.load(out)
    assert profile.environment["backend"] == "torch"
    assert float(profile.table(op).lookup(8, 12)) > 0


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    shown = run("--ops", str(tmp_path / "no.jsonl"), "--out", str(tmp_path / "p.jsonl"))
    assert shown.returncode != 0
    assert "no.jsonl" in shown.stderr
    assert "Traceback" not in shown.stderr
