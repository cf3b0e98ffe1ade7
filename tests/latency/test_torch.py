"""Ops on eager PyTorch, on the CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import latency
from latency.backends.torch import Torch
from latency.backends.torch.ops import KINDS
from latency.errors import MissingError, UnsupportedOpError, UsageError
from latency.op import Op

from .fakes import conv


def of_kind(kind: str) -> Op:
    if kind in ("conv", "conv_transpose", "max_pool", "avg_pool"):
        return Op(kind=kind, c_in=8, c_out=8, h=6, w=6, batch=2, kernel=(2, 2), stride=(2, 2))
    if kind == "linear":
        return Op(kind=kind, c_in=8, c_out=8, batch=2)
    return Op(kind=kind, c_in=8, c_out=8, h=6, w=6, batch=2)


def answer(backend: Torch, op: Op) -> torch.Tensor:
    found = backend.build(op).run()
    assert isinstance(found, torch.Tensor)
    return found


SIZES = {"conv": 3, "max_pool": 3, "avg_pool": 3, "conv_transpose": 12, "upsample": 12, "global_avg_pool": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_shape_it_should(kind: str) -> None:
    found = answer(Torch(device="cpu"), of_kind(kind))
    size = SIZES.get(kind, 6)
    rows = {"linear": (2, 8), "layer_norm": (2, 36, 8), "attention": (2, 6, 8), "product": (2, 1, 6, 6)}
    assert tuple(found.shape) == rows.get(kind, (2, 8, size, size))


def test_the_tail_is_part_of_the_op() -> None:
    op = conv(4, 8, tail=("batch_norm", "add", "relu"))
    found = answer(Torch(device="cpu"), op)
    assert found.shape == (1, 8, 8, 8)
    assert float(found.min()) == 0.0


def test_channels_last_activations_stay_so() -> None:
    found = answer(Torch(device="cpu", channels_last=True), conv(4, 8))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_is_recorded_and_used() -> None:
    backend = Torch(device="cpu", precision="bf16")
    assert backend.environment()["dtype"] == "bfloat16"
    assert answer(backend, conv(4, 8, dtype="bfloat16")).dtype == torch.bfloat16


def test_an_op_of_another_precision_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="this backend measures fp32"):
        Torch(device="cpu").build(conv(4, 8, dtype="float16"))


def test_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingError, match="PyTorch finds none; check nvidia-smi"):
        Torch(device="cuda")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="precision 'int3' was asked for"):
        Torch(device="cpu", precision="int3")  # type: ignore[arg-type]


def test_a_module_is_measured_as_it_is_and_keeps_its_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    found = latency.measure(model, (torch.randn(2, 4),), backend="torch", device="cpu", rounds=9)
    assert found.clock == "cpu"
    assert found.n >= 9
    assert model.training


PROFILED = """
import torch
from torch import profiler
from latency.backends.torch import Torch

class Graph:
    def replay(self):
        torch.ones(3) + 1

profile, here = profiler.profile, [profiler.ProfilerActivity.CPU]  # a profile of what every machine has
profiler.profile = lambda activities, **settings: profile(activities=here, **settings)
torch.cuda.synchronize = lambda: None
assert Torch(device="cpu").kernels(Graph()) is None
"""


def test_the_first_profile_of_a_process_warns_of_nothing() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROFILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
