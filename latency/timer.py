"""How long does one call take, in µs, on a machine that does other things as well?

Single runs are timed, never batches: a run shorter than a slice of the scheduler is mostly clean. One thread is
timed by its own CPU time, which preemption does not touch; several threads by the wall clock.

CPU time is not immune to who shares the core: a hyperthread neighbour slows it by 25 % and more, in bursts of
0.1 … 100 ms, while the undisturbed floor repeats within 0.5 %. So a short *anchor* runs between any two runs, and
a run counts as quiet when the anchors on both sides are at the anchor's floor. The statistic is the median of the
quiet runs with its distribution-free 95 % interval (order statistics); where a machine grants too few quiet runs,
all runs count, each divided by what its anchors say.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Anchor", "Clock", "CpuClock", "Precision", "Timing", "WallClock", "median_interval", "time_call"]

QUIET = 1.03
"""An anchor up to this multiple of its floor counts as undisturbed; the floor itself repeats within 0.5 %."""

BURST = 1.05
"""A quiet run beyond this multiple of the fastest quiet one was hit between its anchors."""

REMEMBERED = 4000
"""Anchor runs from which the floor is taken: those of the last seconds to minutes."""


class Clock(Protocol):
    """What times one call."""

    kind: str

    def time_us(self, run: Callable[[], object]) -> tuple[float, float]:
        """Runs once; returns the time that counts and the wall time, both in µs."""
        ...


class CpuClock:
    """CPU time of the calling thread."""

    kind = "cpu"

    def time_us(self, run: Callable[[], object]) -> tuple[float, float]:
        """Runs once; returns CPU µs of this thread and wall µs."""
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        run()
        cpu = time.thread_time_ns() - cpu
        return cpu / 1e3, (time.perf_counter_ns() - wall) / 1e3


class WallClock:
    """Wall time, for work that other threads share; contention cannot be told from it."""

    kind = "wall"

    def time_us(self, run: Callable[[], object]) -> tuple[float, float]:
        """Runs once; returns wall µs twice."""
        wall = time.perf_counter_ns()
        run()
        us = (time.perf_counter_ns() - wall) / 1e3
        return us, us


@dataclass(frozen=True, kw_only=True)
class Precision:
    """When a measurement is good enough.

    Attributes:
        relative: half-width of the 95 % interval, as a share of the value.
        absolute_us: or this half-width, whichever is wider.
        n_min: at least so many runs.
        n_max: at most so many.
        seconds: at most so long; ``n_min`` runs are made in any case.
    """

    relative: float = 0.02
    absolute_us: float = 0.2
    n_min: int = 9
    n_max: int = 200
    seconds: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One measured time.

    Attributes:
        us: the median.
        ci_lo: lower end of its 95 % interval.
        ci_hi: upper end.
        n: runs that count.
        contention: share of the wall time in which the thread did not run.
        quiet: whether the runs were undisturbed; otherwise they were divided by what the anchor says.
        slowdown: median of the anchor over its floor while this was measured.
    """

    us: float
    ci_lo: float
    ci_hi: float
    n: int
    contention: float
    quiet: bool = True
    slowdown: float = 1.0


@dataclass
class Anchor:
    """A short call that never changes: its time over its floor tells how disturbed the machine is.

    Attributes:
        run: the call.
        clock: what times it.
        floor_us: its undisturbed time: the 2nd percentile of its last runs.
        runs: number of runs so far.
    """

    run: Callable[[], object]
    clock: Clock
    floor_us: float = field(default=math.inf, init=False)
    runs: int = field(default=0, init=False)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED), init=False)

    def settle(self, seconds: float = 0.5, at_least: int = 50) -> None:
        """Runs until the floor is known."""
        end = time.perf_counter() + seconds
        while self.runs < at_least or (time.perf_counter() < end and self.runs < REMEMBERED):
            self.sample()
        self._recount()

    def sample(self) -> float:
        """Runs once and returns µs."""
        us = self.clock.time_us(self.run)[0]
        self._recent.append(us)
        self.runs += 1
        if self.runs % 500 == 0:
            self._recount()
        return us

    def _recount(self) -> None:
        self.floor_us = float(np.percentile(self._recent, 2))


