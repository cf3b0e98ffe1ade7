"""``tools/profile_gpu.py`` on TensorRT without torch, in shards, and by the papers' protocol."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import latency
from latency.op import Op
from tools import profile_gpu


def conv(width: int, size: int = 8) -> Op:
    window: dict[str, Any] = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    return Op(kind="conv", c_in=width, c_out=width, h=size, w=size, **window)


@pytest.fixture
def ops(tmp_path: Path) -> Path:
    path = tmp_path / "net.ops.json"
    path.write_text(json.dumps({"ops": [conv(8, size).key() for size in range(4, 12)]}))
    return path


def test_tensorrt_is_measured_without_torch(
    machine: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "one.json", tmp_path / "p.jsonl"
    path.write_text(json.dumps([conv(8).key()]))
    monkeypatch.setitem(sys.modules, "torch", None)
    arguments = ["--ops", path, "--backend", "tensorrt", "--precision", "fp16", "--batch", "4", "--out", out]
    assert profile_gpu.main([str(a) for a in arguments]) == 0
    profile = latency.Profile.load(out)
    assert (profile.environment["backend"], profile.environment["dtype"]) == ("tensorrt", "float16")
    assert profile.has_table(replace(conv(8), batch=4, dtype="float16"))


def test_the_shards_hold_every_op_once(ops: Path) -> None:
    listed = profile_gpu.read(ops)
    parts = []
    for k in (1, 2, 3):
        parts += profile_gpu.sharded(listed, f"{k}/3")
    assert sorted(op.h for op in parts) == list(range(4, 12))


@pytest.mark.parametrize("shard", ["0/2", "3/2", "two", "1"])
def test_a_shard_that_is_none_is_refused(ops: Path, shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile_gpu.main(["--ops", str(ops), "--shard", shard, "--dry-run"]) == 2
    assert "such as 1/4" in capsys.readouterr().err


def test_the_papers_protocol_is_the_whole_grid_at_batch_256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps([conv(32).key()]))
    asked: dict[str, Any] = {}

    def sweep(ops: list[Op], **options: Any) -> latency.Profile:
        asked.update(options, ops=ops)
        return latency.Profile({}, [])

    monkeypatch.setattr(profile_gpu, "sweep", sweep)
    arguments = ["--ops", path, "--protocol", "halp", "--group-size", "16", "--out", tmp_path / "p.jsonl"]
    assert profile_gpu.main([str(a) for a in arguments]) == 0
    [op] = asked["ops"]
    assert (op.batch, op.dtype, op.layout, asked["every"]) == (256, "float32", "nchw", 16)
    assert (asked["precision"].n_min, asked["precision"].n_max) == (100, 100)


def test_options_that_contradict_the_protocol_are_refused(
    ops: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        profile_gpu.main(["--ops", str(ops), "--protocol", "halp", "--precision", "fp16", "--dry-run"]) == 2
    )
    assert "batch 256" in capsys.readouterr().err
