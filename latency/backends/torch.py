"""Eager PyTorch on a GPU (cuDNN, CUDA graphs) or on the CPU: ops, and whole modules.

On a GPU a call is a graph of K ops and the call it is compared with a graph of one; the slope between them is the op
inside a graph, without launch and graph entry. Weights rotate through copies larger than the second-level cache,
because in a network they are cold while activations are warm. On the CPU a call is the op alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from latency.backends import Built
from latency.backends.onnx_graph import output_size
from latency.device import environment
from latency.errors import MissingError, UnsupportedOpError, UsageError
from latency.op import Op
from latency.timer import Clock, CpuClock, WallClock

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["CudaClock", "Torch", "module_call", "module_clock", "resolved_device", "set_arithmetic"]

Precision = Literal["fp32", "tf32", "fp16", "bf16"]

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
        self.dtype = _dtype(precision)
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
        return module_clock(self.device, self.threads)

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
            calls = [self._call(op) for _ in range(copies)]
            if self.device == "cpu":
                call = calls[0]

                def run() -> object:
                    with torch.inference_mode():
                        return call()

                return Built(run=run, method="alone")
            return self._graphs(calls)

    def _call(self, op: Op) -> Callable[[], object]:
        """Returns the op with its tail, on weights and inputs of its own."""
        from torch.nn import functional as f

        main = _main(op, self)
        if main is None:
            raise UnsupportedOpError(
                f"an op {op.kind!r} was asked for; PyTorch ops here are {', '.join(KINDS)}; leave it out of the sweep"
            )
        steps: list[Callable[[torch.Tensor], torch.Tensor]] = []
        for part in op.tail:
            if part == "batch_norm":
                continue  # folded into the weights, as every deployed network has it
            if part == "add":
                other = self.tensor(op.batch, op.c_out, *output_size(op)) if op.kind != "linear" else None
                if other is None:
                    other = self.tensor(*_rows(op), op.c_out)
                steps.append(lambda y, other=other: y.add_(other))  # type: ignore[misc]
            elif part in ACTIVATIONS:
                steps.append(getattr(f, ACTIVATIONS[part]))
            else:
                raise UnsupportedOpError(f"a tail {part!r} was asked for; leave the op out of the sweep")

        def call() -> torch.Tensor:
            y = main()
            for step in steps:
                y = step(y)
            return y

        return call

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


def set_arithmetic(precision: Precision) -> None:
    """Makes everything that runs on the GPU from here on run as ops are profiled.

    TF32 only where it was asked for (PyTorch's own default uses it in float32 convolutions), and cuDNN's choice of
    algorithm by trying.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True


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
    import copy

    import torch

    if not hasattr(module, "forward") or example_inputs is None:
        raise UsageError(
            f"the latency of a {type(module).__name__} on PyTorch was asked for; pass a torch module and "
            "example_inputs, a tuple of tensors"
        )
    place, dtype = resolved_device(device), _dtype(precision)
    model: nn.Module = copy.deepcopy(module).eval().to(device=place, dtype=dtype)
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


def module_clock(device: str, threads: int) -> Clock:
    """Returns what times a module: CUDA events, the CPU time of one thread, or the wall clock."""
    if resolved_device(device) == "cuda":
        return CudaClock()
    return CpuClock() if threads == 1 else WallClock()


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


def _dtype(precision: Precision) -> torch.dtype:
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


ACTIVATIONS = {
    "relu": "relu",
    "relu6": "relu6",
    "silu": "silu",
    "hardswish": "hardswish",
    "sigmoid": "sigmoid",
    "hardsigmoid": "hardsigmoid",
    "gelu": "gelu",
}

KINDS = (
    "conv", "conv_transpose", "linear", "max_pool", "avg_pool", "global_avg_pool", "add", "mul", "concat",
    "batch_norm", "layer_norm", "upsample", *ACTIVATIONS,
)  # fmt: skip


def _main(op: Op, backend: Torch) -> Callable[[], torch.Tensor] | None:
    """Returns the op without its tail; None for a kind that is not built here."""
    import torch
    from torch.nn import functional as f

    tensor = backend.tensor
    spatial = (op.h, op.w)[: len(op.kernel)] if len(op.kernel) == 1 else (op.h, op.w)
    n = len(op.kernel)
    stride, padding = op.stride or (1,) * n, op.padding or (0,) * n
    dilation = op.dilation or (1,) * n
    if op.kind == "linear":
        x, weight, bias = tensor(*_rows(op), op.c_in), tensor(op.c_out, op.c_in), tensor(op.c_out)
        return lambda: f.linear(x, weight, bias)
    if op.kind == "layer_norm":
        x, weight, bias = tensor(*_rows(op), op.c_in), tensor(op.c_in), tensor(op.c_in)
        return lambda: f.layer_norm(x, (op.c_in,), weight, bias)
    x = tensor(op.batch, op.c_in, *spatial)
    if op.kind in ("conv", "conv_transpose"):
        if n not in (1, 2):
            return None
        transposed = op.kind == "conv_transpose"
        shape = (op.c_in, op.c_out // op.groups) if transposed else (op.c_out, op.c_in // op.groups)
        weight, bias = tensor(*shape, *op.kernel), tensor(op.c_out)
        return lambda: torch.convolution(
            x, weight, bias, stride, padding, dilation, transposed, (0,) * n, op.groups
        )
    if op.kind in ("max_pool", "avg_pool"):
        pool = getattr(f, f"{op.kind}{n}d")
        return lambda: pool(x, op.kernel, stride, padding)
    if op.kind == "global_avg_pool":
        dims = tuple(range(2, x.dim()))
        return lambda: x.mean(dims, keepdim=True)
    if op.kind in ("add", "mul"):
        y = tensor(op.batch, op.c_in, *spatial)
        combine = torch.add if op.kind == "add" else torch.mul
        return lambda: combine(x, y)
    if op.kind == "concat":
        first = max(1, op.c_in // 2)
        parts = [tensor(op.batch, c, *spatial) for c in (first, op.c_in - first) if c]
        return lambda: torch.cat(parts, 1)
    if op.kind == "batch_norm":
        mean, weight, bias = tensor(op.c_in), tensor(op.c_in), tensor(op.c_in)
        var = tensor(op.c_in).abs() + 0.5
        return lambda: f.batch_norm(x, mean, var, weight, bias)
    if op.kind == "upsample":
        factors = [float(s) for s in (op.stride or (2,) * len(spatial))]
        return lambda: f.interpolate(x, scale_factor=factors)
    if op.kind in ACTIVATIONS:
        activation = getattr(f, ACTIVATIONS[op.kind])
        return lambda: activation(x)
    return None


def _rows(op: Op) -> tuple[int, ...]:
    return (op.batch,) if op.h * op.w == 1 else (op.batch, op.h * op.w)


def _kernels(graph: Any) -> str | None:
    """Returns the names of the GPU kernels of one replay: what the library chose."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            graph.replay()
            torch.cuda.synchronize()
    except RuntimeError:
        return None
    names = [e.name[:60] for e in seen.events() if str(getattr(e, "device_type", "")).endswith("CUDA")]
    return " + ".join(names) or None
