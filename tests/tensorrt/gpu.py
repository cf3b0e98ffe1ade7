"""A GPU that is none: memory in a dictionary, time that passes when an engine runs; and the two libraries that open it.

Both libraries are strict: a name that the real one does not have is not there, and arguments have the types it takes.
PyCUDA's names and argument names are those of its wrapper's source; cuda-python's are compared with the installed one.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

GRAPH_US = 10.0
"""What entering a graph takes."""

LAUNCH_US = 4.0
"""What enqueueing an engine takes outside of a graph."""


@dataclass
class Gpu:
    """The device: allocations, a clock, and what a capture records."""

    name: str = "Imagined GPU"
    devices: int = 1
    capacity_bytes: int = 10**9
    l2_bytes: int = 4096
    now_us: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """The time on every stream."""
    memory: dict[int, bytearray] = field(default_factory=dict)
    capture: list[Any] | None = None
    contexts: list[str] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)
    current: threading.local = field(default_factory=threading.local)
    """Contexts that are current in a thread."""
    refuses_capture: bool = False
    _address: Iterator[int] = field(default_factory=lambda: itertools.count(0x10000, 0x10000000))

    def allocate(self, size: int) -> int | None:
        if sum(map(len, self.memory.values())) + size > self.capacity_bytes:
            return None
        address = next(self._address)
        self.memory[address] = bytearray(size)
        return address

    def enter(self, depth: int) -> None:
        """Makes a context current in this thread (1), or gives it back (-1)."""
        self.current.depth = self.depth + depth

    @property
    def depth(self) -> int:
        """How many contexts are current in this thread."""
        return int(getattr(self.current, "depth", 0))

    def stream(self) -> int:
        """Returns a new stream; the default one is 0."""
        self.streams.append(len(self.streams) + 77)
        return self.streams[-1]

    def run(self, work: Any, stream: int) -> None:
        """Runs a piece of work, ``work() -> µs``, on a stream, or records it."""
        assert stream in self.streams, "a stream of its own, never the default one"
        if self.capture is not None:
            self.capture.append(work)
        else:
            self.now_us[stream] += LAUNCH_US + work()

    def replay(self, recorded: list[Any], stream: int) -> None:
        self.now_us[stream] += GRAPH_US + sum(work() for work in recorded)


class Context:
    """PyCUDA's view of the primary context; at exit PyCUDA ends the process where one is still on the stack."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def push(self) -> None:
        self._gpu.contexts.append("primary")
        self._gpu.enter(1)

    def pop(self) -> None:
        self._gpu.contexts.remove("primary")
        self._gpu.enter(-1)


