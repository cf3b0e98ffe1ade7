"""The graph around one op, so that ONNX Runtime treats it as it would inside a network.

A lone op pays what it does not pay in a network: changes of layout, the call, its outputs. A *differential graph*
cancels that: the time of the graph with some copies of the op, minus that of the graph with one copy and as many
readers, is the time of the other copies. The op's inputs come from cheap producers, so that they lie in the runtime's
own layout. Every tensor that the op reads has a second reader, so that the runtime cannot fuse the op into its
producer. A reader takes one position only: more could be in a cache on one side and not on the other.

The graph has one result, made of all that is read, because the runtime orders nodes differently from session to session
where there are several. Each result is read once before any is read again, so that each copy writes a tensor of its
own, as a layer does. An op adds its result to another tensor in place where it is that tensor's last reader; otherwise
it copies the tensor, which takes as long as the op. So everything else that reads the tensor runs before the op's
inputs are made (0051).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latency.errors import UnsupportedOpError
from latency.op import Op, filled, heads_of, operand_shapes, output_size

if TYPE_CHECKING:
    import onnx


OPSET = 20
IR_VERSION = 10

ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "hardswish": ("HardSwish", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "gelu": ("Gelu", {}),
}

FOLDED = ("batch_norm",)
"""Parts of a tail that an export folds into the weights."""


def differential_graph(op: Op, copies: int, readers: int = 2) -> onnx.ModelProto:
    """Builds the graph that holds some copies of an op between the same producers and readers.

    Args:
        op: the op.
        copies: 1, or as many as there are readers.
        readers: of the results and, where there are fewer, of what further copies would add to, so that it is
            there until the end, or of the first result again.

    Raises:
        UnsupportedOpError: an op, precision or layout that is not built here.
    """
    _refuse(op)
    graph = Graph(op)
    inputs = graph.inputs(readers)
    results = [graph.op(inputs, number) for number in range(copies)]
    graph.read(results + (graph.residuals[copies:] or results[:1] * (readers - copies)))
    return graph.model()


class Graph:
    """Nodes, constants and graph inputs as they are added."""

    def __init__(self, op: Op) -> None:
        self.made = op
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.feeds: list[tuple[str, tuple[int, ...]]] = []
        self.outputs: list[str] = []
        self.residuals: list[str] = []
        self.gate = ""
        self.spatial = op.spatial

    def inputs(self, copies: int) -> list[str]:
        """Adds what the op reads: one tensor, two for an addition, product or concat; plus a residual per copy."""
        op = self.made
        if "add" in op.tail and op.kind != "linear":  # a linear layer adds its result to itself
            self.residuals = [self.producer(f"r{copy}", op.c_out, output_size(op)) for copy in range(copies)]
            self.first([self.touch(name, output_size(op), f"{name}.seen") for name in self.residuals])
        if op.spec.rows:
            shapes = operand_shapes(op)
            return [self.feed(f"x{i}" if i else "x", shape) for i, shape in enumerate(shapes)]
        if op.reads_image:
            names = [self.gated(self.feed("x", (op.batch, op.c_in, *self.spatial)))]
        elif op.kind == "concat":
            first = min(op.c_in - 1, -(-op.c_in // 16) * 8) if op.c_in > 1 else 1
            parts = [first, op.c_in - first] if op.c_in > 1 else [1]
            names = [self.producer(f"x{i}", c, self.spatial) for i, c in enumerate(parts)]
        else:
            names = [self.producer(f"x{i}", op.c_in, self.spatial) for i in range(op.spec.inputs)]
        if op.kind not in ("conv", "conv_transpose"):
            self.outputs += [self.touch(name, self.spatial, f"{name}.seen") for name in names]
        return names

    def op(self, inputs: Sequence[str], number: int) -> str:
        """Adds one copy of the op and its tail, with weights of its own."""
        op, tag = self.made, f"_{number}"
        name = BUILDERS[op.kind](self, list(inputs), tag)
        for i, part in enumerate(op.tail):
            if part in FOLDED:
                continue
            label = f"t{i}{tag}"
            if part == "add":
                name = self.node("Add", [name, self.residuals[number] if self.residuals else name], label)
            else:
                name = self.activate(part, name, label)
        return name

    def read(self, results: Sequence[str]) -> None:
        """Adds two readers per result, which pass on one number per channel or row."""
        names = [f"o{number}{when}" for when in ("", ".late") for number in range(len(results))]
        for name, result in zip(names, [*results, *results], strict=True):
            if self.made.spec.rows:
                axes = self.constant(f"{name}.axes", np.array([-1], dtype=np.int64))
                self.outputs.append(self.node("ReduceMax", [result, axes], name))
            else:
                self.outputs.append(self.touch(result, output_size(self.made), name))

    def conv(self, inputs: list[str], tag: str) -> str:
        """Adds a convolution with bias, transposed or not."""
        op, n, transposed = self.made, len(self.made.kernel), self.made.kind == "conv_transpose"
        sides = (op.c_in, op.c_out // op.groups) if transposed else (op.c_out, op.c_in // op.groups)
        weight, bias = self.weight(f"w{tag}", (*sides, *op.kernel)), self.weight(f"b{tag}", (op.c_out,))
        return self.node(
            "ConvTranspose" if transposed else "Conv",
            [inputs[0], weight, bias],
            f"y{tag}",
            kernel_shape=list(op.kernel),
            strides=list(filled(op.stride, n, 1)),
            pads=list(filled(op.padding, n, 0)) * 2,
            dilations=list(filled(op.dilation, n, 1)),
            group=op.groups,
        )

    def linear(self, inputs: list[str], tag: str) -> str:
        """Adds a linear layer with bias: Gemm on vectors, MatMul and Add on sequences, as PyTorch exports it."""
        op = self.made
        bias = self.weight(f"b{tag}", (op.c_out,))
        if op.h * op.w == 1:
            weight = self.weight(f"w{tag}", (op.c_out, op.c_in))
            return self.node("Gemm", [inputs[0], weight, bias], f"y{tag}", transB=1)
        weight = self.weight(f"w{tag}", (op.c_in, op.c_out))
        return self.node("Add", [self.node("MatMul", [inputs[0], weight], f"m{tag}"), bias], f"y{tag}")

    def pool(self, inputs: list[str], tag: str) -> str:
        """Adds a pooling."""
        op = self.made
        if op.kind == "global_avg_pool":
            return self.node("GlobalAveragePool", [inputs[0]], f"y{tag}")
        n = len(op.kernel)
        fields: dict[str, Any] = {
            "kernel_shape": list(op.kernel),
            "strides": list(filled(op.stride, n, 1)),
            "pads": list(filled(op.padding, n, 0)) * 2,
        }
        if op.kind == "avg_pool":
            return self.node("AveragePool", [inputs[0]], f"y{tag}", count_include_pad=1, **fields)
        return self.node("MaxPool", [inputs[0]], f"y{tag}", **fields)

    def combine(self, inputs: list[str], tag: str) -> str:
        """Adds an addition, a product or a concat of all inputs."""
        if self.made.kind == "concat":
            return self.node("Concat", inputs, f"y{tag}", axis=1)
        return self.node({"add": "Add", "mul": "Mul"}[self.made.kind], inputs[:2], f"y{tag}")

    def batch_norm(self, inputs: list[str], tag: str) -> str:
        """Adds a batch norm that nothing folds."""
        c = self.made.c_in
        parts = [
            self.weight(f"{part}{tag}", (c,), positive=True) for part in ("gamma", "beta", "mean", "var")
        ]
        return self.node("BatchNormalization", [inputs[0], *parts], f"y{tag}")

    def layer_norm(self, inputs: list[str], tag: str) -> str:
        """Adds a layer norm over the channels, which come last."""
        gamma = self.weight(f"gamma{tag}", (self.made.c_in,), positive=True)
        beta = self.weight(f"beta{tag}", (self.made.c_in,))
        return self.node("LayerNormalization", [inputs[0], gamma, beta], f"y{tag}", axis=-1, epsilon=1e-5)

    def attention(self, inputs: list[str], tag: str) -> str:
        """Adds attention from rows to rows: heads apart, products around a softmax, heads together again."""
        op = self.made
        n, _, channels = operand_shapes(op)[0]
        heads = heads_of(op)
        width = channels // heads
        parts = []
        for name, source, places, axes in (
            ("q", inputs[0], op.h, [0, 2, 1, 3]),
            ("k", inputs[1], op.w, [0, 2, 3, 1]),
            ("v", inputs[2], op.w, [0, 2, 1, 3]),
        ):
            apart = self.reshaped(source, (n, places, heads, width), f"{name}{tag}.apart")
            parts.append(self.node("Transpose", [apart], f"{name}{tag}.turned", perm=axes))
        root = self.constant(f"root{tag}", np.array(width**-0.25, dtype=np.float32))
        q, k = (self.node("Mul", [x, root], f"{x}.scaled") for x in parts[:2])
        weights = self.node("Softmax", [self.node("MatMul", [q, k], f"s{tag}")], f"p{tag}", axis=-1)
        mixed = self.node("MatMul", [weights, parts[2]], f"m{tag}")
        together = self.node("Transpose", [mixed], f"m{tag}.turned", perm=[0, 2, 1, 3])
        return self.reshaped(together, (n, op.h, channels), f"y{tag}")

    def product(self, inputs: list[str], tag: str) -> str:
        """Adds the product of two activations."""
        return self.node("MatMul", inputs[:2], f"y{tag}")

    def softmax(self, inputs: list[str], tag: str) -> str:
        """Adds a softmax along the last dimension."""
        return self.node("Softmax", [inputs[0]], f"y{tag}", axis=-1)

    def reshaped(self, x: str, shape: tuple[int, ...], name: str) -> str:
        """Adds a reshape."""
        return self.node(
            "Reshape", [x, self.constant(f"{name}.shape", np.array(shape, dtype=np.int64))], name
        )

    def upsample(self, inputs: list[str], tag: str) -> str:
        """Adds a nearest-neighbour enlargement by the op's stride, 2 if it has none."""
        op = self.made
        factors = op.stride or (2,) * len(self.spatial)
        scales = self.constant(f"s{tag}", np.array([1, 1, *factors], dtype=np.float32))
        return self.node(
            "Resize",
            [inputs[0], "", scales],
            f"y{tag}",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def activation(self, inputs: list[str], tag: str) -> str:
        """Adds an op that is an activation."""
        return self.activate(self.made.kind, inputs[0], f"y{tag}")

    def activate(self, kind: str, x: str, name: str) -> str:
        """Adds an activation behind ``x``, in the nodes PyTorch exports for it."""
        if kind == "relu6":
            low = self.constant(f"{name}.low", np.array(0, dtype=np.float32))
            high = self.constant(f"{name}.high", np.array(6, dtype=np.float32))
            return self.node("Clip", [x, low, high], name)
        if kind == "silu":
            return self.node("Mul", [x, self.node("Sigmoid", [x], f"{name}.gate")], name)
        node, fields = ACTIVATIONS[kind]
        return self.node(node, [x], name, **fields)

    def feed(self, name: str, shape: tuple[int, ...]) -> str:
        """Adds an input of the graph."""
        self.feeds.append((name, shape))
        return name

    def producer(self, name: str, channels: int, positions: tuple[int, ...]) -> str:
        """Adds a 1×1 convolution of a single channel: the cheapest way to a tensor in the runtime's layout."""
        source = self.gated(self.feed(f"{name}.source", (self.made.batch, 1, *positions)))
        weight = self.weight(f"{name}.weight", (channels, 1, *(1,) * len(positions)))
        bias = self.weight(f"{name}.bias", (channels,))
        return self.node("Conv", [source, weight, bias], name)

    def touch(self, name: str, positions: tuple[int, ...], output: str) -> str:
        """Adds a reader of a tensor's first position."""
        ones = [1] * len(positions)
        return self.node("MaxPool", [name], output, kernel_shape=ones, strides=list(positions))

    def first(self, numbers: Sequence[str]) -> None:
        """Makes all inputs that are added from now on wait for some nodes."""
        axes = self.constant("gate.axes", np.array([1], dtype=np.int64))
        self.gate = self.node("ReduceMax", [self.node("Concat", numbers, "gate.all", axis=1), axes], "gate")

    def gated(self, feed: str) -> str:
        """Returns an input plus a number that another node computes first, so that the input is ready only after it."""
        return self.node("Add", [feed, self.gate], f"{feed}.late") if self.gate else feed

    def node(self, kind: str, inputs: Sequence[str], output: str, **fields: Any) -> str:
        """Adds a node and returns the name of its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **fields))
        return output

    def weight(self, name: str, shape: tuple[int, ...], *, positive: bool = False) -> str:
        """Adds constant random numbers; zeros and equal values could be faster."""
        values = _random(int(np.prod(shape)), sum(name.encode())).reshape(shape)
        return self.constant(name, np.abs(values) + 0.5 if positive else values)

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Adds a constant."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def model(self) -> onnx.ModelProto:
        """Returns the graph as a model."""
        from onnx import TensorProto, helper

        self.node("Concat", self.outputs, "results", axis=1)
        graph = helper.make_graph(
            self.nodes,
            "op",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(shape)) for n, shape in self.feeds],
            [helper.make_tensor_value_info("results", TensorProto.FLOAT, None)],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


BUILDERS: dict[str, Callable[[Graph, list[str], str], str]] = {
    "conv": Graph.conv,
    "conv_transpose": Graph.conv,
    "linear": Graph.linear,
    "max_pool": Graph.pool,
    "avg_pool": Graph.pool,
    "global_avg_pool": Graph.pool,
    "add": Graph.combine,
    "mul": Graph.combine,
    "concat": Graph.combine,
    "batch_norm": Graph.batch_norm,
    "layer_norm": Graph.layer_norm,
    "attention": Graph.attention,
    "product": Graph.product,
    "softmax": Graph.softmax,
    "upsample": Graph.upsample,
    **dict.fromkeys(("relu6", "silu", *ACTIVATIONS), Graph.activation),
}
"""Kind → what adds one copy of it to a graph: takes the names of its inputs and a tag, returns the output's name."""

KINDS = tuple(BUILDERS)
"""Kinds of op that are built here."""

_POOL: list[NDArray[np.float32]] = []


def _random(n: int, offset: int) -> NDArray[np.float32]:
    """Returns ``n`` normal numbers of standard deviation 0.05, cut from one pool: drawing them takes longer."""
    if not _POOL:
        drawn = np.random.default_rng(0).standard_normal((1 << 20) + (1 << 16), dtype=np.float32)
        _POOL.append(drawn * np.float32(0.05))
    pool = _POOL[0][offset % (1 << 16) :]
    return pool[:n] if n <= len(pool) else np.resize(pool, n)


def _refuse(op: Op) -> None:
    tail = [t for t in op.tail if t not in (*FOLDED, "add", "relu6", "silu", *ACTIVATIONS)]
    if op.kind not in BUILDERS or tail:
        raise UnsupportedOpError(
            f"an op {op.kind!r} with tail {list(op.tail)} was asked for; ONNX Runtime ops here are "
            f"{', '.join(BUILDERS)}; leave it out of the sweep"
        )
    if op.dtype != "float32" or op.layout != "nchw":
        raise UnsupportedOpError(
            f"an op in {op.dtype}, {op.layout} was asked for; ONNX Runtime on CPU is measured in float32, int8, nchw; "
            "use the torch backend on a GPU, or trace the model in float32"
        )
    if op.spec.window and len(op.kernel) not in (1, 2, 3):
        raise UnsupportedOpError(
            f"an op {op.kind!r} with kernel {op.kernel} was asked for; 1d, 2d and 3d are built; "
            "leave it out of the sweep"
        )
    if min(output_size(op), default=1) < 1:
        raise UnsupportedOpError(
            f"an op {op.kind!r} with kernel {op.kernel} on {op.h}×{op.w} was asked for, which leaves no "
            "output; give the shapes as the network has them"
        )
