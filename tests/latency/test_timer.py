"""Timing on a clock that the test moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from latency.timing import Anchor
from latency.timing.timer import Precision, Sampling, median_interval, time_call

from .fakes import FakeClock


def runs(clock: FakeClock, times: list[float], share: float = 1.0) -> Callable[[], None]:
    """A call that takes the next of some times, again and again."""
    cycle: Iterator[float] = iter([])

    def run() -> None:
        nonlocal cycle
        try:
            us = next(cycle)
        except StopIteration:
            cycle = iter(times)
            us = next(cycle)
        clock.passes(us, us / share)

    return run


@pytest.mark.parametrize(("n", "j"), [(6, 1), (9, 2), (12, 3), (20, 6), (100, 40)])
def test_interval_of_the_median_is_made_of_the_order_statistics_of_the_sign_test(n: int, j: int) -> None:
    # By hand: the largest j with P(Binomial(n, 1/2) < j) <= 2.5 %.
    assert sum(math.comb(n, k) for k in range(j)) / 2**n <= 0.025
    assert sum(math.comb(n, k) for k in range(j + 1)) / 2**n > 0.025
    values = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    assert median_interval(values) == ((n + 1) / 2, j, n + 1 - j)


def test_interval_of_thousands_of_values_is_that_of_the_normal_limit() -> None:
    # Binomial(n, 1/2) is near n/2 ± 1.96·√n/2: of 10,000 values the 4,902nd and its mirror image.
    values = np.arange(1.0, 10_001)
    assert median_interval(values) == (5000.5, 4902, 5099)


def test_few_values_have_their_extremes_as_interval() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_equal_runs_stop_at_the_fewest() -> None:
    clock = FakeClock()
    found = time_call(runs(clock, [100.0]), clock=clock, precision=Precision(n_min=9))
    assert (found.us, found.n) == (100.0, 9)


def test_scattered_runs_go_on_until_the_interval_is_narrow() -> None:
    clock = FakeClock()
    times = np.random.default_rng(1).normal(100.0, 5.0, 1000)
    found = time_call(
        runs(clock, times.tolist()), clock=clock, precision=Precision(relative=0.02, absolute_us=0.0)
    )
    assert 9 < found.n < 200
    assert found.ci_hi - found.ci_lo <= 4.0
    assert found.ci_lo <= found.us <= found.ci_hi


def test_runs_that_never_settle_stop_at_the_most() -> None:
    clock = FakeClock()
    precision = Precision(relative=0.001, absolute_us=0.0, n_max=40)
    assert (
        time_call(runs(clock, [50.0, 150.0, 70.0, 130.0, 90.0, 110.0]), clock=clock, precision=precision).n
        == 40
    )


def test_a_twin_gives_the_difference_of_its_medians() -> None:
    clock = FakeClock()
    found = time_call(runs(clock, [130.0]), minus=runs(clock, [90.0]), clock=clock)
    assert (found.us, found.ci_lo, found.ci_hi) == (40.0, 40.0, 40.0)


def test_contention_is_the_share_of_the_wall_time_that_others_had() -> None:
    clock = FakeClock()
    assert time_call(runs(clock, [100.0], share=0.75), clock=clock).contention == pytest.approx(0.25)


def test_an_anchor_that_others_drove_out_of_the_caches_runs_until_it_is_back() -> None:
    clock = FakeClock()
    anchor = Anchor(runs(clock, [10.0]), clock)
    anchor.find_floor(seconds=0.0)
    assert anchor.floor_us == 10.0

    def sampled(*times: float) -> tuple[object, int]:
        """µs that a sample gives, and how often the anchor ran for it."""
        began = []
        call = runs(clock, list(times))

        def counted() -> None:
            began.append(0)
            call()

        anchor.run = counted
        return anchor.sample(), len(began)

    assert sampled(50.0, 12.5, 11.0, 10.2, 10.15) == (pytest.approx(10.15), 5)
    assert sampled(10.1, 10.1) == (pytest.approx(10.1), 2)
    assert sampled(11.0, 11.0) == (pytest.approx(11.0), 2)  # the clock is slower, not the cache
    assert sampled(50.0, 15.0, 14.0, 13.0, 12.5, 12.0, 10.0) == (12.0, 6)


def test_a_floor_outlasts_a_neighbour_that_stays_for_long_but_not_for_ever() -> None:
    clock = FakeClock()
    anchor = Anchor(runs(clock, [10.0]), clock)
    anchor.find_floor(seconds=0.0, at_least=4000)
    anchor.run = runs(clock, [16.0])
    floors = []
    for _ in range(3):
        for _ in range(30_000):
            anchor.sample()
        floors.append(anchor.floor_us)
    # Of the last 65,536 samples 4,000 were undisturbed, 4,000 again, and none: 2 % are 1,311.
    assert floors == [10.0, 10.0, 16.0]


def test_times_are_stated_at_one_clock_whatever_clock_the_processor_has() -> None:
    # The clock changes every seven turns, by 5 % up, 4 % and 10 % down; every run takes as much longer.
    clock, turns = FakeClock(), iter(range(100_000))
    speeds = (1.0, 0.95, 1.04, 1.10)
    now = {"slower": 1.0}
    anchor = Anchor(lambda: clock.passes(10.0 * now["slower"]), clock)
    anchor.find_floor(seconds=0.0)
    assert anchor.reference_us == 10.0

    def run() -> None:
        clock.passes(200.0 * now["slower"])

    def minus() -> None:
        clock.passes(120.0 * now["slower"])
        now["slower"] = speeds[next(turns) // 7 % 4]

    precision = Precision(n_min=80, n_max=80)
    sampling = Sampling(clock=clock, anchor=anchor, precision=precision)
    found = sampling.visit(run, minus, warm_up=0)
    expected: tuple[object, bool] = (pytest.approx(80.0), True)
    assert (found.us, found.quiet) == expected
    # A run at which the clock changed counts for neither: three of four changes by more than 3 % hit one side.
    assert 60 <= found.n < 80
    anchor.reference_us = 11.0  # of a profile that was begun at a slower clock
    assert sampling.timing().us == pytest.approx(88.0)


def test_calm_is_a_machine_whose_anchor_stays_near_its_floor() -> None:
    clock = FakeClock()
    anchor = Anchor(lambda: clock.passes(10.0), clock)
    anchor.find_floor(seconds=0.0)
    steady = {"slower clock": [11.0], "shared core": [13.0], "restless": [10.0, 10.0, 10.6, 10.6, 11.2, 11.2]}
    calm = {}
    for name, times in steady.items():
        anchor.run = runs(clock, times)
        calm[name] = anchor.calm(21)
    assert calm == {"slower clock": True, "shared core": False, "restless": False}


def test_only_runs_between_undisturbed_anchors_count() -> None:
    clock = FakeClock()
    slow = {"now": 1.0}

    def anchor_call() -> None:
        clock.passes(10.0 * slow["now"])

    count = iter(range(10_000))

    def run() -> None:
        # Two of four runs, and the anchors after them, meet a neighbour that slows all by a third.
        slow["now"] = 4 / 3 if next(count) % 4 >= 2 else 1.0
        clock.passes(100.0 * slow["now"])

    anchor = Anchor(anchor_call, clock)
    anchor.find_floor(seconds=0.0)
    found = time_call(run, clock=clock, anchor=anchor, warm_up=0, precision=Precision(n_min=40))
    assert (found.us, found.quiet) == (100.0, True)
    assert 20 <= found.n < next(count) / 3


def test_a_machine_that_is_never_quiet_gives_the_fastest_runs_and_says_so() -> None:
    clock = FakeClock()
    anchor = Anchor(lambda: clock.passes(10.0), clock)
    anchor.find_floor(seconds=0.0)
    anchor.run = lambda: clock.passes(13.0)
    times = [130.0] * 19 + [101.0]
    precision = Precision(n_min=40, n_max=40, absolute_us=0.0)
    found = time_call(runs(clock, times), clock=clock, anchor=anchor, warm_up=0, precision=precision)
    assert not found.quiet
    assert found.us == 101.0
    assert found.slowdown == pytest.approx(1.3)


def test_a_second_visit_adds_to_the_first() -> None:
    clock = FakeClock()
    sampling = Sampling(clock=clock, precision=Precision(n_min=9))
    assert sampling.visit(runs(clock, [100.0])).n == 9
    assert sampling.visit(runs(clock, [102.0])).n == 18
    assert sampling.timing().us == 101.0
