"""Whole modules on PyTorch: a CUDA graph on a GPU, the module itself on the CPU; and what they are timed by there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from latency.errors import MissingError, UsageError
from latency.timing.clock import Clock, CpuClock, WallClock

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "CudaClock",
    "Precision",
    "clock_on",
    "dtype_of",
    "module_call",
    "resolved_device",
    "set_arithmetic",
]

Precision = Literal["fp32", "tf32", "fp16", "bf16"]


def resolved_device(device: str) -> str:
    """Returns ``cuda`` or ``cpu``.

    Raises:
        MissingError: a GPU was asked for and there is none.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device {device!r} was asked for; there are auto, cpu and cuda")
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise MissingError(
            "a GPU was asked for and PyTorch finds none; check nvidia-smi and the CUDA build of torch, or use "
            "--device cpu"
        )
    return "cuda" if there and device != "cpu" else "cpu"


def dtype_of(precision: Precision) -> torch.dtype:
    """Returns the type of weights and activations."""
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


def set_arithmetic(precision: Precision) -> None:
    """Makes everything that runs on the GPU from here on run as ops are profiled.

    TF32 only where it was asked for (PyTorch's own default uses it in float32 convolutions), and cuDNN's choice of
    algorithm by trying.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True


def clock_on(device: str, threads: int) -> Clock:
    """Returns what times a call: CUDA events, the CPU time of one thread, or the wall clock."""
    if resolved_device(device) == "cuda":
        return CudaClock()
    return CpuClock() if threads == 1 else WallClock()


class CudaClock:
    """Time between two CUDA events around a call."""

    kind = "wall"

    def time_us(self, run: Callable[[], object]) -> tuple[float, float]:
        """Runs once; returns µs between the events twice."""
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        us = start.elapsed_time(end) * 1e3
        return us, us


def module_call(
    module: Any,
    example_inputs: Sequence[Any] | None,
    *,
    device: str = "auto",
    threads: int = 1,
    precision: Precision = "fp32",
    channels_last: bool = False,
    repeats: int = 1,
) -> Callable[[], object]:
    """Returns a call of a whole module in evaluation mode: a CUDA graph on a GPU, the module itself on the CPU.

    The module is copied; the one that was passed keeps its device and mode.

    Args:
        module: any torch module.
        example_inputs: what it reads.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: of the CPU.
        precision: of weights, inputs and arithmetic.
        channels_last: whether images lie in NHWC order.
        repeats: forwards in one call; the difference of two such calls is a forward without launch and graph entry.
    """
    import torch

    from latency.copies import copy_of

    if not hasattr(module, "forward") or example_inputs is None:
        raise UsageError(
            f"the latency of a {type(module).__name__} on PyTorch was asked for; pass a torch module and "
            "example_inputs, a tuple of tensors"
        )
    place, dtype = resolved_device(device), dtype_of(precision)
    model: nn.Module = copy_of(module).eval().to(device=place, dtype=dtype)
    inputs = tuple(
        x.detach().to(device=place, dtype=dtype if x.is_floating_point() else x.dtype) for x in example_inputs
    )
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        inputs = tuple(x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs)
    if place == "cpu":
        torch.set_num_threads(threads)

        def run() -> object:
            with torch.inference_mode():
                for _ in range(repeats):
                    answer = model(*inputs)
                return answer

        return run
    set_arithmetic(precision)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(*inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=_pool(), stream=stream):
            for _ in range(repeats):
                kept = model(*inputs)

    def replay(kept: object = kept, model: nn.Module = model, inputs: object = inputs) -> object:
        graph.replay()
        return kept

    return replay


@cache
def _pool() -> Any:
    """Returns the memory that the graphs of all modules share: they run one after the other.

    Every graph writes what it reads, its inputs and weights lie elsewhere; apart, 52 graphs of ResNet-50 at batch 256
    would not fit.
    """
    import torch

    return torch.cuda.graph_pool_handle()
