"""The figures that were fitted to devices: the policy that the caller gives is the one that holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import latency
from latency import TimingPolicy, policy_for, register_policy
from latency.backends import Backend
from latency.backends.torch import Torch
from latency.errors import UsageError
from latency.op import Op
from latency.sweeping import LazySweep
from latency.sweeping.cold_weights import ColdWeights
from latency.sweeping.schedule import Schedule
from latency.sweeping.steps import found_slow, widths_for_step
from latency.timing import Anchor
from latency.timing.timer import Precision, Timing, agree

from .fakes import FakeBackend, FakeClock, conv


@pytest.fixture
def registered() -> Iterator[Callable[[str, TimingPolicy], None]]:
    """Registers policies, and puts back what was there."""
    before = {kind: policy_for(kind) for kind in ("cpu", "cuda")}
    yield register_policy
    for kind, policy in before.items():
        register_policy(kind, policy)


class Contended(FakeBackend):
    """Ops of 10·C_out µs on a machine that is half as fast from the first build on, whose anchor shows it."""

    def __init__(self) -> None:
        super().__init__(lambda op: 10.0 * op.c_out, noise=lambda: 2.0)

    def anchor(self) -> Callable[[], object]:
        return lambda: self.time.passes(20.0 if self.built else 10.0)


@pytest.mark.parametrize("visits", [1, 2, 3])
def test_a_contended_cell_is_measured_as_often_as_the_callers_policy_says(
    visits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Schedule, "_calm", lambda self: True)
    backend, op = Contended(), conv(8, 8)
    policy = TimingPolicy(visits=visits, anchor_seconds=0.0)
    latency.sweep([op], backend=backend, every=8, fixed={op: (True, True)}, policy=policy)
    assert len(backend.built) == 1 + visits  # the first shows that the op can be built


def test_a_lazy_sweep_takes_the_policy_too() -> None:
    backend = FakeBackend(lambda op: 1.0)
    policy = TimingPolicy(visits=1)
    LazySweep([conv(8, 8)], backend=backend, policy=policy)
    assert backend.policy is policy


def test_copies_of_an_op_by_hand() -> None:
    op = conv(8, 8, h=64, w=64)  # 64·64·64·9 = 2,359,296 multiplications
    assert TimingPolicy().copies(op) == 5  # 2^25 has room for fourteen of them: four more than one
    assert TimingPolicy(long_macs=3 * 2_359_296).copies(op) == 4
    assert TimingPolicy(most_copies=2).copies(op) == 2
    assert TimingPolicy(copies_bytes=2 * 8 * 8 * 9 * 4).copies(op) == 2


def test_copies_of_weights_on_a_gpu_by_hand() -> None:
    op = Op(kind="linear", c_in=256, c_out=1024)  # 1 MiB
    assert TimingPolicy().weight_copies(op, [op] * 5, 50 << 20) == 5
    assert TimingPolicy().weight_copies(op, [], 50 << 20) == 32
    assert TimingPolicy(rotated=3).weight_copies(op, [], 50 << 20) == 3


def test_weights_are_cold_by_the_policys_figures() -> None:
    op = conv(128, 128, h=4, w=4)  # 589,824 bytes, each used 16 times
    assert ColdWeights.of([op], {}) is None
    memory = ColdWeights.of([op], {}, TimingPolicy(large_bytes=589_823))
    assert memory is not None
    assert memory.has(op)
    assert ColdWeights.of([op], {}, TimingPolicy(large_bytes=589_823, seldom=15)) is None


@pytest.mark.parametrize(("near", "slower"), [(1.15, [1.0, np.nan]), (1.3, [1.0, 1.2])])
def test_an_anchor_near_its_floor_by_the_policy_tells_the_speed(near: float, slower: list[float]) -> None:
    clock = FakeClock()
    anchor = Anchor(lambda: clock.passes(10.0), clock, TimingPolicy(anchor_near=near))
    anchor.find_floor(0.0)
    found = anchor.slower(np.array([[10.0, 10.0], [12.0, 12.0]]))
    assert found == pytest.approx(slower, nan_ok=True)


def test_builds_agree_by_the_policy() -> None:
    timings = [Timing(us=us, ci_lo=us, ci_hi=us, n=9, contention=None) for us in (100.0, 110.0)]
    assert not agree(timings)
    assert agree(timings, TimingPolicy(builds_agree=0.1))


def test_widths_inside_a_step_are_slow_by_the_policy() -> None:
    us = {w: 64.0 if w == 64 else 128.0 for w in widths_for_step()}
    assert found_slow(us, 8) == (8, 2.0)
    assert found_slow(us, 8, TimingPolicy(step_slower=2.0)) is None


def test_a_registered_policy_holds_for_backends_of_its_kind(
    registered: Callable[[str, TimingPolicy], None],
) -> None:
    mine = replace(policy_for("cpu"), visits=1)
    registered("cpu", mine)
    assert FakeBackend(lambda op: 1.0).policy is mine
    assert Torch(device="cpu").policy is mine
    assert policy_for("cuda").most_copies == 256


def test_a_backend_of_another_kind_of_device_names_it(
    registered: Callable[[str, TimingPolicy], None],
) -> None:
    class Mine(FakeBackend):
        device_kind = "npu"

    backend: Backend = Mine(lambda op: 1.0)
    with pytest.raises(UsageError, match="the timing policy of 'npu' was asked for; did you mean 'cpu'"):
        backend.policy  # noqa: B018


@pytest.mark.parametrize(
    ("field", "value"),
    [("visits", 0), ("visits", 1.5), ("back", -1.0), ("back", float("nan")), ("narrow", True)],
)
def test_figures_that_are_none_are_refused(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"the timing policy's {field} .* was asked for; give a "):
        TimingPolicy(**{field: value})


def test_a_profile_is_read_by_the_policy_of_its_device(
    registered: Callable[[str, TimingPolicy], None],
) -> None:
    # 64 channels of 3×3 to 4 are 9,216 bytes: few by default, so that a warm cell of a cold table counts.
    narrow, wide = conv(64, 4), conv(64, 64)
    cells = [
        {**narrow.key(), "us": 1.0, "cache": "warm"},
        {**wide.key(), "us": 2.0, "cache": "cold"},
    ]
    assert len(latency.Profile({}, cells).cells) == 2
    registered("cpu", replace(policy_for("cpu"), few_bytes=9_215))
    assert len(latency.Profile({}, cells).cells) == 1
    assert len(latency.Profile({"cuda": "13.0"}, cells).cells) == 2


def test_precision_is_no_part_of_the_policy() -> None:
    backend = FakeBackend(lambda op: 10.0)
    op = conv(8, 8)
    profile = latency.sweep([op], backend=backend, every=8, precision=Precision(n_min=5, n_max=5))
    assert {cell["n"] for cell in profile.cells} == {5}
