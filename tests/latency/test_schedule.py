"""How often a cell is built, and what several builds say together."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import latency
from latency.backends import Built
from latency.device import TimingPolicy
from latency.op import Op
from latency.profile_io import Journal
from latency.sweeping.schedule import Measurer, Schedule
from latency.timing.timer import Precision

from .fakes import FakeBackend, conv


class Placed(FakeBackend):
    """Every build takes the next of some times, as if memory lay elsewhere each time."""

    builds = 2

    def __init__(self, *times: float) -> None:
        self.times = itertools.cycle(times)
        super().__init__(lambda op: self.now)

    def build(self, op: Op) -> Built:
        mine = next(self.times)
        built = super().build(op)

        def run() -> None:
            self.now = mine
            built.run()

        return type(built)(run=run, minus=built.minus, method=built.method)


def measured(backend: FakeBackend) -> tuple[dict[str, Any], int]:
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
    assert 10 <= builds <= TimingPolicy().most_builds
    assert cell["us"] == pytest.approx(110.0, rel=0.02)
    assert cell["ci_lo"] < 110.0 < cell["ci_hi"]


def test_two_places_far_apart_end_at_the_most_builds_with_a_wide_interval() -> None:
    cell, builds = measured(Placed(100.0, 200.0))
    assert builds == TimingPolicy().most_builds
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
        def build(self, op: Op) -> Built:
            return replace(super().build(op), copies=8)

    cell, _ = measured(Copied(lambda op: 4.0))
    assert cell["us"] == pytest.approx(0.5)


def test_noise_of_the_call_leaves_an_eighth_of_itself_to_each_of_eight_copies() -> None:
    # Builds at 20.0 and 20.4 µs are 2 % apart and agree: of a copy 2.5 and 2.55 µs.
    class Copied(Placed):
        def build(self, op: Op) -> Built:
            return replace(super().build(op), copies=8)

    cell, builds = measured(Copied(20.0, 20.4))
    assert builds == 2
    assert cell["us"] == pytest.approx(2.525)
    assert (cell["ci_lo"], cell["ci_hi"]) == (pytest.approx(2.5), pytest.approx(2.55))


class Disturbed(FakeBackend):
    """Ops of 10·C_out µs; the machine is half as fast during a cell's first so many builds, and the anchor tells."""

    def __init__(self, slow_builds: int) -> None:
        super().__init__(lambda op: 10.0 * op.c_out, noise=lambda: self.slow)
        self.slow, self.slow_builds = 1.0, slow_builds
        self.order: list[tuple[int, int]] = []
        """C_out of each build, and how many cells were on the disk then."""

    def anchor(self) -> Callable[[], object]:
        return lambda: self.time.passes(10.0 * self.slow)

    def build(self, op: Op) -> Built:
        before = sum(width == op.c_out for width, _ in self.order)
        self.slow = 2.0 if before < self.slow_builds else 1.0
        self.order.append((op.c_out, len(self.journal.cells)))
        return super().build(op)

    def measured(self, *widths: int) -> list[dict[str, Any]]:
        self.journal = Journal(None, self.environment())
        cells = [(conv(64, width), "sweep", None) for width in widths]
        return Measurer(self, self.journal).measure(cells, Precision(n_max=20))


WIDTHS = (8, 16, 24, 32, 40)


def test_disturbed_cells_are_measured_again_the_one_first_that_may_be_off_the_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Schedule, "_calm", lambda self: True)
    backend = Disturbed(slow_builds=1)
    backend.policy = TimingPolicy(again_share=1.0)
    cells = backend.measured(*WIDTHS)
    visited = [width for width, _ in backend.order]
    assert sorted(visited[:5]) == list(WIDTHS)
    assert visited[5:] == [40, 32, 24, 16, 8]
    assert {c["c_out"]: c["us"] for c in cells} == {width: 10.0 * width for width in WIDTHS}
    assert {c["method"] for c in cells} == {"twin"}


def test_a_cell_that_stays_disturbed_is_written_after_three_visits_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Schedule, "_calm", lambda self: True)
    backend = Disturbed(slow_builds=9)
    backend.policy = TimingPolicy(again_share=1.0)
    cells = backend.measured(*WIDTHS)
    visited = [width for width, _ in backend.order]
    assert visited[5:] == [40, 32, 24, 16, 8] * 2  # nobody a third time before all were there twice
    assert {c["method"] for c in cells} == {"twin/disturbed"}
    assert {c["slowdown"] for c in cells} == {2.0}
    assert {c["c_out"]: c["us"] for c in cells} == {width: 20.0 * width for width in WIDTHS}