def pycuda_modules(gpu: Gpu) -> dict[str, ModuleType]:
    """Returns ``pycuda`` and ``pycuda.driver``."""
    driver = ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    class LogicError(Error):
        pass

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            assert gpu.contexts, "no context is current"
            self.handle = gpu.stream()

        def synchronize(self) -> None:
            assert gpu.capture is None

    class Event:
        def __init__(self, flags: int = 0) -> None:
            self._us: float | None = None

        def record(self, stream: Stream | None = None) -> Event:
            assert isinstance(stream, Stream), "the default stream is never used"
            self._us = gpu.now_us[stream.handle]
            return self

        def synchronize(self) -> Event:
            assert self._us is not None
            return self

        def time_till(self, end: Event) -> float:
            assert isinstance(end, Event)
            assert self._us is not None
            assert end._us is not None
            return (end._us - self._us) / 1e3

    class DeviceAllocation:
        def __init__(self, address: int) -> None:
            self._address = address

        def __int__(self) -> int:
            return self._address

        def free(self) -> None:
            del gpu.memory[self._address]

    class Device:
        def __init__(self, number: int) -> None:
            assert 0 <= number < gpu.devices

        @staticmethod
        def count() -> int:
            return gpu.devices

        def name(self) -> str:
            return gpu.name

        def compute_capability(self) -> tuple[int, int]:
            return (9, 0)

        def total_memory(self) -> int:
            return gpu.capacity_bytes

        def get_attribute(self, attribute: Any) -> int:
            assert attribute in device_attribute
            return {"MULTIPROCESSOR_COUNT": 100, "L2_CACHE_SIZE": gpu.l2_bytes}[attribute.name]

        def retain_primary_context(self) -> Context:
            return Context(gpu)

    device_attribute = enum.Enum("device_attribute", ["MULTIPROCESSOR_COUNT", "L2_CACHE_SIZE"])

    def init(flags: int = 0) -> None:
        pass

    def get_driver_version() -> int:
        return 12040

    def mem_alloc(size: int) -> DeviceAllocation:
        assert type(size) is int
        address = gpu.allocate(size)
        if address is None:
            raise MemoryError("cuMemAlloc failed: out of memory")
        return DeviceAllocation(address)

    def memcpy_htod_async(dest: int, src: Any, stream: Stream | None = None) -> None:
        assert type(dest) is int
        assert isinstance(stream, Stream)
        data = memoryview(src).cast("B")
        gpu.memory[dest][: len(data)] = data

    def memcpy_dtoh_async(dest: Any, src: int, stream: Stream | None = None) -> None:
        assert type(src) is int
        assert isinstance(stream, Stream)
        data = memoryview(dest).cast("B")
        data[:] = gpu.memory[src][: len(data)]

    things: tuple[Any, ...] = (
        Error,
        MemoryError,
        LogicError,
        Stream,
        Event,
        Device,
        device_attribute,
        init,
        get_driver_version,
        mem_alloc,
        memcpy_htod_async,
        memcpy_dtoh_async,
    )
    for thing in things:
        setattr(driver, thing.__name__, thing)
    package = ModuleType("pycuda")
    package.driver = driver  # type: ignore[attr-defined]
    return {"pycuda": package, "pycuda.driver": driver}


CUDA_PYTHON: dict[str, int] = {
    "cuInit": 1, "cuDriverGetVersion": 0, "cuDeviceGetCount": 0, "cuDeviceGet": 1, "cuDeviceGetName": 2,
    "cuDeviceGetAttribute": 2, "cuDeviceTotalMem": 1, "cuDevicePrimaryCtxRetain": 1, "cuCtxSetCurrent": 1,
    "cuStreamCreate": 1, "cuStreamSynchronize": 1, "cuStreamBeginCapture": 2, "cuStreamEndCapture": 1,
    "cuGraphInstantiate": 2, "cuGraphLaunch": 2, "cuGraphDestroy": 1, "cuGraphExecDestroy": 1, "cuMemAlloc": 1,
    "cuMemFree": 1, "cuMemcpyHtoDAsync": 4, "cuMemcpyDtoHAsync": 4, "cuEventCreate": 1, "cuEventDestroy": 1,
    "cuEventRecord": 2, "cuEventSynchronize": 1, "cuEventElapsedTime": 2,
}  # fmt: skip
"""Functions of cuda-python that are called, and how many arguments they take."""

CUDA_ENUMS = {
    "CUresult": (
        "CUDA_SUCCESS",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "CUDA_ERROR_NO_DEVICE",
        "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
    ),
    "CUdevice_attribute": (
        "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT",
        "CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE",
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR",
        "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR",
    ),
    "CUstream_flags": ("CU_STREAM_NON_BLOCKING",),
    "CUevent_flags": ("CU_EVENT_DEFAULT",),
    "CUstreamCaptureMode": ("CU_STREAM_CAPTURE_MODE_THREAD_LOCAL",),
}
"""Its enums, with the members that are used."""


