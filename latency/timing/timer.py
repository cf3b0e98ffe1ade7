"""How long does one call take, in µs, on a machine that does other things as well?

Single runs are timed, never batches: a run shorter than a slice of the scheduler is mostly clean. An anchor tells which
runs were uncontended (`latency.timing`). The result is their median with its distribution-free 95 % interval. Calls
longer than the quiet moments have no such runs: then it is the median of the fastest twentieth, which counts as
uncontended where three of these runs agree.

The place of a build's memory changes its time for as long as the build lives. So several builds of an op have one time,
``joined`` (0050).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latency.device import TimingPolicy, policy_for
from latency.timing import Anchor, Clock, share_lost

FEWEST = 3
"""Fewest quiet runs that make a time, or half of `Precision.n_min`; as many of the fastest where none is quiet."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """When a measurement is good enough."""

    relative: float = 0.02  # half-width of the 95 % interval, as a share of the value
    absolute_us: float = 0.1  # or this half-width, whichever is wider
    n_min: int = 9  # at least so many runs
    n_max: int = 600  # at most so many
    seconds: float = 0.2  # at most so long; `n_min` runs are made in any case


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One measured time."""

    us: float  # the median
    ci_lo: float  # lower end of its 95 % interval
    ci_hi: float  # upper end
    n: int  # runs that count
    contention: float | None  # share of the wall time in which the thread did not run; None: not measured
    quiet: bool = True  # whether the runs were uncontended; otherwise they are the fastest twentieth of all
    slowdown: float = 1.0  # median of the anchor over its floor while this was measured


def median_interval(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float, float]:
    """Returns the median and its distribution-free 95 % interval.

    The interval is ``[x_(j), x_(n+1-j)]`` with the largest j for which P(Binomial(n, ½) < j) ≤ 2.5 %; below six
    values there is none, and the ends are the extremes.
    """
    x = np.sort(np.asarray(values, dtype=np.float64))
    n = len(x)
    # In whole numbers, which beyond a thousand values are no floats: C(n, 0) + … + C(n, j) against 2.5 % of 2^n.
    j, ways = 0, 1
    below = ways
    while j < n // 2 and 40 * below <= 1 << n:
        j += 1
        ways = ways * (n - j + 1) // j
        below += ways
    j = max(j, 1)
    return float(np.median(x)), float(x[j - 1]), float(x[n - j])


