"""What a sweep of ResNet-50 takes on a modelled H200: waves of tiles, bandwidth, launches, memory, and the host's part.

The GPU's time is the double's model (``tests.pretended_cuda``), the host's is counted there and priced here. None of
the prices was measured; they are printed with the result, and so is the price of a search up to which it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import latency
from halpiee.selection.options import fixed_sides
from halpiee.structure.groups import Structure
from halpiee.structure.trace import trace
from halpiee.zoo import build
from latency.backends.torch import Torch
from latency.backends.torch.network import restored, shared_graphs
from latency.op import Op
from tests.pretended_cuda import BYTES_PER_US, FLOPS, LAUNCH_US, PretendedCuda

HOST_US = {"launched": 20.0, "captured": 10.0, "allocated": 10.0, "graphs": 5_000.0}
"""Of the host: an eager call, a call that is captured, an allocation with its random numbers, a graph made ready."""

SEARCH_US = 40_000.0
"""cuDNN's search for an algorithm: ten plans, each built and tried."""

NAMED_US = 30_000.0
"""A session of the profiler, for the network's own ops."""


@pytest.fixture(scope="module")
def structure() -> Structure:
    torch.manual_seed(0)
    return trace(build("resnet50").eval(), (torch.zeros(1, 3, 224, 224),))


@pytest.fixture
def h200() -> Iterator[PretendedCuda]:
    shared_graphs.cache_clear()
    with PretendedCuda(modelled=True) as gpu, restored():
        yield gpu
    shared_graphs.cache_clear()


def half(op: Op, batch: int) -> Op:
    return replace(op, dtype="float16", layout="nhwc", batch=batch)


@pytest.mark.slow  # some hundred builds of up to 256 copies, each call checked
def test_a_sweep_of_resnet50_takes_a_minute_at_most(
    structure: Structure, h200: PretendedCuda, capsys: pytest.CaptureFixture[str]
) -> None:
    ops = [half(timed.op, 1) for timed in structure.ops]
    fixed = {half(op, 1): sides for op, sides in fixed_sides(structure).items()}
    settings: dict[str, Any] = {"device": "cuda", "precision": "fp16", "channels_last": True}
    profile = latency.sweep(ops, backend="torch", settings=settings, fixed=fixed)
    assert not profile.environment.get("not_measured")
    gpu_s = h200.now_us / 1e6
    named = len({op.table_key() for op in ops})
    host_s = sum(us * h200.did[what] for what, us in HOST_US.items()) / 1e6 + named * NAMED_US / 1e6
    searches = h200.did["searches"]
    total_s = gpu_s + host_s + searches * SEARCH_US / 1e6
    bearable_ms = (60.0 - gpu_s - host_s) / searches * 1e3
    with capsys.disabled():
        print(
            f"\nResNet-50 fp16 b1, modelled H200: {total_s:.0f} s for {len(profile.cells)} cells: GPU {gpu_s:.1f} s, "
            f"host {host_s:.1f} s, {searches} searches. Assumed: {FLOPS / 1e6:.0f} TFLOP/s of fp16, "
            f"{BYTES_PER_US / 1e6:.0f} TB/s, {LAUNCH_US:g} µs between kernels; of the host {HOST_US} µs, "
            f"{NAMED_US / 1e3:.0f} ms a profiler's session, {SEARCH_US / 1e3:.0f} ms a search (60 s hold up to "
            f"{bearable_ms:.0f} ms); a call of the host never overlaps with the GPU"
        )
    assert total_s <= 60.0
    assert h200.most_bytes <= 8 * 2**30


@pytest.mark.slow  # traces ResNet-50
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_no_op_of_resnet50_takes_more_than_eight_gib_at_batch_256(
    structure: Structure, h200: PretendedCuda, precision: Any
) -> None:
    dtype = {"fp16": "float16", "fp32": "float32"}[precision]
    backend = Torch(device="cuda", precision=precision, channels_last=True)
    ops = list(dict.fromkeys(replace(half(timed.op, 256), dtype=dtype) for timed in structure.ops))
    backend.expects(ops)
    for op in ops:
        backend.build(op)
    assert 2**28 < h200.most_bytes <= 8 * 2**30
