"""Where are an op's weights when it runs? In a network, where the other layers' weights have left them.

Activations were just written and lie in a cache; weights were last read one inference ago, and all other weights of
the network since. An op that is timed over and over finds its own still there. Where it uses each weight often, that
makes no difference; a convolution on 4×4 positions uses each 16 times, and takes longer than such a timing says.

So ops with large weights run in turns of some (`latency.timer.in_turns`), and from one turn to the next as many bytes
are read as the network's weights have, those of one inference, and no more than the last cache holds: by the ops of the
turn, which read their own weights, and before it what is missing. Whether that drives out what was there is for the
machine to show; with more bytes weights would leave a cache that holds the network's. Where the last cache is larger by
far, they come from there, and only the one before it is to be emptied. An op's activations are made anew
in each run, by what feeds it (`latency.backends.onnx_graph`). With small weights it is the arithmetic that counts:
emptying the caches drives out the call's own code as well, so that differences of a few µs are lost. A linear layer of
one image does nothing but read its weights, and is timed in another way (`latency.streaming`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latency.op import Op

if TYPE_CHECKING:
    from latency.backends import Backend, Built

__all__ = ["COLD", "SELDOM", "WARM", "Memory", "few_weights", "turn_bytes", "weight_bytes"]

WARM, COLD = "warm", "cold"
"""States of an op's weights when it runs, as cells state them."""

SELDOM = 600
"""A weight that is used so often in a run costs little, wherever it comes from.

Memory gives about 10 GB/s, a core 20 G multiplications a second: a weight of four bytes costs as much as eight of
these, 1.3 % of 600.
"""

SMALL = 1 << 20
"""Bytes of weights, of the widest op of a table, from which on it matters where they come from."""

FEW = 1 << 16
"""Bytes of weights, of one cell, up to which it does not: memory gives them in 6 µs.

A call with empty caches repeats within 10 % where it takes 20 µs, one with full ones within 2 %.
"""

UNKNOWN_CACHE_BYTES = 32 << 20
"""Taken for the last cache where the machine does not say."""

FITS, BEYOND = 4, 4
"""A last cache of so many times a network's weights holds them, shared though it is: they come from there.

Of one that says 260 MB, 64 can be read again and again at 38 µs a MB, 96, which takes 7 ms, at 71, which is what the
memory gives: what lies there for so long others have driven out.

So many times the bytes of the cache before it are read then, from one use of a weight to the next. On a last cache of
260 MB a VGG-16 with 59 MB keeps its weights there after some sixteen runs, at 1.5 ns each where they are used four
times; cells of it, after as many bytes, took 1.5 or 3.0 ns by what had run before.
"""

NARROW = 16
"""Channels of an op that runs untimed between emptying the caches and a turn.

Its weights are few, and what any call needs, code above all, is back then: the first of a turn took up to a quarter
longer than the same op in its middle.
"""

STREAMED = 8
"""A linear layer that uses each weight so often at most takes the time that reading them takes."""

SAMPLE = 2 << 20
"""Bytes of weights, about, of the op that tells what a byte takes."""


@dataclass(frozen=True)
class Memory:
    """Which ops are timed with cold weights, and how far apart two uses of a weight are.

    Attributes:
        widest: the widest op of each table whose weights do, by its name (`Op.table_key`).
        distance: bytes that are read from one use of a weight to the next.
        read: ``read(n)`` touches n bytes, to evict the caches.
    """

    widest: Mapping[str, Op]
    distance: int
    read: Callable[[int], object]

    def evict(self, reads: int) -> object:
        """Reads the rest of that distance where a turn itself reads ``reads`` bytes."""
        return self.read(max(0, self.distance - reads))

    def before(self, backend: Backend, op: Op) -> Callable[[int], object]:
        """Returns what empties the caches before a turn of ops like this, told how many bytes the turn reads."""
        width = (op.c_in // op.groups, op.c_out // op.groups) if op.groups > 1 else (NARROW, NARROW)
        narrow = backend.build(op.with_channels(min(width[0], op.c_in), min(width[1], op.c_out)))

        def clear(reads: int) -> None:
            self.evict(reads)
            narrow.run()

        return clear

    def has(self, op: Op) -> bool:
        """Returns whether the weights of an op at its widths come from memory."""
        return op.table_key() in self.widest and not few_weights(op)

    def streams(self, op: Op) -> bool:
        """Returns whether weights that come from memory are all that takes time (`latency.streaming`)."""
        return self.has(op) and op.kind == "linear" and op.macs <= STREAMED * op.weights

    def empties(self, op: Op) -> bool:
        """Returns whether the caches are emptied before each turn of an op."""
        return self.has(op) and not self.streams(op)

    def sample(self, op: Op) -> Op:
        """Returns the op of the same table that tells what a byte of its weights takes."""
        widest = self.widest[op.table_key()]
        share = min(1.0, SAMPLE / weight_bytes(widest))
        return widest.with_channels(max(1, round(share * widest.c_in)), widest.c_out)

    @classmethod
    def of(cls, ops: Iterable[Op], environment: Mapping[str, Any]) -> Memory | None:
        """Returns what of some ops comes from memory; None where no op has large weights that it uses seldom.

        Args:
            ops: ops as built, equal ones as often as they are there.
            environment: of the device; ``cpu_caches`` states sizes such as ``32768K``.
        """
        listed = list(ops)
        streamed = sum(map(weight_bytes, listed))
        held = max(map(_bytes, environment.get("cpu_caches", {}).values()), default=0) or UNKNOWN_CACHE_BYTES
        widest: dict[str, Op] = {}
        for op in sorted(listed, key=weight_bytes):
            if weight_bytes(op) > SMALL and op.macs <= SELDOM * op.weights:
                widest[op.table_key()] = op
        if not widest:
            return None
        sizes = sorted(_bytes(size) for size in environment.get("cpu_caches", {}).values())
        fits = len(sizes) > 1 and streamed * FITS <= held
        distance = min(streamed, BEYOND * sizes[-2]) if fits else min(streamed, held)
        numbers = np.ones(distance // 8, dtype=np.int64)
        # at the speed of the memory; a sum of floats takes three times as long
        return cls(widest, distance, lambda size: np.maximum.reduce(numbers[: size // 8], initial=1))


def few_weights(op: Op) -> bool:
    """Returns whether it does not matter where the weights of a cell come from."""
    return weight_bytes(op) <= FEW


def weight_bytes(op: Op) -> int:
    """Returns the bytes of an op's weights."""
    return op.weights * {"float16": 2, "bfloat16": 2}.get(op.dtype, 4)


def turn_bytes(op: Op, built: Built) -> int:
    """Returns the bytes of weights that one run of each call of a build reads."""
    copies = (
        built.copies if built.minus is None else built.copies + 2
    )  # a twin has one more, and subtracts one
    return copies * weight_bytes(op)


def _bytes(size: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)", size)
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]] if found else 0
