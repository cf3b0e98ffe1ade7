"""Where PyTorch runs and in which arithmetic: the device, the precision, and what times a call there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from latency.errors import MissingError, UsageError
from latency.timing.clock import Clock, CpuClock, WallClock

if TYPE_CHECKING:
    import torch

__all__ = ["CudaClock", "Precision", "clock_on", "dtype_of", "resolved_device", "set_arithmetic"]

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
