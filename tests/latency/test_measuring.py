"""How often a cell is built, and what several builds say together."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from latency.journal import Journal
from latency.measuring import MOST_BUILDS, Measurer
from latency.timer import Precision

from .fakes import FakeBackend, conv


class Placed(FakeBackend):
    """Every build takes the next of some times, as if memory lay elsewhere each time."""

    builds = 2

    def __init__(self, *times: float) -> None:
        self.times = itertools.cycle(times)
        super().__init__(lambda op: self.now)

    def build(self, op):
        mine = next(self.times)
        built = super().build(op)

        def run() -> None:
            self.now = mine
            built.run()

        return type(built)(run=run, minus=built.minus, method=built.method)


def measured(backend):
    measurer = Measurer(backend, Journal(None, backend.environment()))
    (cell,) = measurer.measure([(conv(64, 64), "sweep", None)], Precision())
    return cell, len(backend.built)


def test_two_builds_that_agree_are_averaged() -> None:
    cell, builds = measured(Placed(100.0, 102.0))
    assert builds == 2
    assert cell["us"] == pytest.approx(101.0)
    assert (cell["ci_lo"], cell["ci_hi"]) == (pytest.approx(100.0), pytest.approx(102.0))


def test_builds_that_disagree_are_repeated_until_their_mean_is_known() -> None:
    # One in three at 130: the standard error of the mean falls below 1.5 % between 10 and 16 builds.
    cell, builds = measured(Placed(100.0, 100.0, 130.0))
    assert builds == 2  # the first two agree by chance
    cell, builds = measured(Placed(130.0, 100.0, 100.0))
    assert 10 <= builds <= MOST_BUILDS
    assert cell["us"] == pytest.approx(110.0, rel=0.02)
    assert cell["ci_lo"] < 110.0 < cell["ci_hi"]


def test_two_places_far_apart_end_at_the_most_builds_with_a_wide_interval() -> None:
    cell, builds = measured(Placed(100.0, 200.0))
    assert builds == MOST_BUILDS
    assert cell["us"] == pytest.approx(150.0)
    # 2 standard errors of 16 times with a standard deviation of 51.6
    assert cell["ci_hi"] - cell["us"] == pytest.approx(25.8, rel=0.01)


def test_a_backend_that_does_not_ask_is_built_once() -> None:
    backend = Placed(100.0, 200.0)
    backend.builds = 1
    cell, builds = measured(backend)
    assert builds == 1
    assert cell["us"] == pytest.approx(100.0)


def test_the_time_of_several_copies_is_shared_among_them() -> None:
    class Copied(FakeBackend):
        def build(self, op):
            return replace(super().build(op), copies=8)

    cell, _ = measured(Copied(lambda op: 4.0))
    assert cell["us"] == pytest.approx(0.5)


def test_noise_of_the_call_leaves_an_eighth_of_itself_to_each_of_eight_copies() -> None:
    # Builds at 20.0 and 20.4 µs are 2 % apart and agree: of a copy 2.5 and 2.55 µs.
    class Copied(Placed):
        def build(self, op):
            return replace(super().build(op), copies=8)

    cell, builds = measured(Copied(20.0, 20.4))
    assert builds == 2
    assert cell["us"] == pytest.approx(2.525)
    assert (cell["ci_lo"], cell["ci_hi"]) == (pytest.approx(2.5), pytest.approx(2.55))
