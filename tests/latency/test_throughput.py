"""Images per second on a clock that the calls move."""

from __future__ import annotations

import threading

import pytest

from latency.timing.throughput import Load, Throughputs, measure_throughput


class Machine:
    """A clock that every call moves on, and what was called."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.order: list[str] = []

    def load(self, name: str, seconds: float) -> Load:
        def start() -> None:
            self.seconds += seconds
            self.order.append(name)

        return Load(start)


def test_images_per_second_are_batch_over_the_time_of_a_call() -> None:
    machine = Machine()
    loads = {"slow": machine.load("slow", 0.02), "fast": machine.load("fast", 0.005)}
    found = measure_throughput(loads, batch=8, rounds=9, now=lambda: machine.seconds)
    assert found["slow"].median_fps == pytest.approx(8 / 0.02)
    assert found["fast"].median_fps == pytest.approx(8 / 0.005)
    assert found["fast"].n == 9
    ratio = found.ratio("slow", "fast")
    assert (ratio.lo, ratio.median, ratio.hi) == pytest.approx((4.0, 4.0, 4.0))


def test_networks_take_turns_and_swap_who_is_first() -> None:
    machine = Machine()
    loads = {"a": machine.load("a", 0.3), "b": machine.load("b", 0.3)}
    measure_throughput(loads, batch=1, rounds=9, now=lambda: machine.seconds)
    assert machine.order[6:14] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_answers_still_under_way_are_waited_for() -> None:
    machine = Machine()

    def answer() -> None:
        machine.seconds += 1.0

    found = measure_throughput(
        {"gpu": Load(lambda: None, answer)}, batch=4, rounds=9, round_seconds=1.0, now=lambda: machine.seconds
    )
    assert found["gpu"].median_fps == pytest.approx(4.0)


def test_callers_call_at_once_and_all_their_images_count() -> None:
    together = threading.Barrier(3, timeout=20)  # breaks unless three callers are inside at the same time
    machine = Machine()

    def start() -> None:
        if together.wait() == 0:
            machine.seconds += 0.5

    found = measure_throughput(
        {"net": Load(start)}, batch=2, callers=3, rounds=9, round_seconds=0.5, now=lambda: machine.seconds
    )
    assert found["net"].callers == 3
    assert found["net"].median_fps == pytest.approx(2 * 3 / 0.5)


def test_an_error_of_a_caller_is_raised() -> None:
    def start() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        measure_throughput({"net": Load(start)}, batch=1, callers=2)


def test_the_interval_of_a_ratio_is_that_of_the_rounds() -> None:
    # Nine rounds: the 2nd and the 8th of the sorted ratios 1.1 … 1.9 (P(Binomial(9, ½) ≤ 1) = 2.0 %).
    found = Throughputs({"a": [1.0] * 9, "b": [1.1, 1.9, 1.2, 1.8, 1.5, 1.3, 1.7, 1.4, 1.6]}, callers=1)
    ratio = found.ratio("a", "b")
    assert (ratio.lo, ratio.median, ratio.hi) == pytest.approx((1.2, 1.5, 1.8))
