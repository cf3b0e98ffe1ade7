"""How many images per second when several callers run at once? Not one over the latency.

In a round every caller calls again and again, on a thread of its own, for the same number of calls; the images of
all of them are counted over the wall time from the first call to the last answer. Networks take turns round by
round, and the ratio is the median of the rounds' ratios with its distribution-free 95 % interval.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from latency.timing.benchmark import Ratio
from latency.timing.timer import median_interval

ROUND_SECONDS = 0.25
"""A round is at least about this long: starting the callers (0.1 ms each) does not count then."""


@dataclass(frozen=True)
class Load:
    """The calls of one network; ``finish`` waits for answers where ``start`` returns before they are there."""

    start: Callable[[], object]
    finish: Callable[[], object] = lambda: None
    in_thread: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Throughput:
    """Images per second of one network with so many callers at once: median over the rounds, quartiles, interval."""

    median_fps: float
    iqr_fps: float
    n: int
    callers: int
    ci_lo_fps: float
    ci_hi_fps: float


class Throughputs(dict[str, Throughput]):
    """Throughputs of one interleaved run, by name."""

    def __init__(self, fps: Mapping[str, Sequence[float]], callers: int) -> None:
        self.fps = {name: np.asarray(values, dtype=np.float64) for name, values in fps.items()}
        super().__init__()
        for name, values in self.fps.items():
            q1, q3 = np.percentile(values, [25, 75])
            median, lo, hi = median_interval(values)
            self[name] = Throughput(median, float(q3 - q1), len(values), callers, lo, hi)

    def ratio(self, over: str, under: str) -> Ratio:
        """Returns how many times the images per second of ``over`` those of ``under`` are."""
        return Ratio(*median_interval(self.fps[under] / self.fps[over]))


def measure_throughput(
    loads: Mapping[str, Load | Sequence[Load]],
    *,
    batch: int,
    callers: int = 1,
    rounds: int = 20,
    seconds: float = 120.0,
    round_seconds: float = ROUND_SECONDS,
    now: Callable[[], float] = time.perf_counter,
) -> Throughputs:
    """Measures networks alternately, one load for all callers or one each; at least nine rounds."""
    calls: dict[str, int] = {}
    each = {name: [load] * callers if isinstance(load, Load) else list(load) for name, load in loads.items()}
    for name, given in each.items():
        for _ in range(2):  # the first allocates
            _round(given, 1)
        begun = now()
        _round(given, 1)
        calls[name] = max(1, math.ceil(round_seconds / max(now() - begun, 1e-6)))
    fps: dict[str, list[float]] = {name: [] for name in loads}
    names, end, done = list(loads), now() + seconds, 0
    while done < min(9, rounds) or (done < rounds and now() < end):
        for name in names if done % 2 == 0 else reversed(names):
            begun = now()
            _round(each[name], calls[name])
            fps[name].append(batch * callers * calls[name] / (now() - begun))
        done += 1
    return Throughputs(fps, callers)


def _round(loads: Sequence[Load], calls: int) -> None:
    """Runs every caller's calls and waits for the answers; raises the first error."""
    failed: list[BaseException] = []

    def work(load: Load) -> None:
        try:
            with load.in_thread():
                for _ in range(calls):
                    load.start()
                load.finish()
        except BaseException as error:  # raised below, in the caller's thread
            failed.append(error)

    if len(loads) == 1:
        work(loads[0])
    else:
        threads = [threading.Thread(target=work, args=(load,)) for load in loads]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
