"""What times one call: the CPU time of its thread, or the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "CpuClock", "WallClock", "share_lost"]


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
