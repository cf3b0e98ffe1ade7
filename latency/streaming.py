"""How long does a linear layer with cold weights take? Its time with warm weights, plus a rate per byte of weights.

Of one image, or a few, it uses each weight so seldom that reading them is all it does: from the cache in 22 µs a MiB,
from memory in 30 to 70, as they happen to lie there. Builds of it differ by a quarter, and stay so while they live; the
mean of six is uncertain by a tenth, while with weights in the cache two builds agree within 2 %. So its cells are
timed with weights in the cache, and what a byte takes longer from memory is one rate of the table, from many builds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from latency.anchor import Anchor
from latency.backends import Backend, Built
from latency.builds import joined
from latency.caches import Memory, turn_bytes
from latency.op import Op
from latency.timer import Precision, Sampling, Timing, in_turns

__all__ = ["Rate", "both_ways"]

BUILDS, AT_ONCE = 24, 8
"""Builds that tell a rate, and of these as many as exist at once, or as read what the network reads: 50 MB at most."""

EACH = Precision(n_min=5, n_max=40, seconds=0.05)
"""Of one build: they differ by so much more."""


@dataclass(frozen=True)
class Rate:
    """What a byte takes longer from memory than from the cache.

    Attributes:
        us: µs a byte.
        half: half of its 95 % interval.
    """

    us: float
    half: float

    @classmethod
    def of(cls, warm: Mapping[str, Any], cold: Mapping[str, Any], weight_bytes: int) -> Rate:
        """Returns the rate that two cells of one op tell, with its weights in the cache and in memory."""
        half = math.hypot(*(cell["ci_hi"] - cell["ci_lo"] for cell in (warm, cold))) / 2
        return cls(max(0.0, cold["us"] - warm["us"]) / weight_bytes, half / weight_bytes)

    def onto(self, timing: Timing, weight_bytes: int) -> Timing:
        """Returns the time of a call from memory, of its time with so many bytes in the cache."""
        more = self.us * weight_bytes
        half = math.hypot((timing.ci_hi - timing.ci_lo) / 2, self.half * weight_bytes)
        us = timing.us + more
        return replace(timing, us=us, ci_lo=us - half, ci_hi=us + half)


def both_ways(
    backend: Backend, op: Op, anchor: Anchor | None, memory: Memory
) -> tuple[Timing, Timing, Built]:
    """Times many builds of an op with its weights in the cache, and with the caches emptied before each turn.

    Returns:
        Both times, means over the builds, and one of these.
    """
    warm: list[Timing] = []
    cold: list[Timing] = []
    built = backend.build(op)
    reads = turn_bytes(op, built)
    at_once = min(AT_ONCE, max(1, memory.distance // reads))
    clear = memory.before(backend, op)
    while len(cold) < BUILDS:
        samplings = []
        for _ in range(min(at_once, BUILDS - len(cold))):
            built = backend.build(op)
            alone, sampling = (
                Sampling(clock=backend.clock(), anchor=anchor, precision=EACH) for _ in range(2)
            )
            warm.append(alone.visit(built.run, built.minus))
            sampling.begin(built.run, built.minus, reads=reads)
            samplings.append(sampling)
        in_turns(samplings, clear)
        cold += [sampling.timing() for sampling in samplings]
    return joined(warm), joined(cold), built
