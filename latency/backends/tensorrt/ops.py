"""One op as a TensorRT network, through its network interface: no ONNX is needed on the target.

The op and its tail are one network, and TensorRT fuses what it would fuse inside a whole one. Inputs and outputs may
lie in any format that the precision has, so that no change of layout is timed with the op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from latency.errors import UnsupportedOpError
from latency.op import Op, output_size

DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}

NUMPY = {"FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT32": "int32", "INT64": "int64",
          "BOOL": "bool", "INT8": "int8", "UINT8": "uint8"}  # fmt: skip
"""numpy's name for TensorRT's types; bfloat16, which numpy lacks, as its sixteen bits."""

FORMATS = {
    "float32": ("LINEAR", "CHW32", "HWC"),
    "float16": ("LINEAR", "CHW2", "HWC8"),
    "bfloat16": ("LINEAR", "HWC8"),
}
"""Formats that inputs and outputs may take, as the tables of TensorRT's guide list them; not tried on a GPU yet."""

ACTIVATIONS = {
    "relu": ("RELU", None, None),
    "relu6": ("CLIP", 0.0, 6.0),
    "sigmoid": ("SIGMOID", None, None),
    "hardsigmoid": ("HARD_SIGMOID", 1 / 6, 0.5),
    "gelu": ("GELU_ERF", None, None),
}
"""TensorRT's name, alpha and beta."""

GATED = {"silu": "sigmoid", "hardswish": "hardsigmoid"}
"""x · gate(x)."""


