"""The torch backend on a GPU that is none: bytes, copies, order of set-up, arithmetic and circumstances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import latency
from latency.backends.torch import Torch
from latency.backends.torch.network import ModuleRunner, restored, set_arithmetic, shared_graphs
from latency.device import policy_for
from latency.errors import MissingError, UnsupportedOpError, UsageError, out_of_memory
from latency.inspect import inspect
from latency.op import Op, weight_bytes
from latency.profiles import Profile
from tests.pretended_cuda import LAUNCH_US, PretendedCuda

from .fakes import conv


@pytest.fixture
def gpu() -> Iterator[PretendedCuda]:
    shared_graphs.cache_clear()
    before = [(owner, owner.fp32_precision) for owner in arithmetic()]
    with PretendedCuda(modelled=True, devices=2) as cuda, restored():
        yield cuda
    shared_graphs.cache_clear()
    for owner, value in before:
        owner.fp32_precision = value


def arithmetic() -> tuple[Any, ...]:
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


def wide(batch: int, dtype: str = "float32") -> Op:
    """A 1×1 convolution 64 → 256 at 56×56 with an addition: at batch 256 its output alone is 0.8 GB in float32."""
    return conv(
        64, 256, h=56, w=56, kernel=(1, 1), padding=(0, 0), batch=batch, tail=("add", "relu"), dtype=dtype
    )


@pytest.mark.parametrize("batch", [1, 32, 256])
def test_copies_of_an_op_share_its_inputs(gpu: PretendedCuda, batch: int) -> None:
    op = wide(batch)
    built = Torch(device="cuda").build(op)
    positions = 4 * batch * 56 * 56
    tensors = positions * 64 + 3 * positions * 256  # input, what is added, a result and what ReLU makes of it
    weights = policy_for("cuda").weight_copies(op, [], 50 << 20) * 4 * (64 * 256 + 256)
    assert gpu.most_bytes <= 1.3 * (tensors + weights)
    assert gpu.most_bytes < 8 * 2**30
    assert built.copies >= 7


def test_the_slope_of_the_two_graphs_is_the_op(gpu: PretendedCuda) -> None:
    backend, op = Torch(device="cuda", precision="fp16"), conv(64, 64, dtype="float16")
    built = backend.build(op)
    assert built.minus is not None
    many, one = (backend.clock().time_us(run)[0] for run in (built.run, built.minus))
    moved = 2 * (64 * 64 * 9 + 64 + 2 * 64 * 64)
    us = LAUNCH_US + max(2 * 64 * 64 * 64 * 9 / 800e6, moved / 4e6)
    assert (many - one) / built.copies == pytest.approx(us, rel=1e-6)


@pytest.mark.parametrize(
    ("megabytes", "copies"),
    [
        (0.0, 32),
        (10.0, 5),
        (60.0, 28),
        (1000.0, 32),
    ],  # of 2.36 MB each; at most what twice a cache of 50 MB holds
)
def test_weights_are_as_cold_as_their_network_makes_them(megabytes: float, copies: int) -> None:
    op = conv(256, 256)
    assert weight_bytes(op) == 256 * 256 * 9 * 4
    other = Op(kind="linear", c_in=1000, c_out=max(1, round(megabytes * 250 - 590)))
    network = [op, other] if megabytes else []
    total = sum(map(weight_bytes, network)) or 100 * 2**20
    expected = min(32, -(-min(total, 100 * 2**20) // weight_bytes(op)))
    assert policy_for("cuda").weight_copies(op, network, 50 << 20) == expected
    assert abs(expected - copies) <= 4


def noted(order: list[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the call, which notes its name first."""

    def run(*given: Any) -> Any:
        order.append(name)
        return call(*given)

    return run