def median_interval(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float, float]:
    """Returns the median and its distribution-free 95 % interval.

    The interval is ``[x_(j), x_(n+1-j)]`` with the largest j for which P(Binomial(n, ½) < j) ≤ 2.5 %; below six
    values there is none, and the ends are the extremes.
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    n = len(x)
    j, tail = 0, 0.5**n
    while j < n // 2 and tail <= 0.025:
        j += 1
        tail += math.comb(n, j) * 0.5**n
    j = max(j, 1)
    return float(np.median(x)), float(x[j - 1]), float(x[n - j])


def time_call(
    run: Callable[[], object],
    *,
    clock: Clock,
    minus: Callable[[], object] | None = None,
    anchor: Anchor | None = None,
    precision: Precision | None = None,
    warm_up: int = 2,
) -> Timing:
    """Times a call, or the difference of two calls that are run in turn.

    Args:
        run: what is timed.
        clock: what times it.
        minus: what is subtracted.
        anchor: runs between any two runs; without one every run counts as quiet.
        precision: when to stop.
        warm_up: runs before the first that counts.
    """
    precision = precision or Precision()
    sides = [run] if minus is None else [run, minus]
    for _ in range(warm_up):
        for side in sides:
            side()
    recorded: list[list[tuple[float, float]]] = [[] for _ in sides]
    timed_us = wall_us = 0.0
    end = time.perf_counter() + precision.seconds
    check = precision.n_min
    n = 0
    while True:
        before = anchor.sample() if anchor else 1.0
        for side, record in zip(sides, recorded, strict=True):
            us, wall = clock.time_us(side)
            after = anchor.sample() if anchor else 1.0
            record.append((us, max(before, after)))
            before = after
            timed_us += us
            wall_us += wall
        n += 1
        if n < check:
            continue
        us, lo, hi, count, quiet, slowdown = _difference(recorded, anchor, precision.n_min)
        wide = hi - lo > 2 * max(precision.relative * abs(us), precision.absolute_us)
        if n >= precision.n_max or time.perf_counter() >= end or (quiet and not wide):
            contention = max(0.0, 1.0 - timed_us / wall_us) if wall_us > 0 else 0.0
            return Timing(
                us=us, ci_lo=lo, ci_hi=hi, n=count, contention=contention, quiet=quiet, slowdown=slowdown
            )
        check = n + max(1, n // 8)


def _difference(
    recorded: list[list[tuple[float, float]]], anchor: Anchor | None, n_min: int
) -> tuple[float, float, float, int, bool, float]:
    """Returns value, interval, runs, whether they were quiet, and the anchor's slowdown."""
    parts = []
    all_quiet = True
    slowdowns = [1.0]
    count = len(recorded[0])
    for record in recorded:
        us = np.array([u for u, _ in record])
        quiet = us
        if anchor is not None:
            slow = np.array([a for _, a in record]) / anchor.floor_us
            slowdowns.extend(slow.tolist())
            quiet = us[slow <= QUIET]
            if len(quiet):
                quiet = quiet[quiet <= BURST * quiet.min()]
            if len(quiet) < max(5, n_min // 2):
                all_quiet = False
                quiet = us / np.maximum(slow, 1.0)
        parts.append(median_interval(quiet))
        count = min(count, len(quiet))
    us_, lo, hi = parts[0]
    if len(parts) == 2:
        us_ -= parts[1][0]
        half = math.hypot(parts[0][2] - parts[0][1], parts[1][2] - parts[1][1]) / 2
        lo, hi = us_ - half, us_ + half
    return us_, lo, hi, count, all_quiet, float(np.median(slowdowns))
