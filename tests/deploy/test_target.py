"""What networks are timed on: read off a profile, with norms folded, and nothing of PyTorch left changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import latency
from halpiee.deploy.target import Target
from halpiee.structure import trace
from latency.backends import BACKENDS, Built
from latency.errors import UsageError
from latency.timing import Clock, WallClock
from latency.timing.benchmark import Comparison
from tests.forgetting import forgetting


def profile(cells: list[dict[str, Any]], **facts: Any) -> latency.Profile:
    return latency.Profile(latency.environment() | facts, cells)


def conv(layout: str, dtype: str) -> dict[str, Any]:
    op = latency.Op(
        kind="conv", kernel=(1, 1), c_in=4, c_out=4, h=8, w=8, batch=1, dtype=dtype, layout=layout
    )
    return {**op.key(), "us": 1.0, "role": "sweep"}


@pytest.mark.parametrize(
    ("facts", "layout", "target"),
    [
        ({"threads": 2}, "nchw", Target("onnxruntime", threads=2)),
        ({"backend": "torch"}, "nchw", Target("torch", "cpu")),
        ({"backend": "torch", "dtype": "bfloat16"}, "nhwc", Target("torch", "cpu", "bf16", True)),
        (
            {"backend": "torch", "dtype": "float16", "cuda": "13.0", "tf32": False},
            "nhwc",
            Target("torch", "cuda", "fp16", True),
        ),
        ({"backend": "torch", "cuda": "13.0", "tf32": True}, "nchw", Target("torch", "cuda", "tf32")),
    ],
)
def test_a_profile_says_what_it_was_measured_on(facts: dict[str, Any], layout: str, target: Target) -> None:
    assert Target.of_profile(profile([conv(layout, facts.get("dtype", "float32"))], **facts)) == target


def test_a_profile_of_single_ops_only_is_refused() -> None:
    class OpsOnly(latency.Backend):
        def environment(self) -> dict[str, Any]:
            return {}

        def clock(self) -> Clock:
            return WallClock()

        def build(self, op: latency.Op) -> Built:
            return Built(lambda: None)

    with forgetting(BACKENDS):
        latency.backend("ops-only")(OpsOnly)
        with pytest.raises(
            UsageError, match=r"whole networks are timed on onnxruntime or .*torch: profile on"
        ):
            Target.of_profile(profile([], backend="ops-only"))


def test_onnx_runtime_is_not_asked_for_half_precision() -> None:
    with pytest.raises(UsageError, match="leave them out, or add --backend torch"):
        Target(precision="fp16")


def test_ops_take_the_precision_and_layout_that_name_their_tables() -> None:
    structure = trace(nn.Conv2d(3, 8, 3), (torch.zeros(1, 3, 8, 8),))
    ops = [timed.op for timed in Target("torch", "cpu", "bf16", True).of(structure).ops]
    assert [(op.dtype, op.layout, op.c_out) for op in ops] == [("bfloat16", "nhwc", 8)]


class Branching(nn.Module):
    """A forward that symbolic tracing cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > -1e9 else x


def test_timing_runs_on_its_own_threads_and_puts_those_of_training_back() -> None:
    seen: list[int] = []

    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() == 0:  # no symbolic tracing comes past here
                seen.append(torch.get_num_threads())
            return x

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        target = Target("torch", "cpu", threads=1)
        ready = target.ready(Branching(), (torch.zeros(1, 3, 8, 8),))
        assert torch.get_num_threads() == 2
        found = target.compare(
            {"seen": target.ready(Seen(), (torch.zeros(1),)), "other": ready}, (torch.zeros(1),), rounds=9
        )
        assert isinstance(found, Comparison)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
