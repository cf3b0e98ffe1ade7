"""Ops on eager PyTorch: on a GPU (cuDNN, CUDA graphs) or on the CPU.

On a GPU a call is a graph of K ops and the call it is compared with a graph of one; the slope between them is the op
inside a graph, without launch and graph entry. Weights rotate through copies larger than the second-level cache,
because in a network they are cold while activations are warm. On the CPU a call is the op alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from latency.backends import Built
from latency.backends.torch.network import Precision, clock_on, dtype_of, resolved_device, set_arithmetic
from latency.backends.torch.ops import op_call
from latency.device import environment
from latency.errors import UnsupportedOpError, UsageError
from latency.op import Op
from latency.timing.clock import Clock

if TYPE_CHECKING:
    import torch

__all__ = ["Torch"]

COPIES = 8
"""Ops in the longer of the two graphs at least; more where one op takes less than a quarter of a millisecond."""

GRAPH_US = 2000.0
"""The longer graph takes about this long: event times are unreliable below 10 µs, and drift stays small."""


class Torch:
    """Ops on PyTorch.

    Args:
        threads: threads of the CPU.
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        precision: ``fp32`` (TF32 off), ``tf32``, ``fp16`` or ``bf16``: the arithmetic of every op.
        channels_last: whether activations lie in NHWC order.

    Raises:
        MissingError: a GPU was asked for and there is none.
    """

    name = "torch"

    def __init__(
        self,
        threads: int = 1,
        device: str = "auto",
        precision: Precision = "fp32",
        channels_last: bool = False,
    ) -> None:
        import torch

        if precision not in ("fp32", "tf32", "fp16", "bf16"):
            raise UsageError(f"precision {precision!r} was asked for; there are fp32, tf32, fp16, bf16")
        self.device = resolved_device(device)
        self.threads = threads
        self.precision = precision
        self.channels_last = channels_last
        self.dtype = dtype_of(precision)
        if self.device == "cuda":
            set_arithmetic(precision)
        else:
            torch.set_num_threads(threads)

    def environment(self) -> dict[str, Any]:
        """Returns the circumstances of everything this backend measures."""
        import torch

        dtype = str(self.dtype).removeprefix("torch.")
        if self.device == "cpu":
            return environment("torch", self.threads, dtype)
        facts = torch.cuda.get_device_properties(0)
        return environment(
            "torch",
            self.threads,
            dtype,
            device=facts.name,
            capability=f"{facts.major}.{facts.minor}",
            multiprocessors=facts.multi_processor_count,
            l2_bytes=facts.L2_cache_size,
            memory_bytes=facts.total_memory,
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            tf32=self.precision == "tf32",
            cpu_flags=[],
            cudnn_benchmark=True,
        )

    def clock(self) -> Clock:
        """Returns CUDA events, the CPU time of one thread, or the wall clock of several."""
        return clock_on(self.device, self.threads)

    def anchor(self) -> Callable[[], object] | None:
        """Returns a small product of matrices; None on a GPU, whose events no neighbour disturbs."""
        if self.device == "cuda":
            return None
        import torch

        a, b = torch.randn(48, 48), torch.randn(48, 48)
        return lambda: torch.mm(a, b)

    def build(self, op: Op) -> Built:
        """Builds an op: as two graphs on a GPU, alone on the CPU.

        Raises:
            UnsupportedOpError: a kind that is not built here, or a dtype other than the backend's.
        """
        import torch

        if op.dtype not in ("float32", str(self.dtype).removeprefix("torch.")):
            raise UnsupportedOpError(
                f"an op in {op.dtype} was asked for; this backend measures {self.precision}; "
                "start it with that precision"
            )
        with torch.inference_mode():
            copies = self._copies(op)
            calls = [op_call(op, self.tensor) for _ in range(copies)]
            if self.device == "cpu":
                call = calls[0]

                def run() -> object:
                    with torch.inference_mode():
                        return call()

                return Built(run=run, method="alone")
            return self._graphs(calls)

    def tensor(self, *shape: int) -> torch.Tensor:
        """Returns random numbers: arithmetic on zeros is faster on some devices."""
        import torch

        x = torch.randn(*shape, device=self.device, dtype=self.dtype)
        if self.channels_last and len(shape) == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _copies(self, op: Op) -> int:
        """Returns how many copies the graph holds: enough for its time, and for weights beyond the L2 cache."""
        if self.device == "cpu":
            return 1
        import torch

        per_op_us = max(2.0, op.macs / 5e6)
        weights = op.c_in * op.c_out // max(1, op.groups) * 2
        for k in op.kernel:
            weights *= k
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        wanted = max(GRAPH_US / per_op_us, min(256.0, 2.0 * cache / max(1, weights)))
        return int(min(256, max(COPIES, wanted)))

    def _graphs(self, calls: Sequence[Callable[[], object]]) -> Built:
        """Captures all calls in one graph and the first of them in another."""
        import torch

        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        graphs: list[Any] = []
        for part in (calls, calls[:1]):
            with torch.cuda.stream(stream):
                for _ in range(3):  # cuDNN's own choice of algorithm cannot happen during a capture
                    for call in part:
                        call()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for call in part:
                    call()
            graphs.append(graph)

        def run(graph: Any = graphs[0], kept: object = calls) -> object:  # a graph does not own what it reads
            del kept
            return graph.replay()

        return Built(
            run=run,
            minus=graphs[1].replay,
            copies=len(calls) - 1,
            method="graph slope",
            tactic=_kernels(graphs[1]),
        )


def _kernels(graph: Any) -> str | None:
    """Returns the names of the GPU kernels of one replay: what the library chose."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:  # torch 2.11 warns without
            graph.replay()
            torch.cuda.synchronize()
    except RuntimeError:
        return None
    names = [e.name[:60] for e in seen.events() if str(getattr(e, "device_type", "")).endswith("CUDA")]
    return " + ".join(names) or None
