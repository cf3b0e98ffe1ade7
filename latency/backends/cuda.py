"""A GPU without PyTorch: memory, a stream, events and graphs, through PyCUDA or through NVIDIA's cuda-python.

Both work in the device's primary context, the one PyTorch uses as well, so they may live in one process with it
(``pycuda.autoinit`` makes a context of its own, beside which PyTorch's handles are invalid). PyCUDA has no CUDA
graphs: with it a series of calls is enqueued one by one, and the time of short kernels is that of their launches.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.metadata
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latency.backends import Found
from latency.device import limits
from latency.errors import HalpieeError, MissingError, UsageError, said

LIBRARIES = ("auto", "cuda-python", "pycuda")


class OutOfMemoryError(MissingError):
    """The memory of the GPU is full."""


class Cuda(Protocol):
    """One GPU with a stream of its own, not the default one."""

    name: str
    stream: int

    def facts(self) -> dict[str, Any]:
        """Returns what the device is: ``device``, ``capability``, ``multiprocessors``, ``l2_bytes`` …."""

    def allocate(self, size_bytes: int) -> int:
        """Returns the address of new memory.

        Raises:
            OutOfMemoryError: there is not so much.
        """

    def free(self, address: int) -> None:
        """Gives memory back."""

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copies an array to the GPU and waits."""

    def read(self, address: int, array: NDArray[Any]) -> None:
        """Copies from the GPU into an array and waits."""

    def synchronize(self) -> None:
        """Waits for everything on the stream."""

    def in_thread(self) -> AbstractContextManager[object]:
        """Inside, the device's context is current in the calling thread."""

    def elapsed_us(self, call: Callable[[], object]) -> float:
        """Returns µs between two events around a call that enqueues work on the stream."""

    def captured(self, call: Callable[[], object]) -> Callable[[], object] | None:
        """Returns a launch of the graph of what a call enqueues; None where it cannot be captured."""


class EventClock:
    """Time between two events around a call; a call that returns a number of µs has timed itself."""

    kind = "wall"

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda

    def time_us(self, run: Callable[[], object]) -> tuple[float, float]:
        """Runs once; returns the µs twice."""
        own: list[object] = []
        us = self._cuda.elapsed_us(lambda: own.append(run()))
        if isinstance(own[0], float):
            us = own[0]
        return us, us


def number_of(device: int | str) -> int:
    """Returns the number of the GPU that ``auto``, ``cuda``, ``cuda:N`` or a number means."""
    kind, _, number = str(device).partition(":")
    if str(device).isdecimal():
        return int(device)
    if kind in ("auto", "cuda") and (number.isdecimal() or not number):
        return int(number or 0)
    raise UsageError(f"device {device!r} was asked for; give auto, cuda, cuda:N or the number of a GPU")


def open_cuda(library: str = "auto", device: int = 0) -> Cuda:
    """Returns a GPU by its number; ``auto``: through the first library that is installed. cuda-python has graphs.

    Raises:
        MissingError: neither library, or no such GPU.
    """
    if library not in LIBRARIES:
        raise UsageError(f"the CUDA library {library!r} was asked for; there are {', '.join(LIBRARIES)}")
    adapters: dict[str, Callable[[int], Cuda]] = {"cuda-python": _CudaPython, "pycuda": _PyCuda}
    wanted = list(adapters) if library == "auto" else [library]
    why = []
    for name in wanted:
        try:
            return adapters[name](device)
        except ImportError as error:
            why.append(f"{name}: {error}")
    raise MissingError(
        f"a GPU was asked for through {' or '.join(wanted)}, and it cannot be opened ({'; '.join(why)}); "
        "run nvidia-smi to see the driver, and install pycuda or cuda-python on a machine with an NVIDIA GPU"
    )


def gpu_facts() -> dict[str, Any]:
    """Returns facts of the first GPU through whichever library opens it; ``device: a GPU`` where none does."""
    try:
        return {**open_cuda().facts(), **limits()}
    except HalpieeError:
        return {"device": "a GPU", **limits()}


