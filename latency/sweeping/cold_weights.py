"""Where are an op's weights when it runs? In a network the other layers' weights have evicted them (0054).

An op that is timed over and over finds its weights in the cache. In a network all other weights were read since their
last use. That makes no difference where an op uses each weight often, but a convolution on 4×4 positions uses each 16
times.

So ops with large, seldom used weights are timed in rounds (`latency.timing.timer.interleave`), and before each round as
many bytes are read as the network has weights, at most as many as the last cache holds (0056, 0057). Where the last
cache is far larger than the network, only the cache before it is emptied (0058). Activations are made anew in each run
by the op before (`latency.backends.onnxruntime.ops`). Ops with small weights stay warm: emptying the caches evicts the
call's own code as well, and differences of a few µs are lost.

A linear layer of one image does nothing but read its weights: 22 µs per MiB from the cache, 30 to 70 from memory.
Builds of it differ by a quarter for as long as they live, so its cells are timed warm, and one rate per table, from
many builds, says what a byte takes longer from memory (0055).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from latency.backends import Backend, Built
from latency.device import TimingPolicy, policy_for
from latency.op import Op, weight_bytes
from latency.timing import Anchor
from latency.timing.timer import Precision, Sampling, Timing, interleave, joined


@dataclass(frozen=True)
class ColdWeights:
    """Which ops are timed with cold weights, and how far apart two uses of a weight are."""

    widest: Mapping[str, Op]  # the widest op of each table whose weights do, by its name (`Op.table_key`)
    distance: int  # bytes that are read from one use of a weight to the next
    read: Callable[[int], object]  # `read(n)` touches n bytes, to evict the caches
    policy: TimingPolicy = field(default_factory=lambda: policy_for("cpu"))  # which weights are cold

    def evict(self, reads: int) -> object:
        """Reads memory to evict the cache, less the ``reads`` bytes that the timed run reads itself."""
        return self.read(max(0, self.distance - reads))

    def before(self, backend: Backend, op: Op) -> Callable[[int], object]:
        """Returns the call that empties the caches before a timed run; its argument is the bytes that the run reads."""
        # What any call needs, code above all, is back after it: the first op of a round took up to a quarter longer.
        narrow = self.policy.narrow
        width = (op.c_in // op.groups, op.c_out // op.groups) if op.groups > 1 else (narrow, narrow)
        small = backend.build(op.with_channels(min(width[0], op.c_in), min(width[1], op.c_out)))

        def clear(reads: int) -> None:
            self.evict(reads)
            small.run()

        return clear

    def has(self, op: Op) -> bool:
        """Returns whether the weights of an op at its widths come from memory."""
        return op.table_key() in self.widest and not self.policy.few_weights(op)

    def streams(self, op: Op) -> bool:
        """Returns whether weights that come from memory are all that takes time (`latency.sweeping.cold_weights`)."""
        return self.has(op) and op.kind == "linear" and op.macs <= self.policy.streamed * op.weights

    def empties(self, op: Op) -> bool:
        """Returns whether the caches are emptied before each timed run of an op."""
        return self.has(op) and not self.streams(op)

    def sample(self, op: Op) -> Op:
        """Returns the op of the same table that tells what a byte of its weights takes."""
        widest = self.widest[op.table_key()]
        share = min(1.0, self.policy.sample_bytes / weight_bytes(widest))
        return widest.with_channels(max(1, round(share * widest.c_in)), widest.c_out)

    @classmethod
    def of(
        cls, ops: Iterable[Op], environment: Mapping[str, Any], policy: TimingPolicy | None = None
    ) -> ColdWeights | None:
        """Returns which ops have cold weights; None where no op has large weights that are used rarely."""
        listed, policy = list(ops), policy or policy_for("cpu")
        streamed = sum(map(weight_bytes, listed))
        sizes = sorted(_bytes(size) for size in environment.get("cpu_caches", {}).values())
        last_bytes = (sizes[-1] if sizes else 0) or policy.cache_bytes
        widest: dict[str, Op] = {}
        for op in sorted(listed, key=weight_bytes):
            if weight_bytes(op) > policy.large_bytes and policy.used_seldom(op):
                widest[op.table_key()] = op
        if not widest:
            return None
        fits = len(sizes) > 1 and streamed * policy.cache_holds <= last_bytes
        distance = min(streamed, policy.cache_emptied * sizes[-2]) if fits else min(streamed, last_bytes)
        numbers = np.ones(distance // 8, dtype=np.int64)
        # at the speed of the memory; a sum of floats takes three times as long
        return cls(widest, distance, lambda size: np.maximum.reduce(numbers[: size // 8], initial=1), policy)


def cold_weights_of(
    backend: Backend, ops: Iterable[Op], environment: Mapping[str, Any]
) -> ColdWeights | None:
    """Returns which weights of a network are cold, where a backend can empty the caches; else None."""
    return ColdWeights.of(ops, environment, backend.policy) if backend.evicts else None


def round_bytes(op: Op, built: Built) -> int:
    """Returns the bytes of weights that one run of each call of a build reads."""
    copies = (
        built.copies if built.minus is None else built.copies + 2
    )  # a twin has one more, and subtracts one
    return copies * weight_bytes(op)


def _bytes(size: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)", size)
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]] if found else 0


EACH = Precision(n_min=5, n_max=40, seconds=0.05)
"""Of one build: they differ by so much more."""


@dataclass(frozen=True)
class Rate:
    """µs that a byte takes longer from memory than from the cache, and half of its 95 % interval."""

    us: float
    half: float

    @classmethod
    def of(cls, warm: Mapping[str, Any], cold: Mapping[str, Any], weight_bytes: int) -> Rate:
        """Returns the rate that two cells of one op tell, with its weights in the cache and in memory."""
        half = math.hypot(*(cell["ci_hi"] - cell["ci_lo"] for cell in (warm, cold))) / 2
        return cls(max(0.0, cold["us"] - warm["us"]) / weight_bytes, half / weight_bytes)

    def onto(self, timing: Timing, weight_bytes: int) -> Timing:
        """Returns the time of a call with cold weights, from its time with this many bytes in the cache."""
        more = self.us * weight_bytes
        half = math.hypot((timing.ci_hi - timing.ci_lo) / 2, self.half * weight_bytes)
        us = timing.us + more
        return replace(timing, us=us, ci_lo=us - half, ci_hi=us + half)


def warm_and_cold(
    backend: Backend, op: Op, anchor: Anchor | None, memory: ColdWeights
) -> tuple[Timing, Timing, Built]:
    """Times many builds of an op with its weights in the cache, and with emptied caches.

    Returns:
        Both times, means over the builds, and one of these.
    """
    warm: list[Timing] = []
    cold: list[Timing] = []
    built = backend.build(op)
    reads = round_bytes(op, built)
    policy = memory.policy
    at_once = min(policy.rate_together, max(1, memory.distance // reads))
    clear = memory.before(backend, op)
    while len(cold) < policy.rate_builds:
        samplings = []
        for _ in range(min(at_once, policy.rate_builds - len(cold))):
            built = backend.build(op)
            alone, sampling = (
                Sampling(clock=backend.clock(), anchor=anchor, precision=EACH, policy=policy)
                for _ in range(2)
            )
            warm.append(alone.visit(built.run, built.minus))
            sampling.begin(built.run, built.minus, reads=reads)
            samplings.append(sampling)
        interleave(samplings, clear)
        cold += [sampling.timing() for sampling in samplings]
    return joined(warm), joined(cold), built
