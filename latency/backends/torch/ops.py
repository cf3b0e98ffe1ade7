"""An op as a call of PyTorch's functions, its tail included."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as f

from latency.errors import UnsupportedOpError
from latency.op import Op, filled, heads_of, operand_shapes, output_size

Tensors = Callable[..., torch.Tensor]
"""Random numbers of a shape, where and as the op's are."""

Call = Callable[[], torch.Tensor]

ACTIVATIONS = ("relu", "relu6", "silu", "hardswish", "sigmoid", "hardsigmoid", "gelu")
"""Kinds that are functions of that name."""


def op_call(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    """Returns the op with its tail; ``tensor`` makes its weights, ``activation`` makes or hands out what it reads."""
    if op.kind not in BUILDERS or (op.spec.window and len(op.kernel) not in (1, 2, 3)):
        raise UnsupportedOpError(
            f"an op {op.kind!r} was asked for; PyTorch ops here are {', '.join(BUILDERS)}; leave it out of the sweep"
        )
    main = BUILDERS[op.kind](op, tensor, activation)
    steps: list[Callable[[torch.Tensor], torch.Tensor]] = []
    for part in op.tail:
        if part == "batch_norm":
            continue  # folded into the weights, as every deployed network has it
        if part == "add":
            shape = (*_rows(op), op.c_out) if op.kind == "linear" else (op.batch, op.c_out, *output_size(op))
            other = activation(*shape)
            steps.append(lambda y, other=other: y.add_(other))  # type: ignore[misc]
        elif part in ACTIVATIONS:
            steps.append(getattr(f, part))
        else:
            raise UnsupportedOpError(f"a tail {part!r} was asked for; leave the op out of the sweep")

    def call() -> torch.Tensor:
        y = main()
        for step in steps:
            y = step(y)
        return y

    return call


def _linear(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    x, weight, bias = activation(*_rows(op), op.c_in), tensor(op.c_out, op.c_in), tensor(op.c_out)
    return lambda: f.linear(x, weight, bias)


def _layer_norm(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    x, weight, bias = activation(*_rows(op), op.c_in), tensor(op.c_in), tensor(op.c_in)
    return lambda: f.layer_norm(x, (op.c_in,), weight, bias)


def _attention(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    del tensor
    heads = heads_of(op)
    q, k, v = (
        x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (activation(*s) for s in operand_shapes(op))
    )
    return lambda: f.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _product(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    del tensor
    a, b = (activation(*shape) for shape in operand_shapes(op))
    return lambda: a @ b


def _softmax(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    del tensor
    x = activation(*operand_shapes(op)[0])
    return lambda: x.softmax(-1)


def _conv(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    x, n, transposed = _map(op, activation), len(op.kernel), op.kind == "conv_transpose"
    stride, padding, dilation = (
        filled(values, n, usual) for values, usual in ((op.stride, 1), (op.padding, 0), (op.dilation, 1))
    )
    shape = (op.c_in, op.c_out // op.groups) if transposed else (op.c_out, op.c_in // op.groups)
    weight, bias = tensor(*shape, *op.kernel), tensor(op.c_out)
    return lambda: torch.convolution(
        x, weight, bias, stride, padding, dilation, transposed, (0,) * n, op.groups
    )


def _pool(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    del tensor
    x, n = _map(op, activation), len(op.kernel)
    pool, stride, padding = getattr(f, f"{op.kind}{n}d"), filled(op.stride, n, 1), filled(op.padding, n, 0)
    return lambda: pool(x, op.kernel, stride, padding)


def _global_avg_pool(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    del tensor
    x = _map(op, activation)
    dims = tuple(range(2, x.dim()))
    return lambda: x.mean(dims, keepdim=True)


def _combined(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    del tensor
    x, y = _map(op, activation), _map(op, activation)
    combine = torch.add if op.kind == "add" else torch.mul
    return lambda: combine(x, y)


def _concat(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    del tensor
    first = max(1, op.c_in // 2)
    parts = [activation(op.batch, c, *op.spatial) for c in (first, op.c_in - first) if c]
    return lambda: torch.cat(parts, 1)


def _batch_norm(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    x = _map(op, activation)
    mean, weight, bias = tensor(op.c_in), tensor(op.c_in), tensor(op.c_in)
    var = tensor(op.c_in).abs() + 0.5
    return lambda: f.batch_norm(x, mean, var, weight, bias)


def _upsample(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    del tensor
    x, factors = _map(op, activation), [float(s) for s in (op.stride or (2,) * len(op.spatial))]
    return lambda: f.interpolate(x, scale_factor=factors)


def _activation(op: Op, tensor: Tensors, activation: Tensors) -> Call:
    del tensor
    x, apply = _map(op, activation), getattr(f, op.kind)
    return lambda: apply(x)


BUILDERS: dict[str, Callable[[Op, Tensors, Tensors], Call]] = {
    "conv": _conv,
    "conv_transpose": _conv,
    "linear": _linear,
    "max_pool": _pool,
    "avg_pool": _pool,
    "global_avg_pool": _global_avg_pool,
    "add": _combined,
    "mul": _combined,
    "concat": _concat,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "attention": _attention,
    "product": _product,
    "softmax": _softmax,
    "upsample": _upsample,
    **dict.fromkeys(ACTIVATIONS, _activation),
}
"""Kind → what returns the op without its tail, given what makes weights and what makes or hands out activations."""

KINDS = tuple(BUILDERS)
"""Kinds of op that are built here."""


def _map(op: Op, activation: Tensors) -> torch.Tensor:
    return activation(op.batch, op.c_in, *op.spatial)


def _rows(op: Op) -> tuple[int, ...]:
    return (op.batch,) if op.h * op.w == 1 else (op.batch, op.h * op.w)
