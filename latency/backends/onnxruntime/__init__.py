"""ONNX Runtime on the CPU: ops as differential graphs, networks as sessions, and the one way from PyTorch to ONNX."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

from latency.backends import Backend, Built, Found, NetworkOptions, Runner, Way, backend, is_module
from latency.backends.cuda import gpu_facts
from latency.backends.onnxruntime.model import fixed_batch, to_onnx
from latency.backends.onnxruntime.network import SessionRunner, feeds, session
from latency.backends.onnxruntime.ops import differential_graph
from latency.backends.onnxruntime.quantised import quantised
from latency.device import environment
from latency.errors import MissingError, UsageError
from latency.op import Op, weight_bytes
from latency.timing import Clock, CpuClock, WallClock, checksum

__all__ = ["OnnxRuntime", "feeds", "fixed_batch", "session", "to_onnx"]


@backend("onnxruntime")
class OnnxRuntime(Backend):
    """Ops and networks on ONNX Runtime; ops on its CPU provider.

    Args:
        threads: intra-op threads. One is timed by CPU time, several by the wall clock.
        device: ``auto`` or ``cpu``.
        precision: ``fp32`` or ``int8`` (QDQ); a file has its own.
        channels_last: False; the runtime chooses layouts itself.
        provider: of whole networks: ``cpu``, ``cuda``, ``tensorrt`` or ``rtx``.

    Raises:
        UsageError: another precision or layout, no such provider.
        MissingError: another device.
    """

    builds = 3
    """Of one cell at least: a session's buffers lie where they happen to."""

    ways = (
        Way("cpu", (".onnx",), usual=True),
        Way("cuda", (".onnx",), {"provider": "cuda"}),
        Way("tensorrt", (".onnx",), {"provider": "tensorrt"}),
        Way("ort-rtx", (".onnx",), {"provider": "rtx"}),
        Way("onnx", ("module",)),
    )
    files = (".onnx",)
    times_layers = True

    def __init__(
        self,
        threads: int = 1,
        device: str = "auto",
        precision: str = "fp32",
        channels_last: bool = False,
        provider: str = "cpu",
    ) -> None:
        self.check(device=device, precision=precision, channels_last=channels_last)
        self.threads, self.provider, self.precision = threads, provider, precision
        self.evicts = threads == 1
        """Whether weights are to be read from memory; one thread can empty no other core's caches."""

    @classmethod
    def check(cls, **settings: Any) -> None:
        """Refuses settings that only other runtimes have."""
        super().check(**settings)
        device = settings.get("device", "auto")
        if settings.get("precision", "fp32") in PRECISIONS and device not in ("auto", "cpu"):
            raise MissingError(
                f"ONNX Runtime on {device} was asked for; it is measured on the CPU here; use --backend torch for a GPU"
            )
        if settings.get("precision", "fp32") not in PRECISIONS or settings.get("channels_last"):
            raise UsageError(
                "ONNX Runtime was asked with a device, precision or layout; it is measured on the CPU in fp32 or int8 "
                "and NCHW; leave them out, or add --backend torch"
            )

    @classmethod
    def settings_of(cls, environment: Mapping[str, Any], layout: str) -> dict[str, Any]:
        """Returns the precision that a profile was measured with, where it is not fp32."""
        return {"precision": "int8"} if environment.get("dtype") == "int8" else {}

    def environment(self) -> dict[str, Any]:
        """Returns the circumstances of everything this backend measures."""
        if self.provider == "cpu":
            own = {"dtype": "int8"} if self.precision == "int8" else {}
            return environment("onnxruntime", self.threads, optimization="all", **own)
        stated = {**gpu_facts(), "provider": self.provider}
        return environment("onnxruntime", self.threads, optimization="all", **stated)

    def clock(self) -> Clock:
        """Returns the CPU clock for one thread, the wall clock for several."""
        return CpuClock() if self.threads == 1 else WallClock()

    def anchor(self) -> Callable[[], object]:
        """Returns a checksum of 16 KB, about 5 µs; see `latency.timing.checksum`."""
        return checksum()

    def reads(self, op: Op) -> int:
        """Returns the bytes of weights that a timed run of a build reads: those of all its copies, and of one."""
        return (self.policy.copies(op) + 1) * weight_bytes(op)

    def build(self, op: Op) -> Built:
        """Builds an op as two graphs, of some copies and of one; see `TimingPolicy.copies`.

        Raises:
            UnsupportedOpError: an op, precision or layout that is not built here.
        """
        most = self.policy.copies(op)
        many, one = (
            _call(session(_graph(op, copies, most), threads=self.threads, merge=False))
            for copies in (most, 1)
        )
        return Built(run=many, minus=one, copies=most - 1, method="twin")

    def deployed(self, model: Any, example_inputs: Sequence[Any]) -> Any:
        """Returns the ONNX model of a module; in int8 with made-up ranges, which the time does not hang on."""
        made = to_onnx(model, example_inputs)
        return quantised(made) if self.precision == "int8" else made

    def network(
        self,
        model: Any,
        example_inputs: Sequence[Any] | None = None,
        **how: Unpack[NetworkOptions],
    ) -> Runner:
        """Returns a module, which is exported, an ONNX model or the path of one, to be entered and timed."""
        if self.precision == "int8" and is_module(model) and example_inputs is not None:
            model = self.deployed(model, example_inputs)
        return SessionRunner(model, example_inputs, provider=self.provider, threads=self.threads, **how)

    @classmethod
    def found(cls) -> list[tuple[str, Found]]:
        """Returns the providers of the installation."""
        if importlib.util.find_spec("onnxruntime") is None:
            return []
        import onnxruntime

        return [("backend onnxruntime", Found("ok", ", ".join(onnxruntime.get_available_providers())))]


PRECISIONS = ("fp32", "int8")
"""Arithmetic that ops and networks are timed in."""


def _graph(op: Op, copies: int, readers: int) -> Any:
    """Returns the graph of some copies of an op, in its precision."""
    if op.dtype != "int8":
        return differential_graph(op, copies, readers)
    return quantised(differential_graph(replace(op, dtype="float32"), copies, readers))


def _call(runtime: Any) -> Callable[[], object]:
    inputs = feeds(runtime)
    return lambda: runtime.run(None, inputs)