def test_where_no_time_is_left_for_it_no_cell_is_measured_again() -> None:
    backend = Disturbed(slow_builds=1)
    backend.policy = TimingPolicy(again_share=0.0, again_seconds=0.0)
    cells = backend.measured(*WIDTHS)
    assert len(backend.order) == len(cells) == 5
    assert {c["method"] for c in cells} == {"twin/disturbed"}


def test_no_more_than_some_disturbed_cells_wait() -> None:
    backend = Disturbed(slow_builds=1)
    backend.policy = TimingPolicy(again_share=0.0, again_seconds=0.0, together=2)
    backend.measured(*WIDTHS)
    assert [on_disk for _, on_disk in backend.order] == [0, 0, 0, 0, 2]


@pytest.mark.parametrize(("again", "visits"), [(1e9, 2), (0.25, 1)])
def test_disturbed_cells_wait_until_the_neighbour_has_gone_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, again: float, visits: int
) -> None:
    monkeypatch.setattr("latency.sweeping.schedule.time.sleep", lambda seconds: None)

    class Neighbour(FakeBackend):
        """Halves the machine's speed from a moment on, for a second: longer than five visits take."""

        def __init__(self) -> None:
            super().__init__(lambda op: 10.0 * op.c_out, noise=self.slow)
            self.came = float("inf")

        def slow(self) -> float:
            return 2.0 if self.came <= self.time.now_us < self.came + 1e6 else 1.0

        def anchor(self) -> Callable[[], object]:
            return lambda: self.time.passes(10.0 * self.slow())

    backend = Neighbour()
    pause = 1e-6 if again > 1 else 100.0
    backend.policy = TimingPolicy(again_share=again, again_seconds=0.0, pause_seconds=pause)
    measurer = Measurer(backend, Journal(None, backend.environment()))
    backend.came = backend.time.now_us
    cells = measurer.measure([(conv(64, width), "sweep", None) for width in WIDTHS], Precision(n_max=20))
    assert len(backend.built) == visits * len(WIDTHS)
    right = visits == 2
    assert {c["method"] for c in cells} == {"twin" if right else "twin/disturbed"}
    assert {c["c_out"]: c["us"] for c in cells} == {w: (10.0 if right else 20.0) * w for w in WIDTHS}


class Departing(FakeBackend):
    """Ops of 10·C_out µs; a neighbour halves the machine's speed until so many builds were made."""

    def __init__(self, builds: int) -> None:
        super().__init__(lambda op: 10.0 * op.c_out, noise=self.slow)
        self.until = builds

    def slow(self) -> float:
        return 2.0 if len(self.built) < self.until else 1.0

    def anchor(self) -> Callable[[], object]:
        return lambda: self.time.passes(10.0 * self.slow())


def test_a_sweep_begun_beside_a_neighbour_begins_again_when_he_has_gone(tmp_path: Path) -> None:
    policy = TimingPolicy(anchor_seconds=0.0, anchor_renewed=50)
    ops = [conv(64, 64)]
    path = tmp_path / "p.jsonl"
    profile = latency.sweep(ops, backend=Departing(30), path=path, policy=policy)
    assert profile.environment["anchor_us"] == 10.0
    assert {c["us"] / c["c_out"] for c in profile.cells} == {10.0}
    assert {c["slowdown"] for c in profile.cells} == {1.0}
    read = latency.Profile.load(path)
    assert (read.cells, read.environment) == (profile.cells, profile.environment)
    assert len(path.read_text().splitlines()) == 1 + 1 + len(
        profile.cells
    )  # the environment, the anchor, the cells


def test_a_profile_is_continued_at_the_speed_it_was_begun_at(tmp_path: Path) -> None:
    policy = TimingPolicy(anchor_seconds=0.0, again_seconds=0.0, again_share=0.0)

    class Paced(FakeBackend):
        """Ops of 10·C_out µs at a pace, as the anchor of 10 µs."""

        def __init__(self, pace: float) -> None:
            super().__init__(lambda op: 10.0 * op.c_out, noise=lambda: pace)
            self.pace = pace

        def anchor(self) -> Callable[[], object]:
            return lambda: self.time.passes(10.0 * self.pace)

    found = {}
    for pace, width in ((1.0, 8), (1.1, 16), (0.95, 24), (1.5, 32)):
        backend = Paced(pace)
        backend.policy = policy
        with Journal(tmp_path / "p.jsonl", backend.environment()) as journal:
            cell = (conv(64, width), "sweep", None)
            (found[width],) = Measurer(backend, journal).measure([cell], Precision())
    assert {width: cell["us"] for width, cell in found.items() if width < 32} == {
        8: 80.0,
        16: 160.0,
        24: 240.0,
    }
    assert [found[width]["method"] for width in (8, 16, 24, 32)] == ["twin"] * 3 + ["twin/disturbed"]