class Sampling:
    """Runs of a call, or of two calls alternately, over one or several visits; without an anchor every run is quiet."""

    def __init__(
        self,
        *,
        clock: Clock,
        anchor: Anchor | None = None,
        precision: Precision | None = None,
        policy: TimingPolicy | None = None,
    ) -> None:
        self.clock = clock
        self.anchor = anchor
        self.precision = precision or Precision()
        self.policy = policy or (anchor.policy if anchor is not None else policy_for("cpu"))
        self._runs: tuple[list[float], list[float]] = ([], [])
        self._around: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
        self._timed_us = self._wall_us = 0.0
        self._sides: list[Callable[[], object]] = []
        self._rounds = self._check = 0
        self._seconds = 0.0
        self.reads = 0

    def visit(
        self, run: Callable[[], object], minus: Callable[[], object] | None = None, *, warm_up: int = 2
    ) -> Timing:
        """Runs until the precision is met, the runs of earlier visits included; returns what is known then."""
        self.begin(run, minus, warm_up=warm_up)
        interleave([self])
        return self.timing()

    def begin(
        self,
        run: Callable[[], object],
        minus: Callable[[], object] | None = None,
        *,
        warm_up: int = 2,
        reads: int = 0,
    ) -> None:
        """Sets the calls to time and warms them up; see `visit`. ``reads``: bytes of weights that one run reads."""
        self.reads = reads
        self._sides = [run] if minus is None else [run, minus]
        for _ in range(warm_up):
            self.run()
        self._rounds, self._check, self._seconds = 0, self.precision.n_min, 0.0

    def run(self) -> None:
        """Runs each call once, untimed."""
        for side in self._sides:
            side()

    @property
    def begun(self) -> bool:
        """Whether more runs are to come: timing has begun and not ended."""
        return bool(self._sides)

    def sample_round(self, shared: float = 0.0) -> bool:
        """Runs each call once, between anchors; returns whether more are needed.

        ``shared``: seconds spent on the round before.
        """
        began = time.perf_counter()
        earlier = self.anchor.sample() if self.anchor else 1.0
        for side, runs, around in zip(self._sides, self._runs, self._around, strict=False):
            us, wall = self.clock.time_us(side)
            later = self.anchor.sample() if self.anchor else 1.0
            runs.append(us)
            around.append((earlier, later))
            earlier = later
            self._timed_us += us
            self._wall_us += wall
        self._rounds += 1
        self._seconds += shared + time.perf_counter() - began
        if self._rounds < self._check:
            return True
        found, precision = self.timing(), self.precision
        wide = found.ci_hi - found.ci_lo > 2 * max(precision.relative * abs(found.us), precision.absolute_us)
        self._check = min(self._rounds + max(1, self._rounds // 8), precision.n_max)
        over = self._rounds >= precision.n_max or self._seconds >= precision.seconds
        if not over and (wide or not found.quiet):
            return True
        self._sides = []  # what was timed is let go
        return False

    def timing(self) -> Timing:
        """Returns the time over all visits: of the first call, minus that of the second."""
        parts = [
            self._side(np.array(runs), np.array(around))
            for runs, around in zip(self._runs, self._around, strict=True)
            if runs
        ]
        us, lo, hi = parts[0][0]
        if len(parts) == 2:
            less = parts[1][0]
            us -= less[0]
            half = math.hypot(hi - lo, less[2] - less[1]) / 2
            lo, hi = us - half, us + half
        slow = (
            [max(a) / self.anchor.floor_us for side in self._around for a in side] if self.anchor else [1.0]
        )
        return Timing(
            us=us,
            ci_lo=lo,
            ci_hi=hi,
            n=min(count for _, count, _ in parts),
            contention=share_lost(self.clock, self._timed_us, self._wall_us),
            quiet=all(quiet for _, _, quiet in parts),
            slowdown=float(np.median(slow)),
        )

    def _side(
        self, us: NDArray[np.float64], around: NDArray[np.float64]
    ) -> tuple[tuple[float, float, float], int, bool]:
        """Returns median and interval of one call, from how many runs, and whether these were quiet."""
        if self.anchor is None:
            return median_interval(us), len(us), True
        slower = self.anchor.slower(around)
        quiet = (us / slower)[~np.isnan(slower)]
        if len(quiet):
            quiet = quiet[quiet <= self.policy.burst * quiet.min()]
        if len(quiet) >= max(FEWEST, self.precision.n_min // 2):
            return median_interval(quiet), len(quiet), True
        # Runs longer than the quiet moments: the fastest twentieth was contended least, and where it repeats
        # within one per cent, and the anchor was uncontended as well, it was not contended at all.
        low = np.sort(us)[: max(3, len(us) // 20)] / self.anchor.at_best(around)
        repeats = len(us) >= 2 * self.precision.n_min and low[2] <= self.policy.repeats * low[0]
        uncontended = repeats and not np.isnan(slower).all()
        return (float(np.median(low)), float(low[0]), float(low[-1])), len(low), bool(uncontended)


def interleave(samplings: Sequence[Sampling], before: Callable[[int], object] | None = None) -> None:
    """Runs samplings alternately until each meets its precision or its time is over.

    ``before`` runs untimed before each round, told how many bytes of weights the round reads; its time is shared by all
    that go on. Rounds count from when they get no faster.
    """
    going = list(samplings)
    if before is not None and going:
        reads = sum(sampling.reads for sampling in going)
        everything, clear = list(going), before

        def one_round() -> None:
            clear(reads)
            for sampling in everything:
                sampling.run()

        warm_caches(one_round, going[0].clock, going[0].policy.rounds, going[0].policy)
    while going:
        began = time.perf_counter()
        if before is not None:
            before(sum(sampling.reads for sampling in going))
        shared = (time.perf_counter() - began) / len(going)
        going = [sampling for sampling in going if sampling.sample_round(shared)]


def warm_caches(
    call: Callable[[], object], clock: Clock, least: int = 0, policy: TimingPolicy | None = None
) -> None:
    """Runs a call until it gets no faster: until its data is in the caches.

    A large last cache takes its time to keep what is read again and again (decision 0066).
    """
    policy, before = policy or policy_for("cpu"), math.inf
    for done in range(0, policy.block_runs, policy.block):
        fastest = min(clock.time_us(call)[0] for _ in range(policy.block))
        if before <= policy.back * fastest and done + policy.block >= least:
            break
        before = min(before, fastest)


def time_call(
    run: Callable[[], object],
    *,
    clock: Clock,
    minus: Callable[[], object] | None = None,
    anchor: Anchor | None = None,
    precision: Precision | None = None,
    warm_up: int = 2,
) -> Timing:
    """Times a call, or the difference of two calls that run alternately, in one visit."""
    sampling = Sampling(clock=clock, anchor=anchor, precision=precision)
    return sampling.visit(run, minus, warm_up=warm_up)


def agree(timings: Sequence[Timing], policy: TimingPolicy | None = None) -> bool:
    """Returns whether two builds agree, or the mean of more is known as well as that."""
    policy, times = policy or policy_for("cpu"), [t.us for t in timings]
    enough = max(policy.builds_agree * abs(float(np.mean(times))), policy.builds_agree_us)
    if len(times) == 2:
        return abs(times[0] - times[1]) <= enough
    return standard_error(times) <= enough / 2


def standard_error(times: Sequence[float]) -> float:
    """Returns the standard error of the mean of two times or more."""
    return float(np.std(times, ddof=1) / math.sqrt(len(times)))


def joined(timings: Sequence[Timing]) -> Timing:
    """Returns the mean of the builds, and the 95 % interval that their differences leave."""
    if len(timings) == 1:
        return timings[0]
    times = [t.us for t in timings]
    within = math.hypot(*(t.ci_hi - t.ci_lo for t in timings)) / 2 / len(timings)
    between = float(np.ptp(times)) / 2 if len(times) == 2 else 2.0 * standard_error(times)
    us, half = float(np.mean(times)), max(within, between)
    lost = [t.contention for t in timings if t.contention is not None]
    return Timing(
        us=us,
        ci_lo=us - half,
        ci_hi=us + half,
        n=sum(t.n for t in timings),
        contention=float(np.mean(lost)) if lost else None,
        quiet=all(t.quiet for t in timings),
        slowdown=float(np.median([t.slowdown for t in timings])),
    )