class OpNetwork:
    """Puts ops into a strongly typed network; ``native`` lets inputs and outputs lie in any format, else plainly."""

    def __init__(self, trt: Any, network: Any, *, native: bool = True) -> None:
        self.trt, self.network, self.native = trt, network, native
        self.kept: list[Any] = []
        self._rng = np.random.default_rng(0)
        self._prefix = ""

    def add(self, op: Op, prefix: str = "") -> None:
        """Adds an op with its tail; the names of its layers begin with ``prefix``."""
        if op.kind not in BUILDERS:
            raise UnsupportedOpError(
                f"an op {op.kind!r} was asked for; TensorRT ops here are {', '.join(BUILDERS)}; leave it out of the "
                "sweep"
            )
        if op.dtype not in DTYPES or len(op.kernel) > 2:
            raise UnsupportedOpError(
                f"{op.kind} in {op.dtype} with a {len(op.kernel)}d kernel was asked for; TensorRT ops here "
                f"are 1d or 2d in {', '.join(DTYPES)}; leave it out of the sweep"
            )
        self._op, self._prefix, self._layers = op, prefix, 0
        y = BUILDERS[op.kind](self, op)
        for part in op.tail:
            if part == "batch_norm":
                continue  # folded into the weights, as every deployed network has it
            if part == "add":
                shape = _rows(op, op.c_out) if op.spec.rows else (op.batch, op.c_out, *_two(output_size(op)))
                y = self._combined(y, self.input("other", shape), "SUM")
            elif part in ACTIVATIONS or part in GATED:
                y = self._activated(y, part)
            else:
                raise UnsupportedOpError(f"a tail {part!r} was asked for; leave the op out of the sweep")
        y.name = f"{prefix}output"
        self.network.mark_output(y)
        self._allow_formats(y)

    def _linear(self, op: Op) -> Any:
        x, ones = self.input("input", _rows(op, op.c_in)), _ones(op)
        weight = self.constant("weight", (*ones[1:], op.c_out, op.c_in))
        none, turned = self.trt.MatrixOperation.NONE, self.trt.MatrixOperation.TRANSPOSE
        y = self.named(self.network.add_matrix_multiply(x, none, weight, turned))
        return self._combined(y, self.constant("bias", (*ones, op.c_out)), "SUM")

    def _concat(self, op: Op) -> Any:
        first = max(1, op.c_in // 2)
        parts = [c for c in (first, op.c_in - first) if c]
        inputs = [self.input(f"input{i}", (op.batch, c, *_positions(op))) for i, c in enumerate(parts)]
        return self.named(self.network.add_concatenation(inputs))

    def _layer_norm(self, op: Op) -> Any:
        x, ones = self.input("input", _rows(op, op.c_in)), _ones(op)
        scale, shift = (self.constant(name, (*ones, op.c_in)) for name in ("scale", "shift"))
        layer = self.network.add_normalization(x, scale, shift, 1 << len(ones))
        layer.epsilon = 1e-5
        return self.named(layer)

    def _upsample(self, op: Op) -> Any:
        layer = self.network.add_resize(self.map(op))
        layer.scales = (1.0, 1.0, *map(float, op.stride or (2,) * len(_positions(op))))
        layer.resize_mode = self.trt.InterpolationMode.NEAREST
        layer.coordinate_transformation = self.trt.ResizeCoordinateTransformation.ASYMMETRIC
        layer.nearest_rounding = self.trt.ResizeRoundMode.FLOOR  # as PyTorch's nearest
        return self.named(layer)

    def _conv(self, op: Op) -> Any:
        x, taps = self.map(op), op.c_in // op.groups * int(np.prod(op.kernel))
        kernel, bias = self._weights(op.c_out * taps, taps**-0.5), self._weights(op.c_out, 1.0)
        network = self.network
        add = network.add_convolution_nd if op.kind == "conv" else network.add_deconvolution_nd
        layer = add(x, op.c_out, _two(op.kernel), kernel, bias)
        layer.stride_nd, layer.padding_nd = _two(op.stride or (1,)), _two(op.padding or (0,), 0)
        layer.dilation_nd, layer.num_groups = _two(op.dilation or (1,)), op.groups
        return self.named(layer)

    def _pool(self, op: Op) -> Any:
        whole = op.kind == "global_avg_pool"
        kind = self.trt.PoolingType.MAX if op.kind == "max_pool" else self.trt.PoolingType.AVERAGE
        size = _positions(op) if whole else _two(op.kernel)
        layer = self.network.add_pooling_nd(self.map(op), kind, size)
        layer.stride_nd = (1, 1) if whole else _two(op.stride or (1,))
        layer.padding_nd = (0, 0) if whole else _two(op.padding or (0,), 0)
        if kind == self.trt.PoolingType.AVERAGE:
            layer.average_count_excludes_padding = False  # as PyTorch counts
        return self.named(layer)

    def _both(self, op: Op) -> Any:
        other = (op.batch, op.c_in, *_positions(op))
        return self._combined(self.map(op), self.input("other", other), "SUM" if op.kind == "add" else "PROD")

    def _batch_norm(self, op: Op) -> Any:
        scaled = self._combined(self.map(op), self.constant("scale", (1, op.c_in, 1, 1)), "PROD")
        return self._combined(scaled, self.constant("shift", (1, op.c_in, 1, 1)), "SUM")

    def _activation(self, op: Op) -> Any:
        return self._activated(self.map(op), op.kind)

    def map(self, op: Op) -> Any:
        """Returns a new input of the op's input shape."""
        return self.input("input", (op.batch, op.c_in, *_positions(op)))

    def _activated(self, x: Any, name: str) -> Any:
        kind, alpha, beta = ACTIVATIONS[GATED.get(name, name)]
        layer = self.network.add_activation(x, getattr(self.trt.ActivationType, kind))
        if alpha is not None:
            layer.alpha, layer.beta = alpha, beta
        y = self.named(layer)
        return self._combined(x, y, "PROD") if name in GATED else y

    def _combined(self, x: Any, y: Any, kind: str) -> Any:
        operation = getattr(self.trt.ElementWiseOperation, kind)
        return self.named(self.network.add_elementwise(x, y, operation))

    def named(self, layer: Any) -> Any:
        """Names a layer after its op and returns its output."""
        self._layers += 1
        layer.name = f"{self._prefix}{self._op.kind}.{self._layers}"
        return layer.get_output(0)

    def input(self, name: str, shape: tuple[int, ...]) -> Any:
        """Returns a new input of the network."""
        dtype = getattr(self.trt.DataType, DTYPES[self._op.dtype])
        found = self.network.add_input(f"{self._prefix}{name}", dtype, shape)
        self._allow_formats(found)
        return found

    def _allow_formats(self, tensor: Any) -> None:
        if self.native and not self._op.spec.rows:  # the other formats need channels and positions
            mask = 0
            for name in FORMATS[self._op.dtype]:
                mask |= 1 << int(getattr(self.trt.TensorFormat, name))
            tensor.allowed_formats = mask

    def constant(self, name: str, shape: tuple[int, ...]) -> Any:
        """Returns random numbers that are part of the engine."""
        layer = self.network.add_constant(shape, self._weights(int(np.prod(shape)), shape[-1] ** -0.5))
        layer.name = f"{self._prefix}{name}"
        return layer.get_output(0)

    def _weights(self, count: int, scale: float) -> Any:
        numbers = self._rng.standard_normal(count, dtype=np.float32) * scale
        array = from_float(numbers, DTYPES[self._op.dtype])
        self.kept.append(array)
        dtype = getattr(self.trt.DataType, DTYPES[self._op.dtype])
        return self.trt.Weights(dtype, int(array.ctypes.data), int(array.size))


BUILDERS: dict[str, Callable[[OpNetwork, Op], Any]] = {
    "conv": OpNetwork._conv,
    "conv_transpose": OpNetwork._conv,
    "linear": OpNetwork._linear,
    "max_pool": OpNetwork._pool,
    "avg_pool": OpNetwork._pool,
    "global_avg_pool": OpNetwork._pool,
    "add": OpNetwork._both,
    "mul": OpNetwork._both,
    "concat": OpNetwork._concat,
    "batch_norm": OpNetwork._batch_norm,
    "layer_norm": OpNetwork._layer_norm,
    "upsample": OpNetwork._upsample,
    **dict.fromkeys((*ACTIVATIONS, *GATED), OpNetwork._activation),
}
"""Kind → what adds an op without its tail and returns its output."""

KINDS = tuple(BUILDERS)
"""Kinds of op that are built here."""


def _positions(op: Op) -> tuple[int, int]:
    return _two((op.h, op.w)[: len(op.kernel)] if op.kernel else (op.h, op.w))


def _ones(op: Op) -> tuple[int, ...]:
    return (1,) * (1 if op.h * op.w == 1 else 2)


def _rows(op: Op, channels: int) -> tuple[int, ...]:
    return (op.batch, channels) if op.h * op.w == 1 else (op.batch, op.h * op.w, channels)


def _two(numbers: tuple[int, ...], missing: int = 1) -> tuple[int, int]:
    """Returns a pair: TensorRT's convolutions and pools have two dimensions, a 1d one gets a second of size 1."""
    if len(numbers) == 1:
        return (numbers[0], missing)
    return (numbers[0], numbers[1])


def random_numbers(rng: np.random.Generator, count: int, dtype: str) -> Any:
    """Returns numbers of a standard normal in one of TensorRT's types; zeros for types that are not floating."""
    if dtype not in ("FLOAT", "HALF", "BF16"):
        return np.zeros(count, dtype=NUMPY[dtype])
    return from_float(rng.standard_normal(count, dtype=np.float32), dtype)


def from_float(array: Any, dtype: str) -> Any:
    """Returns an array in one of TensorRT's types; bfloat16 as the upper half of float32, rounded to nearest even."""
    if dtype != "BF16":
        return np.ascontiguousarray(array, dtype=NUMPY[dtype])
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_float(array: Any) -> Any:
    """Returns bfloat16 bits as float32."""
    return (array.astype(np.uint32) << 16).view(np.float32)
