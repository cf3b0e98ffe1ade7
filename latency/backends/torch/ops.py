"""An op in PyTorch's words: the call of its kernel, and of what follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from latency.backends.onnxruntime.ops import output_size
from latency.errors import UnsupportedOpError
from latency.op import Op

if TYPE_CHECKING:
    import torch

    Tensors = Callable[..., torch.Tensor]
    """Random numbers of a shape, where and as the op's are."""

__all__ = ["KINDS", "op_call"]

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


def op_call(op: Op, tensor: Tensors, activation: Tensors) -> Callable[[], torch.Tensor]:
    """Returns the op with its tail, on weights of its own.

    Args:
        op: the op.
        tensor: makes weights: random numbers of a shape, where and as the op's are.
        activation: makes or hands out what the op reads.

    Raises:
        UnsupportedOpError: a kind or tail that is not built here.
    """
    from torch.nn import functional as f

    main = _main(op, tensor, activation)
    if main is None:
        raise UnsupportedOpError(
            f"an op {op.kind!r} was asked for; PyTorch ops here are {', '.join(KINDS)}; leave it out of the sweep"
        )
    steps: list[Callable[[torch.Tensor], torch.Tensor]] = []
    for part in op.tail:
        if part == "batch_norm":
            continue  # folded into the weights, as every deployed network has it
        if part == "add":
            shape = (*_rows(op), op.c_out) if op.kind == "linear" else (op.batch, op.c_out, *output_size(op))
            other = activation(*shape)
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


def _main(op: Op, tensor: Tensors, activation: Tensors) -> Callable[[], torch.Tensor] | None:
    """Returns the op without its tail; None for a kind that is not built here."""
    import torch
    from torch.nn import functional as f

    spatial = op.spatial
    n = len(op.kernel)
    stride, padding = op.stride or (1,) * n, op.padding or (0,) * n
    dilation = op.dilation or (1,) * n
    if op.kind == "linear":
        x, weight, bias = activation(*_rows(op), op.c_in), tensor(op.c_out, op.c_in), tensor(op.c_out)
        return lambda: f.linear(x, weight, bias)
    if op.kind == "layer_norm":
        x, weight, bias = activation(*_rows(op), op.c_in), tensor(op.c_in), tensor(op.c_in)
        return lambda: f.layer_norm(x, (op.c_in,), weight, bias)
    x = activation(op.batch, op.c_in, *spatial)
    if op.kind in ("conv", "conv_transpose"):
        if n not in (1, 2, 3):
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
        y = activation(op.batch, op.c_in, *spatial)
        combine = torch.add if op.kind == "add" else torch.mul
        return lambda: combine(x, y)
    if op.kind == "concat":
        first = max(1, op.c_in // 2)
        parts = [activation(op.batch, c, *spatial) for c in (first, op.c_in - first) if c]
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
