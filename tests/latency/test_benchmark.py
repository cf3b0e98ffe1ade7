"""Networks compared on a clock that the test moves."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import pytest

import latency
from latency.errors import MissingError, UsageError
from latency.timing.benchmark import Comparison, compare

from .fakes import FakeBackend, FakeClock


def test_sides_take_turns_and_swap_who_is_first() -> None:
    clock, order = FakeClock(), []

    def call(name: str, us: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            clock.passes(us)

        return run

    compare({"a": call("a", 20_000.0), "b": call("b", 30_000.0)}, rounds=9, clock=clock)
    # Five runs of each to warm up; a turn is twice four, as nothing gets faster, and eight that count, or what is left.
    turns = ["a"] * 16 + ["b"] * 16 + ["b"] * 9 + ["a"] * 9
    assert order == ["a"] * 5 + ["b"] * 5 + turns
    assert compare({"a": call("a", 20_000.0), "b": call("b", 30_000.0)}, rounds=10, clock=clock)["a"].n == 10


def test_a_network_whose_data_the_others_drove_out_runs_until_it_is_back() -> None:
    # As a VGG-16 after others on a last cache of 260 MB: each run after the third takes a sixth of the rest less.
    clock, last, since = FakeClock(), [""], [0]

    def call(name: str, us: float) -> Callable[[], None]:
        def run() -> None:
            since[0] = since[0] + 1 if last[0] == name else 0
            last[0] = name
            clock.passes(us * (1.0 + 0.33 * (5 / 6) ** max(0, since[0] - 2)))

        return run

    found = compare({"a": call("a", 2000.0), "b": call("b", 1000.0)}, rounds=12, clock=clock)
    # A block that gains less than one per cent follows one that is within 1 % / (1 − (5/6)⁴) of the end: 2 %.
    for name, us in (("a", 2000.0), ("b", 1000.0)):
        assert us <= found[name].p90_us <= 1.02 * us
    assert found.ratio("a", "b").median == pytest.approx(2.0, rel=1e-3)


def test_a_drift_that_hits_both_sides_leaves_the_ratio_alone() -> None:
    clock = FakeClock()
    speed = iter(np.linspace(1.0, 3.0, 100_000))
    now = {"speed": 1.0}

    def dense() -> None:
        now["speed"] = next(speed)
        clock.passes(20_000.0 * now["speed"])

    found = compare(
        {"dense": dense, "half": lambda: clock.passes(10_000.0 * now["speed"])}, rounds=31, clock=clock
    )
    ratio = found.ratio("dense", "half")
    assert ratio.median == pytest.approx(2.0, rel=0.01)
    assert ratio.lo <= ratio.median <= ratio.hi


def test_median_and_quartiles_are_of_the_runs_that_count() -> None:
    runs = {"a": [100.0] * 10 + [200.0] * 10, "b": [50.0] * 20}
    slower = {"a": [1.0] * 10 + [math.nan] * 10, "b": [1.0] * 20}
    found = Comparison(runs, "cpu", {"a": 0.25}, slower)
    assert (found["a"].median_us, found["a"].iqr_us, found["a"].n) == (100.0, 0.0, 10)
    assert (found["a"].contended, found["a"].contention, found["a"].clock) == (0.5, 0.25, "cpu")
    assert found.ratio("a", "b").median == 2.0


def test_without_enough_quiet_runs_the_fastest_twentieth_of_every_side_counts() -> None:
    runs = {"a": [300.0] * 391 + [110.0] * 9, "b": [50.0] * 9 + [60.0] * 391}
    slower = {"a": [math.nan] * 400, "b": [1.0] * 400}
    found = Comparison(runs, "cpu", {}, slower)
    assert not found.quiet
    assert found["a"].median_us == 300.0
    assert found["b"].n == 400


def test_a_wide_spread_and_contention_are_said() -> None:
    found = Comparison({"a": [100.0, 100.0, 100.0, 200.0, 200.0, 200.0]}, "cpu", {"a": 0.3})["a"]
    assert found.warnings[0].startswith("spread: the quartiles are")
    assert found.warnings[1].startswith("contention: 30% of the time")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(UsageError, match=r"backend 'tvm' was asked; known are onnxruntime, .*torch"):
        latency.measure("model.onnx", backend="tvm")


def test_a_gpu_is_refused_for_onnxruntime() -> None:
    with pytest.raises(MissingError, match="it is measured on the CPU here"):
        latency.measure("model.onnx", device="cuda")


def test_a_model_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"'nothere\.onnx' was asked for, and there is no such file"):
        latency.measure("nothere.onnx")


def test_something_that_is_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="the latency of a int was asked for"):
        latency.measure(3)  # type: ignore[arg-type]


def test_a_call_is_warm_when_three_runs_in_a_row_agree() -> None:
    clock, runs = FakeClock(), [0]
    first = [90_000.0, 50_000.0, 30_000.0, 20_000.0, 15_000.0, 12_000.0]  # a cache that fills

    def call() -> None:
        clock.passes(first[runs[0]] if runs[0] < len(first) else 10_000.0)
        runs[0] += 1

    found = compare({"a": call}, rounds=9, clock=clock)
    assert runs[0] == 9 + 9  # six slow runs and three that agree, then nine that count
    assert found["a"].p99_us == 10_000.0


def test_a_fixed_warm_up_is_kept_to() -> None:
    clock, runs = FakeClock(), [0]

    def call() -> None:
        clock.passes(10_000.0 + 1_000.0 * runs[0])
        runs[0] += 1

    compare({"a": call}, rounds=9, clock=clock, warm_up=10)
    assert runs[0] == 10 + 9


def test_percentiles_and_the_mean_are_of_all_runs() -> None:
    runs = [float(us) for us in range(1, 102)]
    slower = [1.0] * 50 + [math.nan] * 51
    found = Comparison({"a": runs}, "wall", {}, {"a": slower})["a"]
    assert (found.p10_us, found.p50_us, found.p90_us, found.p99_us) == (11.0, 51.0, 91.0, 100.0)
    assert found.mean_us == 51.0


def test_without_quiet_runs_the_interval_holds_the_ratio_of_every_quarter_of_the_rounds() -> None:
    # One side slows down by a tenth over the rounds, by steps: 2.0, 2.05, 2.1, 2.2 times the other.
    runs = {"a": [us for us in (200.0, 205.0, 210.0, 220.0) for _ in range(10)], "b": [100.0] * 40}
    ratio = Comparison(runs, "cpu", {}, {name: [math.nan] * 40 for name in runs}).ratio("a", "b")
    assert ratio.median == pytest.approx(2.0)
    assert ratio.lo <= 2.0
    assert ratio.hi == pytest.approx(2.2)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_worker_threads_of_torch_start_before_the_caller_is_tied_to_a_core() -> None:
    clock, cores = FakeClock(), []

    def call() -> None:
        cores.append(len(os.sched_getaffinity(0)))
        clock.passes(20_000.0)

    before = len(os.sched_getaffinity(0))
    compare({"a": call}, backend="torch", threads=2, rounds=9, clock=clock)
    assert cores[0] == before
    assert set(cores[1:]) == {1}
    assert len(os.sched_getaffinity(0)) == before


def test_what_the_wall_clock_cannot_tell_is_not_measured_rather_than_zero() -> None:
    from latency.timing import WallClock
    from latency.timing.timer import joined, time_call

    found = compare({"a": lambda: None}, clock=WallClock(), rounds=9, seconds=0.1)["a"]
    assert (found.clock, found.contention) == ("wall", None)
    assert not any("contention" in text for text in found.warnings)
    timing = time_call(lambda: None, clock=WallClock())
    assert timing.contention is None
    assert joined([timing, timing]).contention is None


def test_a_runner_that_cannot_be_readied_gives_back_what_it_took() -> None:
    class Broken(latency.Runner):
        def __init__(self) -> None:
            self.taken = 0

        def ready(self) -> None:
            self.taken += 1
            raise MissingError("no memory")

        def start(self) -> object:
            return None

        def free(self) -> None:
            self.taken -= 1

    runner = Broken()
    with pytest.raises(MissingError, match="no memory"):
        runner.__enter__()
    assert (runner.taken, runner.is_ready) == (0, False)


def test_the_runner_says_what_times_it() -> None:
    class Own(FakeClock):
        kind = "wall"

    class Elsewhere(latency.Runner):
        """Passes 7 µs on a clock of its own, and none on the backend's."""

        own = Own()

        def ready(self) -> None:
            pass

        def start(self) -> object:
            self.own.passes(7.0)
            return None

        def clock(self) -> FakeClock:
            return self.own

    found = latency.compare({"net": Elsewhere()}, backend=FakeBackend(lambda op: 1.0), rounds=9, seconds=1.0)
    assert (found["net"].median_us, found["net"].clock) == (7.0, "wall")