def libraries() -> list[tuple[str, Found]]:
    """Returns the state of the driver and of both libraries, for ``halpiee doctor``."""
    found = []
    for name, module in (("cuda-python", "cuda.bindings.driver"), ("pycuda", "pycuda.driver")):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            fix = "" if name == "pycuda" else "pip install cuda-python, where TensorRT is to run"
            found.append((name, Found("note", "not installed", fix)))
            continue
        try:
            importlib.import_module(module)
            found.append((name, Found("ok", version)))
        except (ImportError, OSError, RuntimeError) as error:
            why = f"{version}, which cannot be loaded: {said(error, first=True)}"
            found.append((name, Found("broken" if _driver() else "note", why, "install the NVIDIA driver")))
    driver = _driver()
    there = (
        Found("ok", f"libcuda for CUDA {driver}")
        if driver
        else Found("note", "no libcuda: this machine has no NVIDIA driver, engines cannot run")
    )
    return [*found, ("NVIDIA driver", there)]


def _driver() -> str | None:
    """Returns the newest CUDA that the driver runs; None where there is no driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(number))
    return _version(number.value)


class _PyCuda:
    """A GPU through PyCUDA."""

    name = "pycuda"

    def __init__(self, device: int = 0) -> None:
        import pycuda.driver as driver

        self._driver = driver
        try:
            driver.init()
            count = driver.Device.count()
        except (driver.Error, RuntimeError) as error:
            raise _no_device(f"PyCUDA says: {error}") from error
        if not 0 <= device < count:
            raise _no_such_device(device, count)
        self._device = driver.Device(device)
        self._context = self._device.retain_primary_context()
        self._context.push()
        atexit.register(self._context.pop)  # PyCUDA ends a process by abort where its stack holds a context
        self._stream = driver.Stream()
        self.stream = int(self._stream.handle)
        self._memory: dict[int, Any] = {}

    def facts(self) -> dict[str, Any]:
        attribute = self._driver.device_attribute
        major, minor = self._device.compute_capability()
        return {
            "device": self._device.name(),
            "capability": f"{major}.{minor}",
            "multiprocessors": int(self._device.get_attribute(attribute.MULTIPROCESSOR_COUNT)),
            "l2_bytes": int(self._device.get_attribute(attribute.L2_CACHE_SIZE)),
            "memory_bytes": int(self._device.total_memory()),
            "cuda": _version(int(self._driver.get_driver_version())),
        }

    def allocate(self, size_bytes: int) -> int:
        try:
            found = self._driver.mem_alloc(size_bytes)
        except self._driver.MemoryError as error:
            raise _full(size_bytes) from error
        self._memory[int(found)] = found
        return int(found)

    def free(self, address: int) -> None:
        self._memory.pop(address).free()

    def write(self, address: int, array: NDArray[Any]) -> None:
        self._driver.memcpy_htod_async(address, np.ascontiguousarray(array), self._stream)
        self._stream.synchronize()

    def read(self, address: int, array: NDArray[Any]) -> None:
        self._driver.memcpy_dtoh_async(array, address, self._stream)
        self._stream.synchronize()

    def synchronize(self) -> None:
        self._stream.synchronize()

    @contextmanager
    def in_thread(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def elapsed_us(self, call: Callable[[], object]) -> float:
        start, end = self._driver.Event(), self._driver.Event()
        start.record(self._stream)
        call()
        end.record(self._stream)
        end.synchronize()
        return float(start.time_till(end)) * 1e3

    def captured(self, call: Callable[[], object]) -> Callable[[], object] | None:
        del call
        return None


class _CudaPython:
    """A GPU through the driver bindings of cuda-python."""

    name = "cuda-python"

    def __init__(self, device: int = 0) -> None:
        from cuda.bindings import driver  # type: ignore[import-untyped,import-not-found,unused-ignore]

        self._driver = driver
        try:
            self._do(driver.cuInit(0))
        except RuntimeError as error:  # the bindings find no libcuda, or it finds no device
            raise _no_device(f"cuda-python says: {error}") from error
        count = self._do(driver.cuDeviceGetCount())
        if not 0 <= device < count:
            raise _no_such_device(device, count)
        self._device = self._do(driver.cuDeviceGet(device))
        self._context = self._do(driver.cuDevicePrimaryCtxRetain(self._device))
        self._do(driver.cuCtxSetCurrent(self._context))
        self._stream = self._do(driver.cuStreamCreate(int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)))
        self.stream = int(self._stream)

    def _do(self, answer: tuple[Any, ...]) -> Any:
        """Returns what a call of the driver gave, or raises its error."""
        code, *values = answer
        if code == self._driver.CUresult.CUDA_SUCCESS:
            return values[0] if values else None
        if code == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise _full(None)
        raise RuntimeError(f"the CUDA driver refused a call: {code.name}")

    def facts(self) -> dict[str, Any]:
        kinds, device = self._driver.CUdevice_attribute, self._device

        def attribute(name: str) -> int:
            kind = getattr(kinds, f"CU_DEVICE_ATTRIBUTE_{name}")
            return int(self._do(self._driver.cuDeviceGetAttribute(kind, device)))

        name: bytes = self._do(self._driver.cuDeviceGetName(256, device))
        return {
            "device": name.split(b"\0")[0].decode(),
            "capability": ".".join(
                str(attribute(f"COMPUTE_CAPABILITY_{part}")) for part in ("MAJOR", "MINOR")
            ),
            "multiprocessors": attribute("MULTIPROCESSOR_COUNT"),
            "l2_bytes": attribute("L2_CACHE_SIZE"),
            "memory_bytes": int(self._do(self._driver.cuDeviceTotalMem(device))),
            "cuda": _version(int(self._do(self._driver.cuDriverGetVersion()))),
        }

    def allocate(self, size_bytes: int) -> int:
        try:
            return int(self._do(self._driver.cuMemAlloc(size_bytes)))
        except OutOfMemoryError as error:
            raise _full(size_bytes) from error

    def free(self, address: int) -> None:
        self._do(self._driver.cuMemFree(address))

    def write(self, address: int, array: NDArray[Any]) -> None:
        whole = np.ascontiguousarray(array)
        self._do(self._driver.cuMemcpyHtoDAsync(address, whole.ctypes.data, whole.nbytes, self._stream))
        self.synchronize()

    def read(self, address: int, array: NDArray[Any]) -> None:
        self._do(self._driver.cuMemcpyDtoHAsync(array.ctypes.data, address, array.nbytes, self._stream))
        self.synchronize()

    def synchronize(self) -> None:
        self._do(self._driver.cuStreamSynchronize(self._stream))

    @contextmanager
    def in_thread(self) -> Iterator[None]:
        self._do(self._driver.cuCtxSetCurrent(self._context))
        yield

    def elapsed_us(self, call: Callable[[], object]) -> float:
        default = int(self._driver.CUevent_flags.CU_EVENT_DEFAULT)
        start, end = (self._do(self._driver.cuEventCreate(default)) for _ in range(2))
        try:
            self._do(self._driver.cuEventRecord(start, self._stream))
            call()
            self._do(self._driver.cuEventRecord(end, self._stream))
            self._do(self._driver.cuEventSynchronize(end))
            return float(self._do(self._driver.cuEventElapsedTime(start, end))) * 1e3
        finally:
            for event in (start, end):
                self._do(self._driver.cuEventDestroy(event))

    def captured(self, call: Callable[[], object]) -> Callable[[], object] | None:
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._do(self._driver.cuStreamBeginCapture(self._stream, mode))
        try:
            call()
        except RuntimeError:  # what cannot be captured can still be enqueued
            self._driver.cuStreamEndCapture(self._stream)
            return None
        code, graph = self._driver.cuStreamEndCapture(self._stream)
        if code != self._driver.CUresult.CUDA_SUCCESS:
            return None
        ready = self._do(self._driver.cuGraphInstantiate(graph, 0))
        self._do(self._driver.cuGraphDestroy(graph))
        launch = lambda: self._do(self._driver.cuGraphLaunch(ready, self._stream))  # noqa: E731
        weakref.finalize(launch, self._driver.cuGraphExecDestroy, ready)
        return launch


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _no_device(found: str) -> MissingError:
    return MissingError(
        f"a GPU was asked for, and there is none ({found}); run nvidia-smi to see the driver, or use "
        "--backend onnxruntime for the CPU"
    )


def _no_such_device(device: int, count: int) -> MissingError:
    return MissingError(
        f"GPU {device} was asked for, and this machine has {count}; ask for one from 0, or see nvidia-smi"
    )


def _full(size_bytes: int | None) -> OutOfMemoryError:
    what = "memory" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"
    return OutOfMemoryError(
        f"{what} was asked of the GPU, which has no more (out of memory); use a smaller batch, or end other work on it"
    )
