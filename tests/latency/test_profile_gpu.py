"""The script that users run on a target: from a file of ops to a profile, with torch alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import latency
from tools import profile_gpu

SCRIPT = Path(__file__).parents[2] / "tools" / "profile_gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.timing  # a few convolutions with torch
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


def swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> list[latency.Op]:
    """The ops that the script would measure."""
    asked: list[latency.Op] = []

    def sweep(ops: list[latency.Op], **_: object) -> latency.Profile:
        asked.extend(ops)
        return latency.Profile({}, [])

    monkeypatch.setattr(profile_gpu, "sweep", sweep)
    assert profile_gpu.main([*arguments, "--out", str(tmp_path / "p.jsonl")]) == 0
    return asked


def test_a_network_is_built_at_the_width_and_with_the_classes_that_are_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = ("--model", "resnet20", "--size", "8")
    ops = swept(monkeypatch, tmp_path, *network, "--width", "0.5", "--classes", "7", "--batch", "2")
    # Half of 16, 32 and 64 channels.
    assert {op.c_out for op in ops if op.kind == "conv"} == {8, 16, 32}
    assert [(op.c_in, op.c_out, op.batch) for op in ops if op.kind == "linear"] == [(32, 7, 2)]
    usual = swept(monkeypatch, tmp_path, *network)
    assert {op.c_out for op in usual if op.kind == "conv"} == {16, 32, 64}
    assert [(op.c_in, op.c_out, op.batch) for op in usual if op.kind == "linear"] == [(64, 10, 1)]


@pytest.mark.parametrize("option", [("--width", "0.5"), ("--classes", "7"), ("--size", "32")])
def test_a_file_of_ops_is_built_already(
    option: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ops = tmp_path / "net.ops.jsonl"
    ops.write_text("")
    assert profile_gpu.main(["--ops", str(ops), *option, "--dry-run"]) == 2
    assert "leave them out, or give --model" in capsys.readouterr().err


def test_ops_that_no_profile_has_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_pooling.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(2), nn.Softmax(-1))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    swept(monkeypatch, tmp_path, "--model", "own_pooling:build", "--size", "4")
    assert "not timed: softmax ×1; a plan leaves it out" in capsys.readouterr().err