def cuda_python_modules(gpu: Gpu) -> dict[str, ModuleType]:
    """Returns ``cuda``, ``cuda.bindings`` and ``cuda.bindings.driver``."""
    driver = ModuleType("cuda.bindings.driver")
    for name, members in CUDA_ENUMS.items():
        setattr(driver, name, enum.IntEnum(name, {m: i for i, m in enumerate(members)}))
    results: Any = driver.CUresult
    done = results.CUDA_SUCCESS
    facts = dict(zip(CUDA_ENUMS["CUdevice_attribute"], (100, gpu.l2_bytes, 9, 0), strict=True))

    def allocate(size: int) -> tuple[Any, ...]:
        address = gpu.allocate(size)
        return (results.CUDA_ERROR_OUT_OF_MEMORY, 0) if address is None else (done, address)

    def begin(stream: Any, mode: Any) -> tuple[Any, ...]:
        assert isinstance(mode, driver.CUstreamCaptureMode)
        gpu.capture = []
        return (done,)

    def end(stream: Any) -> tuple[Any, ...]:
        recorded, gpu.capture = gpu.capture, None
        return (
            (results.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None) if gpu.refuses_capture else (done, recorded)
        )

    def launch(graph: Any, stream: Any) -> tuple[Any, ...]:
        gpu.replay(graph, stream)
        return (done,)

    def write(dest: int, source: int, size: int, stream: Any) -> tuple[Any, ...]:
        gpu.memory[dest][:size] = ctypes.string_at(source, size)
        return (done,)

    def read(dest: int, source: int, size: int, stream: Any) -> tuple[Any, ...]:
        ctypes.memmove(dest, bytes(gpu.memory[source][:size]), size)
        return (done,)

    def free(address: int) -> tuple[Any, ...]:
        del gpu.memory[address]
        return (done,)

    def record(event: Any, stream: Any) -> tuple[Any, ...]:
        event.us = gpu.now_us[stream]
        return (done,)

    def make_current(context: str) -> tuple[Any, ...]:
        gpu.contexts.append(context)
        gpu.enter(1)
        return (done,)

    calls: dict[str, Callable[..., tuple[Any, ...]]] = {
        "cuInit": lambda flags: (done if gpu.devices else results.CUDA_ERROR_NO_DEVICE,),
        "cuDriverGetVersion": lambda: (done, 13000),
        "cuDeviceGetCount": lambda: (done, gpu.devices),
        "cuDeviceGet": lambda n: (done, n),
        "cuDeviceGetName": lambda length, device: (done, gpu.name.encode().ljust(length, b"\0")),
        "cuDeviceGetAttribute": lambda attribute, device: (done, facts[attribute.name]),
        "cuDeviceTotalMem": lambda device: (done, gpu.capacity_bytes),
        "cuDevicePrimaryCtxRetain": lambda device: (done, "primary"),
        "cuCtxSetCurrent": make_current,
        "cuStreamCreate": lambda flags: (done, gpu.stream()),
        "cuStreamSynchronize": lambda stream: (done,),
        "cuStreamBeginCapture": begin,
        "cuStreamEndCapture": end,
        "cuGraphInstantiate": lambda graph, flags: (done, list(graph)),
        "cuGraphLaunch": launch,
        "cuGraphDestroy": lambda graph: (done,),
        "cuGraphExecDestroy": lambda graph: (done,),
        "cuMemAlloc": allocate,
        "cuMemFree": free,
        "cuMemcpyHtoDAsync": write,
        "cuMemcpyDtoHAsync": read,
        "cuEventCreate": lambda flags: (done, SimpleNamespace(us=None)),
        "cuEventDestroy": lambda event: (done,),
        "cuEventRecord": record,
        "cuEventSynchronize": lambda event: (done,),
        "cuEventElapsedTime": lambda start, stop: (done, (stop.us - start.us) / 1e3),
    }
    for name, count in CUDA_PYTHON.items():

        def call(*arguments: Any, _name: str = name, _count: int = count) -> tuple[Any, ...]:
            assert len(arguments) == _count, f"{_name} takes {_count} arguments"
            assert not any(isinstance(a, np.generic) for a in arguments), "numbers of Python, not of numpy"
            return calls[_name](*arguments)

        setattr(driver, name, call)
    cuda, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    bindings.driver = driver  # type: ignore[attr-defined]
    return {"cuda": cuda, "cuda.bindings": bindings, "cuda.bindings.driver": driver}
