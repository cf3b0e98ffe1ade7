"""On a CUDA device: ops as graphs, whole modules as graphs, arithmetic as asked, and the device without PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

import latency
from latency.backends.cuda import open_cuda
from latency.backends.torch import Torch
from latency.backends.torch.network import ModuleRunner, Precision, set_arithmetic
from latency.backends.torch.ops import KINDS
from latency.errors import MissingError
from latency.op import Op
from latency.timing.timer import time_call

from .fakes import conv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]


def slope_us(backend: Torch, op: Op) -> float:
    built = backend.build(op)
    return time_call(built.run, minus=built.minus, clock=backend.clock()).us / built.copies


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_more_work_takes_more_time(precision: Precision) -> None:
    backend = Torch(device="cuda", precision=precision, channels_last=precision != "fp32")
    narrow, wide = (replace(conv(c, c), h=56, w=56, batch=8) for c in (32, 512))
    assert 0 < slope_us(backend, narrow) < slope_us(backend, wide)


def test_the_slope_is_shorter_than_an_op_that_is_launched_alone() -> None:
    backend = Torch(device="cuda")
    built = backend.build(conv(64, 64))
    assert built.minus is not None
    alone = time_call(built.minus, clock=backend.clock()).us
    assert 0 < slope_us(backend, conv(64, 64)) < alone


def test_the_kernels_that_were_chosen_stand_beside_the_time() -> None:
    assert Torch(device="cuda").build(conv(64, 64)).tactic


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_captured(kind: str) -> None:
    windowed = kind in ("conv", "conv_transpose", "max_pool", "avg_pool")
    shape: dict[str, Any] = {"kernel": (2, 2), "stride": (2, 2)} if windowed else {}
    positions: dict[str, Any] = {} if kind in ("linear", "layer_norm") else {"h": 8, "w": 8}
    op = Op(kind=kind, c_in=64, c_out=64, batch=2, **positions, **shape)
    assert Torch(device="cuda").build(op).method == "graph slope"


def test_a_replay_computes_what_the_module_computes() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
    x = torch.randn(2, 3, 16, 16)
    with ModuleRunner(model, (x,), device="cuda") as runner:
        answer = runner.run()
    assert isinstance(answer, torch.Tensor)
    torch.testing.assert_close(answer.cpu(), model(x), rtol=1e-4, atol=1e-5)


def test_float32_is_float32_and_tf32_is_not() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(4, 256, 16, 16), torch.randn(256, 256, 3, 3)
    exact = conv2d(x.double(), w.double())
    error = {}
    for precision in ("tf32", "fp32"):
        set_arithmetic(precision)
        found = conv2d(x.cuda(), w.cuda()).cpu().double()
        error[precision] = float((found - exact).norm() / exact.norm())
    assert error["fp32"] < 2e-5 < error["tf32"]


def test_ops_that_do_not_fit_are_written_down(tmp_path: Path) -> None:
    huge = replace(conv(64, 64), batch=2**20, h=512, w=512)
    profile = latency.sweep([huge], backend="torch", settings={"device": "cuda"}, path=tmp_path / "p.jsonl")
    assert profile.environment["not_measured"]
    assert all("out of memory" in line for line in profile.environment["not_measured"])


@pytest.fixture
def cuda() -> Any:
    try:
        return open_cuda("cuda-python")
    except MissingError as missing:
        pytest.skip(str(missing))


def test_the_device_without_pytorch_is_the_device_pytorch_sees(cuda: Any) -> None:
    facts, seen = cuda.facts(), torch.cuda.get_device_properties(0)
    assert (facts["device"], facts["capability"]) == (seen.name, f"{seen.major}.{seen.minor}")
    assert facts["l2_bytes"] == seen.L2_cache_size
    assert facts["multiprocessors"] == seen.multi_processor_count


def test_what_is_written_is_read_and_a_captured_call_runs_when_it_is_launched(cuda: Any) -> None:
    address = cuda.allocate(1000)
    sent, found = np.arange(250, dtype=np.float32), np.empty(250, dtype=np.float32)
    cuda.write(address, sent)
    cuda.read(address, found)
    assert found.tolist() == sent.tolist()
    launch = cuda.captured(lambda: cuda._do(cuda._driver.cuMemsetD8Async(address, 0, 1000, cuda.stream)))
    cuda.read(address, found)
    assert found.tolist() == sent.tolist()
    assert cuda.elapsed_us(launch) > 0
    cuda.read(address, found)
    assert not found.any()
    cuda.free(address)
