"""How long did a call take, and did other work slow it? Clocks, and the anchor that measures contention.

One thread is timed by its own CPU time, several threads by the wall clock. CPU time too depends on who shares the core:
work on its other hyperthread slows it by 25 % and more, in bursts of 0.1 … 100 ms. So a short call that never changes,
the *anchor*, runs between any two timed runs, and a run is quiet when the anchors on both sides agree and are near the
anchor's floor (0063). Near, not at it: a core may be slower by 3 % or 10 % for seconds, and a run takes as much longer
as the anchor does. So times are stated at one speed: a run's time is divided by the ratio of the anchors around it to
the anchor's *reference*.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from latency.device import TimingPolicy, policy_for


class Clock(Protocol):
    """What times one call."""

    kind: str

    def time_us(self, run: Callable[[], object]) -> tuple[float, float]:
        """Runs once; returns the time that counts and the wall time, both in µs."""


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
    """Wall time, for work on several threads; it does not show contention."""

    kind = "wall"

    def time_us(self, run: Callable[[], object]) -> tuple[float, float]:
        """Runs once; returns wall µs twice."""
        wall = time.perf_counter_ns()
        run()
        us = (time.perf_counter_ns() - wall) / 1e3
        return us, us


def share_lost(clock: Clock, timed_us: float, wall_us: float) -> float | None:
    """Returns the share of the wall time in which the thread did not run; None where only the wall clock was read."""
    if clock.kind == "wall" or wall_us <= 0:
        return None
    return max(0.0, 1.0 - timed_us / wall_us)


@dataclass
class Anchor:
    """A short call that never changes: its time over its floor measures contention."""

    run: Callable[[], object]
    clock: Clock  # what times it
    policy: TimingPolicy = field(default_factory=lambda: policy_for("cpu"))  # when samples are quiet
    # its uncontended time: the 2nd percentile of its last samples
    floor_us: float = field(default=math.inf, init=False)
    # its time at the speed that times are stated at: the median of its first uncontended samples, where nobody says
    # another
    reference_us: float = field(default=math.nan, init=False)
    runs: int = field(default=0, init=False)  # number of samples so far
    _recent: NDArray[np.float64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._recent = np.empty(self.policy.anchor_samples)

    def find_floor(self, seconds: float = 0.5, at_least: int = 50) -> None:
        """Runs the call for a while, to find the floor and the reference."""
        end = time.perf_counter() + seconds
        while self.runs < at_least or (time.perf_counter() < end and self.runs < len(self._recent)):
            self.sample()
        self._recount()
        self.refer()

    def refer(self) -> None:
        """Sets the reference: the median of the uncontended samples; all measured times are scaled to it."""
        seen = self._recent[: self.runs]
        self.reference_us = float(np.median(seen[seen <= self.policy.anchor_near * self.floor_us]))

    @property
    def first_floor_contended(self) -> bool:
        """Whether a later, faster sample shows that the first floor was measured under contention."""
        return self.policy.anchor_near * self.floor_us < self.reference_us

    def sample(self) -> float:
        """Runs until it gets no faster, at most ``anchor_runs`` times; returns µs of the fastest run.

        What ran before has driven its data and code out of the caches: after a convolution of some ms, or 32 MB that
        were read, the first run takes three to five times as long, the second 1.1 to 1.3 times, the fifth 1.03.
        """
        us = self.clock.time_us(self.run)[0]
        for _ in range(self.policy.anchor_runs - 1):
            before, us = us, min(us, self.clock.time_us(self.run)[0])
            if before <= self.policy.back * us:
                break
        self._recent[self.runs % len(self._recent)] = us
        self.runs += 1
        if self.runs % self.policy.anchor_renewed == 0:
            self._recount()
        return us

    def calm(self, samples: int) -> bool:
        """Takes some samples; returns whether most are uncontended."""
        us = np.array([self.sample() for _ in range(samples)])
        middle = float(np.median(us))
        agree = self.policy.anchor_agree
        steady = (middle / agree <= us) & (us <= agree * middle)
        return middle <= self.policy.anchor_near * self._best_us and float(np.mean(steady)) > 0.5

    def slower(self, around: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the slowdown against the reference, from µs around runs ``[runs, 2]``; NaN under contention."""
        lower, upper = around.min(axis=1), around.max(axis=1)
        quiet = (upper <= self.policy.anchor_agree * lower) & (
            upper <= self.policy.anchor_near * self._best_us
        )
        return np.where(quiet, around.mean(axis=1) / self.reference_us, np.nan)

    def at_best(self, around: NDArray[np.float64]) -> float:
        """Returns the slowdown against the reference in the least contended samples; see `slower`."""
        us = float(np.percentile(around, 10))
        return (us if us <= self.policy.anchor_near * self._best_us else self._best_us) / self.reference_us

    @property
    def _best_us(self) -> float:
        """The lower of floor and reference: a profile may be continued under contention."""
        return min(self.floor_us, self.reference_us)

    def _recount(self) -> None:
        self.floor_us = float(np.percentile(self._recent[: self.runs], 2))


def checksum() -> Callable[[], object]:
    """Returns the anchor of everything that one thread of the CPU runs: a checksum of 16 KB, about 5 µs.

    It is slow where someone shares the core, and as the core's clock. A convolution of 12 µs took 1.15 to 1.25
    times as long after a network of 6 ms whose own time did not change, on a processor with AVX-512; this did not.
    """
    data = bytes(range(256)) * 64
    return lambda: zlib.crc32(data)
