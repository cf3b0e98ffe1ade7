"""Where are an op's weights when it runs? In a network, where the other layers' weights have left them.

Activations were just written and lie in a cache; weights were last read one inference ago, and all other weights of
the network since. An op that is timed over and over finds its own still there. Where it uses each weight often, that
makes no difference; a convolution on 4×4 positions takes up to a third longer than such a timing says.

So between two runs as many bytes are read as the network has weights, at most as the last cache holds. The op's
activations are made anew in each run, by what feeds it (`latency.backends.onnx_graph`). A network whose weights fill
less than a quarter of that cache finds them there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from latency.op import Op

__all__ = ["COLD", "WARM", "evictor", "rereads", "weight_bytes"]

WARM, COLD = "warm", "cold"
"""States of an op's weights when it runs, as cells state them."""

SELDOM = 600
"""A weight that is used so often in a run costs little, wherever it comes from.

Memory gives about 10 GB/s, a core 20 G multiplications a second: a weight of four bytes costs as much as eight of
these, 1.3 % of 600.
"""

FITS = 4
"""Weights that fill this part of the last cache, or less, stay in it."""

UNKNOWN_CACHE_BYTES = 32 << 20
"""Taken for the last cache where the machine does not say."""


def rereads(op: Op) -> bool:
    """Returns whether an op uses each of its weights so seldom that it matters where they come from."""
    return 0 < op.macs <= SELDOM * op.weights


def weight_bytes(ops: Iterable[Op]) -> int:
    """Returns the bytes of all weights of some ops, equal ones counted as often as they are there."""
    width = {"float32": 4, "float16": 2, "bfloat16": 2}
    return sum(op.weights * width.get(op.dtype, 4) for op in ops)


def evictor(streamed: int, environment: Mapping[str, Any]) -> Callable[[], object] | None:
    """Returns a call that reads so many bytes, at most as many as the last cache holds; None where it keeps them.

    Args:
        streamed: bytes of weights that a network reads between two runs of an op.
        environment: of the device; ``cpu_caches`` states sizes such as ``32768K``.
    """
    held = max(map(_bytes, environment.get("cpu_caches", {}).values()), default=0) or UNKNOWN_CACHE_BYTES
    if streamed * FITS <= held:
        return None
    numbers = np.ones(min(streamed, held) // 8, dtype=np.int64)
    return lambda: np.maximum.reduce(
        numbers
    )  # at the speed of the memory; a sum of floats takes three times as long


def _bytes(size: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)", size)
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2]] if found else 0
