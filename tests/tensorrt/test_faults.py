"""What goes wrong on a GPU: contexts, callers, captures, memory, engines of others; one sentence each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import latency
from halpiee.cli.app import program
from latency.backends.tensorrt import TensorRT
from latency.backends.tensorrt.builder import capabilities_of
from latency.backends.tensorrt.engine import check_library, write_engine
from latency.errors import UsageError
from latency.op import Op

from .test_bench_engine import engines

__all__ = ["engines"]

ROOT = Path(__file__).parents[2]


def conv(c_in: int = 8, c_out: int = 8) -> Op:
    return Op(
        kind="conv", c_in=c_in, c_out=c_out, h=8, w=8, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
    )  # fmt: skip


OPENED_TWICE = """
import atexit, sys
from tests.tensorrt.gpu import Gpu, pycuda_modules
gpu = Gpu()
atexit.register(lambda: print("left", len(gpu.contexts)))  # registered first, so it runs last
sys.modules.update(pycuda_modules(gpu))
from latency.backends.cuda import open_cuda
kept = [open_cuda("pycuda"), open_cuda("pycuda")]
print("held", len(gpu.contexts))
"""


def test_pycuda_ends_with_an_empty_stack_of_contexts_else_it_would_abort_the_process() -> None:
    command = [sys.executable, "-c", OPENED_TWICE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["held 2", "left 0"]


@pytest.mark.parametrize("callers", [1, 3])
def test_callers_at_once_have_a_context_each_that_is_current_in_their_threads(
    machine: SimpleNamespace, engines: list[str], callers: int
) -> None:
    machine.told.busy_seconds = 0.001
    words = ["--mode", "throughput", "--callers", str(callers), "--rounds", "3", "--batch", "4", "--json"]
    done = CliRunner().invoke(program, ["bench", engines[0], *words])
    assert done.exception is None, done.exception


def test_a_capture_that_is_refused_is_enqueued_instead_and_the_sweep_goes_on(
    machine: SimpleNamespace, tmp_path: Path
) -> None:
    machine.gpu.refuses_capture = True
    assert TensorRT().build(conv()).method == "enqueue slope"
    profile = latency.sweep([conv()], backend=TensorRT(), path=tmp_path / "p.jsonl", every=4)
    assert profile.has_table(conv())
    assert not profile.environment.get("not_measured")


def test_a_device_that_is_full_leaves_what_does_not_fit_out_and_the_sweep_goes_on(
    machine: SimpleNamespace, tmp_path: Path
) -> None:
    large = Op(**{**vars(conv()), "h": 64, "w": 64, "batch": 64})
    machine.gpu.capacity_bytes = 10_000_000
    profile = latency.sweep([conv(), large], backend=TensorRT(), path=tmp_path / "p.jsonl", every=4)
    assert profile.has_table(conv())
    assert not profile.has_table(large)
    assert any("out of memory" in line for line in profile.environment["not_measured"])


def test_an_engine_of_tensorrt_for_rtx_is_refused_by_tensorrt_before_it_is_loaded(
    machine: SimpleNamespace, engines: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "rtx.engine"
    write_engine(path, Path(engines[0]).read_bytes(), {"library": "tensorrt-rtx", "capabilities": [86]})
    told: Any = machine.trt
    with pytest.raises(
        UsageError, match=r"is an engine of TensorRT for RTX, and TensorRT was to load it; name the"
    ):
        check_library(path, told, {"device": "RTX 3090", "capability": "8.6"})


def test_tensorrt_for_rtx_refuses_engines_of_tensorrt_and_of_other_capabilities(tmp_path: Path) -> None:
    rtx = SimpleNamespace(IRuntimeCache=None)  # the name by which it is known
    path = tmp_path / "net.engine"
    write_engine(path, b"plan", {"library": "tensorrt"})
    with pytest.raises(
        UsageError, match=r"is an engine of TensorRT, and TensorRT for RTX was to load it; name the"
    ):
        check_library(path, rtx, {"device": "RTX 4090", "capability": "8.9"})
    write_engine(path, b"plan", {"library": "tensorrt-rtx", "capabilities": [86]})
    with pytest.raises(
        UsageError, match=r"for compute capabilities 86, and RTX 4090 has 89; export it again with"
    ):
        check_library(path, rtx, {"device": "RTX 4090", "capability": "8.9"})


@pytest.mark.parametrize("asked", ["90", "9.0", "86,100"])
def test_datacenter_gpus_are_refused_for_rtx_without_the_library(asked: str) -> None:
    with pytest.raises(
        UsageError, match=r"H100 and other datacenter GPUs: build with --format tensorrt there"
    ):
        capabilities_of(asked)
