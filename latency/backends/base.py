"""Backends: what builds an op on a runtime so that it can be timed; each is imported only when it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from latency.errors import UsageError
from latency.op import Op
from latency.timing.clock import Clock

__all__ = ["BACKENDS", "Backend", "Built", "load", "out_of_memory"]

BACKENDS = {
    "onnxruntime": ("latency.backends.onnxruntime", "OnnxRuntime"),
    "torch": ("latency.backends.torch", "Torch"),
    "tensorrt": ("latency.backends.tensorrt", "TensorRT"),
}
"""Name → module and class."""


@dataclass(frozen=True)
class Built:
    """An op on a runtime, ready to be timed: the op's time is ``(T(run) − T(minus)) / copies``.

    Attributes:
        run: the call that holds the op.
        minus: the same call without it; None where the op runs alone.
        copies: how many more ops ``run`` holds than ``minus``.
        method: how the op is isolated, for the record.
        tactic: what the runtime chose, where it says so.
    """

    run: Callable[[], object]
    minus: Callable[[], object] | None = None
    copies: int = 1
    method: str = "alone"
    tactic: str | None = None


class Backend(Protocol):
    """A runtime on a device."""

    name: str

    def environment(self) -> dict[str, Any]:
        """Returns the circumstances of everything this backend measures."""
        ...

    def clock(self) -> Clock:
        """Returns what times a call."""
        ...

    def anchor(self) -> Callable[[], object] | None:
        """Returns a short call that never changes; None where there is no use for one."""
        ...

    def build(self, op: Op) -> Built:
        """Builds an op.

        Raises:
            UnsupportedOpError: this runtime cannot.
        """
        ...


def out_of_memory(error: Exception) -> bool:
    """Returns whether an error of any runtime says that the device's memory is full.

    PyTorch raises ``torch.OutOfMemoryError``, PyCUDA ``pycuda.driver.MemoryError``; neither is imported for this.
    """
    return isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "MemoryError")


def load(name: str, *, threads: int = 1, settings: Mapping[str, Any] | None = None) -> Backend:
    """Returns a backend by its name.

    Args:
        name: a key of ``BACKENDS``.
        threads: threads of the runtime.
        settings: more arguments of that backend, such as ``device`` or ``dtype`` of torch.
    """
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r} was asked for; there are {', '.join(BACKENDS)}; name one of them")
    if threads < 1:
        raise UsageError(f"{threads} threads were asked for; ask for 1 or more")
    module, cls = BACKENDS[name]
    backend: Backend = getattr(import_module(module), cls)(threads=threads, **dict(settings or {}))
    return backend
