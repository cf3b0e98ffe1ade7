"""One time for several builds of an op.

Where memory happens to lie changes a time for as long as a build lives; more runs of one build never show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from latency.timer import Timing

__all__ = ["agree", "joined", "standard_error"]

AGREE = 0.03
"""Two builds whose times differ by no more than this share agree; of more, the mean's standard error is half of it."""

AGREE_US = 0.3
"""Or by no more than this."""


def agree(timings: Sequence[Timing]) -> bool:
    """Returns whether two builds agree, or the mean of more is known as well as that."""
    times = [t.us for t in timings]
    enough = max(AGREE * abs(float(np.mean(times))), AGREE_US)
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
