"""Whole modules on PyTorch: a CUDA graph on a GPU, the module itself on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from latency.backends.torch_device import Precision, dtype_of, resolved_device, set_arithmetic
from latency.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["module_call"]


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
