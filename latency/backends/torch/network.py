"""Whole modules on PyTorch: a CUDA graph on a GPU, the module itself on the CPU; and what they are timed by there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from latency.backends import Runner
from latency.errors import HalpieeError, MissingError, UsageError, out_of_memory, said
from latency.timing import Clock, CpuClock, WallClock

if TYPE_CHECKING:
    import torch
    from torch import nn


Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8"]

Mode = Literal["graph", "eager", "compile"]
"""How a module runs: as one CUDA graph where there is a GPU, call by call, or through ``torch.compile``."""


def resolved_device(device: str) -> str:
    """Returns ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: no such word.
        MissingError: a GPU was asked for and there is none, or not so many.
    """
    import torch

    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UsageError(f"device {device!r} was asked for; there are auto, cpu, cuda and cuda:N")
    there = torch.cuda.is_available()
    if kind == "cuda" and not there:
        raise MissingError(
            "a GPU was asked for and PyTorch finds none; check nvidia-smi and the CUDA build of torch, or use "
            "--device cpu"
        )
    if number and int(number) >= torch.cuda.device_count():
        raise MissingError(
            f"device {device} was asked for, and PyTorch finds {torch.cuda.device_count()} GPUs, numbered from 0; see "
            "nvidia-smi"
        )
    if kind == "auto":
        return "cuda" if there else "cpu"
    return device


def dtype_of(precision: Precision) -> torch.dtype:
    """Returns the type of weights and activations."""
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


def set_arithmetic(precision: Precision) -> None:
    """Sets the arithmetic of PyTorch on the GPU to that by which ops are profiled.

    TF32 only where it was asked for (PyTorch's own default uses it in float32 convolutions), and cuDNN's choice of
    algorithm by trying. Written is ``fp32_precision`` of every kind of op: the older ``allow_tf32`` raises where
    anybody has used the newer interface before, and leaves what inherits from a parent as it is.
    """
    import torch

    for owner in _arithmetic():
        owner.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cudnn.benchmark = True


def _arithmetic() -> tuple[Any, ...]:
    """Returns what holds the arithmetic of float32 on a GPU: products of matrices, convolutions, recurrent layers."""
    import torch

    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


@contextmanager
def restored() -> Iterator[None]:
    """Puts back what timing changes of PyTorch for the whole process: threads, arithmetic, cuDNN's trying."""
    import torch

    threads, chosen = torch.get_num_threads(), torch.backends.cudnn.benchmark
    before = [(owner, owner.fp32_precision) for owner in _arithmetic()]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = chosen
        for owner, value in before:
            owner.fp32_precision = value


def clock_on(device: str, threads: int) -> Clock:
    """Returns what times a call: CUDA events, the CPU time of one thread, or the wall clock."""
    place = resolved_device(device)
    if place != "cpu":
        return CudaClock(place)
    return CpuClock() if threads == 1 else WallClock()


class CudaClock:
    """Time between two CUDA events around a call."""

    kind = "wall"

    def __init__(self, device: str = "cuda") -> None:
        self._device = device

    def time_us(self, run: Callable[[], object]) -> tuple[float, float]:
        """Runs once; returns µs between the events twice."""
        import torch

        with torch.cuda.device(self._device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            run()
            end.record()
            end.synchronize()
        us = start.elapsed_time(end) * 1e3
        return us, us


@cache
def shared_graphs(device: str) -> tuple[Any, Any, Any]:
    """Returns the stream and the memory pool that all graphs of a device share, and a graph that keeps the pool alive.

    Graphs run one after the other. Each writes what it reads; inputs and weights lie elsewhere. Memory of a pool is
    shared only by captures on one stream: the allocator keeps blocks by stream. A pool whose graphs are all gone while
    one of its tensors lives cannot be captured into again, so one tiny graph is kept for good.
    """
    import torch

    with torch.cuda.device(device):
        stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
        one = torch.zeros(1, device=device)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            kept = one + 1
    return stream, pool, (graph, one, kept)


def capture_refused(error: Exception) -> bool:
    """Returns whether something cannot be captured in a CUDA graph, which PyTorch tells by its words only."""
    return isinstance(error, RuntimeError) and "captur" in str(error).lower()


class ModuleRunner(Runner):
    """A whole module in evaluation mode. It is copied; the one that was passed keeps its device and mode."""

    def __init__(
        self,
        module: Any,
        example_inputs: Sequence[Any] | None,
        *,
        device: str,
        threads: int = 1,
        precision: Precision = "fp32",
        channels_last: bool = False,
        mode: Mode = "graph",
        forwards: int = 1,
    ) -> None:
        if not hasattr(module, "forward") or example_inputs is None:
            raise UsageError(
                f"the latency of a {type(module).__name__} on PyTorch was asked for; pass a torch module and "
                "example_inputs, a tuple of tensors"
            )
        self.runtime = "torch.compile" if mode == "compile" else "torch"
        self.precision, self.device = precision, device.partition(":")[0]
        self._module, self._examples, self._place = module, tuple(example_inputs), device
        self._threads, self._last, self._mode, self._forwards = threads, channels_last, mode, forwards
        self._arithmetic: Precision = precision
        self._start: Callable[[], object] = lambda: None

    def ready(self) -> None:
        """Places a copy, compiles or captures it, and runs it once."""
        import torch

        compiled = self._mode == "compile"
        if compiled and self.device == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise MissingError(
                "torch.compile was asked for on the CPU, and there is no C++ compiler; install g++, or leave @compile "
                "out"
            )
        model, inputs = self._placed()
        call: Callable[..., object] = torch.compile(model) if compiled else model
        if self.device == "cpu":
            torch.set_num_threads(self._threads)
        else:
            set_arithmetic(self._arithmetic)
        self._start = self._eager(call, inputs)
        try:
            self.run()
            if self._mode == "graph" and self.device != "cpu":
                self._start = self._captured(model, inputs)
        except Exception as error:  # whatever the module or the compiler raises
            raise self._refused(error, inputs) from error

    def start(self) -> object:
        """Starts the forwards."""
        return self._start()

    def finish(self) -> None:
        """Waits for the GPU."""
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize(self._place)

    def free(self) -> None:
        """Frees the copy and its graph."""
        self._start = lambda: None

    def _placed(self) -> tuple[nn.Module, tuple[Any, ...]]:
        """Returns the copy and its inputs, on the device and in the precision and layout."""
        import torch

        from latency.backends.torch.modules import copy_of

        place, dtype = self._place, dtype_of(self._arithmetic)
        model: nn.Module = copy_of(self._module).eval().to(device=place, dtype=dtype)
        inputs = tuple(
            x.detach().to(device=place, dtype=dtype if x.is_floating_point() else x.dtype)
            if isinstance(x, torch.Tensor)
            else x
            for x in self._examples
        )
        if self._last:
            model = model.to(memory_format=torch.channels_last)
            inputs = tuple(
                x.to(memory_format=torch.channels_last) if isinstance(x, torch.Tensor) and x.dim() == 4 else x
                for x in inputs
            )
        return model, inputs

    def _eager(self, call: Callable[..., object], inputs: tuple[Any, ...]) -> Callable[[], object]:
        import torch

        def run() -> object:
            answer: object = None
            with torch.inference_mode():
                for _ in range(self._forwards):
                    answer = call(*inputs)
            return answer

        return run

    def _captured(self, model: nn.Module, inputs: tuple[Any, ...]) -> Callable[[], object]:
        import torch

        stream, pool, _ = shared_graphs(self._place)
        with torch.no_grad(), torch.cuda.device(self._place):
            torch.cuda.synchronize()  # another stream neither reads weights under way nor times beside other work
            with torch.cuda.stream(stream):
                for _ in range(3):
                    model(*inputs)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                for _ in range(self._forwards):
                    kept = model(*inputs)

        def replay(kept: object = kept, model: nn.Module = model, inputs: object = inputs) -> object:
            graph.replay()  # a graph does not own what it reads
            return kept

        return replay

    def _refused(self, error: Exception, inputs: tuple[Any, ...]) -> HalpieeError:
        if self.device != "cpu" and out_of_memory(error):
            return MissingError(
                f"{type(self._module).__name__} was to be run on {self._place}, whose memory is full; use a smaller "
                "--batch, or end what else runs there"
            )
        if self.device != "cpu" and capture_refused(error):
            return UsageError(
                f"{type(self._module).__name__} was to be captured in a CUDA graph, and {self._place} refuses it "
                f"({said(error, first=True)}); time it call by call, with @eager"
            )
        shapes = ", ".join("×".join(map(str, x.shape)) for x in inputs if hasattr(x, "shape"))
        text = str(error).strip()
        return UsageError(
            f"{type(self._module).__name__} was to be run on {shapes} in {self.precision}"
            f"{' by torch.compile' if self._mode == 'compile' else ''} and raised {type(error).__name__}: "
            f"{text.splitlines()[0][:200] if text else 'nothing more'}; give the size it takes with --size, or another "
            "--precision"
        )
