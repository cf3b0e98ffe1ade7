"""ONNX Runtime on the CPU: ops as twins, whole networks as sessions, and the one way from PyTorch to ONNX."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from latency.backends.base import Built
from latency.backends.onnxruntime.export import fixed_batch, to_onnx
from latency.backends.onnxruntime.network import feeds, session
from latency.backends.onnxruntime.ops import copies_of, twin
from latency.device import environment
from latency.op import Op, weight_bytes
from latency.timing.clock import Clock, CpuClock, WallClock

__all__ = ["OnnxRuntime", "feeds", "fixed_batch", "session", "to_onnx"]


class OnnxRuntime:
    """Ops on ONNX Runtime's CPU provider.

    Args:
        threads: intra-op threads. One is timed by CPU time, several by the wall clock.
    """

    name = "onnxruntime"
    builds = 3
    """Of one cell at least: a session's buffers lie where they happen to."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.evicts = threads == 1
        """Whether weights are to be read from memory; one thread can empty no other core's caches."""

    def environment(self) -> dict[str, Any]:
        """Returns the circumstances of everything this backend measures."""
        return environment("onnxruntime", self.threads, optimization="all")

    def clock(self) -> Clock:
        """Returns the CPU clock for one thread, the wall clock for several."""
        return CpuClock() if self.threads == 1 else WallClock()

    def anchor(self) -> Callable[[], object]:
        """Returns a checksum of 16 KB, about 5 µs.

        It is slow where someone shares the core, and as the core's clock. A convolution of 12 µs took 1.15 to 1.25
        times as long after a network of 6 ms whose own time did not change, on a processor with AVX-512; this did not.
        """
        data = bytes(range(256)) * 64
        return lambda: zlib.crc32(data)

    def reads(self, op: Op) -> int:
        """Returns the bytes of weights that a turn of a build of an op reads: those of all its copies, and of one."""
        return (copies_of(op) + 1) * weight_bytes(op)

    def build(self, op: Op) -> Built:
        """Builds an op as a twin: three copies minus one, of some ops more, of those with many weights two.

        Raises:
            UnsupportedOpError: an op, precision or layout that is not built here.
        """
        most = copies_of(op)
        many, one = (
            _call(session(twin(op, copies, most), threads=self.threads, merge=False)) for copies in (most, 1)
        )
        return Built(run=many, minus=one, copies=most - 1, method="twin")


def _call(runtime: Any) -> Callable[[], object]:
    inputs = feeds(runtime)
    return lambda: runtime.run(None, inputs)