def test_setting_up_has_ended_before_algorithms_are_chosen(
    gpu: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    wait, stream = torch.cuda.synchronize, torch.cuda.stream
    monkeypatch.setattr(torch.cuda, "synchronize", noted(order, "wait", wait))
    monkeypatch.setattr(torch.cuda, "stream", noted(order, "stream", stream))
    backend = Torch(device="cuda")
    shared_graphs(backend.device)
    order.clear()
    backend.build(conv(8, 8))
    assert order[:2] == ["wait", "stream"]


def test_a_module_is_in_place_before_another_stream_reads_it_and_is_replayed_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared_graphs.cache_clear()
    order: list[str] = []
    with PretendedCuda() as cuda, restored():
        shared_graphs("cuda")
        wait, stream = torch.cuda.synchronize, torch.cuda.stream
        monkeypatch.setattr(torch.cuda, "synchronize", noted(order, "wait", wait))
        monkeypatch.setattr(torch.cuda, "stream", noted(order, "stream", stream))
        model, begun = torch.nn.Conv2d(3, 4, 3), cuda.now_us
        with ModuleRunner(model, (torch.zeros(1, 3, 8, 8),), device="cuda") as runner:
            assert order[order.index("stream") - 1] == "wait"
            assert isinstance(runner.run(), torch.Tensor)
        assert cuda.now_us > begun
        assert not cuda.has(model.weight)
        monkeypatch.undo()
    shared_graphs.cache_clear()


def test_all_graphs_of_a_device_share_one_stream_and_one_pool(gpu: PretendedCuda) -> None:
    assert shared_graphs("cuda") is shared_graphs("cuda")
    assert shared_graphs("cuda:1") is not shared_graphs("cuda")


@pytest.mark.parametrize("before", ["ieee", "tf32", "none"])
def test_tf32_is_set_and_put_back_whatever_was_there_before(before: str) -> None:
    owners = arithmetic()
    kept = [owner.fp32_precision for owner in owners]
    try:
        for owner in owners:
            owner.fp32_precision = before
        with restored():
            for precision, value in (("tf32", "tf32"), ("fp32", "ieee"), ("bf16", "ieee")):
                set_arithmetic(precision)  # type: ignore[arg-type]
                assert [owner.fp32_precision for owner in owners] == [value] * 3
        assert [owner.fp32_precision for owner in owners] == [before] * 3
    finally:
        for owner, value in zip(owners, kept, strict=True):
            owner.fp32_precision = value


def test_the_newer_interface_used_before_does_not_stop_a_measurement() -> None:
    kept = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with restored():
            set_arithmetic("fp32")
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = kept


def test_a_second_gpu_is_asked_by_its_number_and_a_third_is_refused(gpu: PretendedCuda) -> None:
    assert Torch(device="cuda:1").environment()["device"] == "Pretended"
    with pytest.raises(
        MissingError, match="device cuda:2 was asked for, and PyTorch finds 2 GPUs, numbered from 0"
    ):
        Torch(device="cuda:2")


def test_an_op_of_another_precision_is_not_timed_as_if_it_were_its_own(gpu: PretendedCuda) -> None:
    with pytest.raises(
        UnsupportedOpError, match="an op in float32 was asked for; this backend measures bf16"
    ):
        Torch(device="cuda", precision="bf16").build(conv(8, 8))


def test_cells_hold_a_kernel_that_never_changes_and_a_moving_clock_is_said(
    gpu: PretendedCuda, tmp_path: Path
) -> None:
    op = conv(64, 64)
    profile = latency.sweep(
        [op], backend="torch", settings={"device": "cuda"}, path=tmp_path / "p.jsonl", every=32
    )
    seen = {cell["reference_us"] for cell in profile.cells}
    assert len(seen) == 1
    assert inspect(profile).clock_spread == 0.0
    cells = [{**cell, "reference_us": 100.0 + 20 * (i % 2)} for i, cell in enumerate(profile.cells)]
    found = inspect(Profile(profile.environment, [{**cell, "throttled": ["power"]} for cell in cells]))
    assert any(
        warning.startswith("clock: the GPU's speed moved by 20%, throttled by power; lock")
        for warning in found.warnings
    )


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
            True,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
        (type("OutOfMemoryError", (Exception,), {})("any"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_full_memory_is_known_by_its_kind_or_its_words(error: Exception, full: bool) -> None:
    assert out_of_memory(error) is full


def test_a_device_that_is_full_leaves_its_ops_out_and_the_sweep_goes_on(
    gpu: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Torch.build

    def full(self: Torch, op: Op) -> latency.Built:
        if op.c_out > 32:
            raise RuntimeError("CUDA error: out of memory")
        return build(self, op)

    monkeypatch.setattr(Torch, "build", full)
    narrow, broad = conv(32, 32), replace(conv(32, 64), h=4, w=4)
    profile = latency.sweep([narrow, broad], backend="torch", settings={"device": "cuda"}, every=32)
    assert profile.has_table(narrow)
    assert any("out of memory" in line for line in profile.environment["not_measured"])


def refusing(gpu: PretendedCuda, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Lets so many captures succeed, and refuses all others as CUDA does."""
    capture, done = torch.cuda.graph, [0]

    def refused(*given: Any, **how: Any) -> Any:
        done[0] += 1
        if done[0] > after:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore words")
        return capture(*given, **how)

    monkeypatch.setattr(torch.cuda, "graph", refused)


def test_an_op_whose_capture_is_refused_is_left_out_and_the_sweep_goes_on(
    gpu: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Torch.recorded

    def only_narrow(self: Torch, calls: Any) -> Any:
        if broad_now[0]:
            refusing(gpu, monkeypatch, 0)
        try:
            return recorded(self, calls)
        finally:
            monkeypatch.setattr(torch.cuda, "graph", capture)

    build, capture, broad_now = Torch.build, torch.cuda.graph, [False]

    def noted(self: Torch, op: Op) -> latency.Built:
        broad_now[0] = op.h == 4
        return build(self, op)

    monkeypatch.setattr(Torch, "build", noted)
    monkeypatch.setattr(Torch, "recorded", only_narrow)
    narrow, broad = conv(32, 32), replace(conv(32, 64), h=4, w=4)
    profile = latency.sweep([narrow, broad], backend="torch", settings={"device": "cuda"}, every=32)
    assert profile.has_table(narrow)
    assert not profile.has_table(broad)
    [line, *_] = profile.environment["not_measured"]
    assert (
        "was to be captured in a CUDA graph, and cuda refuses it (CUDA error: operation not permitted" in line
    )
    assert "more words" not in line


def test_a_network_whose_capture_is_refused_is_said_in_one_sentence(
    gpu: PretendedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_graphs("cuda")
    refusing(gpu, monkeypatch, 0)
    runner = ModuleRunner(torch.nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 8, 8),), device="cuda")
    with pytest.raises(
        UsageError, match=r"Conv2d was to be captured in a CUDA graph, .*call by call, with @eager$"
    ):
        runner.ready()


def little(num_classes: int = 2) -> torch.nn.Module:
    """A convolution and a linear layer."""
    nn = torch.nn
    first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(first, nn.Flatten(), nn.Linear(8, num_classes))


def test_the_installed_command_profiles_on_the_second_gpu_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from halpiee.cli import networks
    from halpiee.cli.app import program

    module, out = f"{__name__}:little", tmp_path / "gpu.jsonl"
    traced = networks.traced(module, 1, (3, 8, 8))  # tracing has pretended tensors of its own
    monkeypatch.setattr(networks, "traced", lambda *_, **__: traced)
    shared_graphs.cache_clear()
    with PretendedCuda(modelled=True, devices=2) as gpu, restored():
        words = ["--backend", "torch", "--device", "cuda:1", "--precision", "fp16", "--channels-last"]
        done = CliRunner().invoke(
            program, ["profile", module, "--size", "8", *words, "--out", str(out), "--json"]
        )
    shared_graphs.cache_clear()
    assert done.exception is None, done.exception
    profile = Profile.load(out)
    facts = profile.environment
    assert (facts["backend"], facts["device"], facts["dtype"]) == ("torch", "Pretended", "float16")
    assert {cell["layout"] for cell in profile.cells} == {"nhwc"}
    assert all(cell["us"] > 0 and cell["reference_us"] > 0 for cell in profile.cells)
    assert {str(device) for device in gpu.entered} == {"cuda:1"}


def test_bench_times_networks_on_the_gpu_waits_for_them_and_says_which_gpu() -> None:
    import json

    from click.testing import CliRunner

    from halpiee.cli.app import program

    shared_graphs.cache_clear()
    with PretendedCuda(modelled=True) as gpu, restored():
        words = ["--size", "8", "--batch", "4", "--device", "cuda", "--rounds", "9", "--json"]
        done = CliRunner().invoke(program, ["bench", f"{__name__}:little", f"{__name__}:other", *words])
    shared_graphs.cache_clear()
    assert done.exception is None, done.exception
    told = json.loads(done.stdout)
    assert [(row["runtime"], row["batch"], row["n"]) for row in told["files"]] == [("torch", 4, 9)] * 2
    assert "Pretended" in json.dumps(told["environments"])
    assert gpu.waits["synchronize"] >= 2 * 9  # a run ends with its answer, not with its launch
    assert gpu.now_us >= 2 * 9 * 4 * LAUNCH_US  # a convolution, its ReLU, a mean and a linear layer


def other(num_classes: int = 2) -> torch.nn.Module:
    """The same by another name."""
    return little(num_classes)
