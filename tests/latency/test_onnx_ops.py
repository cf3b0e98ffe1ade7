"""Twins: the op computes what PyTorch computes, and the runtime sees the graph that was meant."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor
from torch.nn import functional as f

from latency.backends.onnxruntime.network import feeds, session
from latency.backends.onnxruntime.ops import differential_graph
from latency.device import TimingPolicy
from latency.errors import UnsupportedOpError
from latency.op import Op, output_size

from .fakes import conv


def optimised(op: Op, copies: int, path: Path, sinks: int = 2) -> list[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4  # it warns that an optimised model is for this machine only
    ort.InferenceSession(
        differential_graph(op, copies, sinks).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["CommonSubexpressionElimination"],
    )
    return [node.op_type for node in onnx.load(path).graph.node]


def computed(op: Op) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """What the graph of one copy computes behind the op and its tail, and the constants and feeds it used."""
    model = differential_graph(op, 1)
    last = [
        n
        for n in model.graph.node
        if n.name.split(".")[0] not in ("o0", "o1", "results") and ".seen" not in n.name
    ][-1]
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None)
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in session.get_inputs()}
    constants = {
        t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in model.graph.initializer
    }
    tensors = {name: torch.from_numpy(x) for name, x in feeds.items()}
    names = sorted(n.removesuffix(".source") for n in tensors if n.endswith(".source"))
    for name in names:
        source, weight, bias = (
            tensors[f"{name}.source"],
            constants[f"{name}.weight"],
            constants[f"{name}.bias"],
        )
        if name[0] == "x" and "r0" in names:  # the largest number at the residuals' first positions
            source = source + max(tensors["r0"][0, :, 0, 0].max(), tensors["r1"][0, :, 0, 0].max())
        kernel = {3: f.conv1d, 4: f.conv2d, 5: f.conv3d}[weight.dim()]
        tensors[name] = kernel(source, weight, bias)
    return torch.from_numpy(session.run(None, feeds)[0]), constants, tensors


def heads(x: Tensor, n: int) -> Tensor:
    return x.view(*x.shape[:2], n, -1).transpose(1, 2)


def attended(x: dict[str, Tensor], n: int) -> Tensor:
    q, k, v = (heads(x[name], n) for name in ("x", "x1", "x2"))
    return f.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


CASES: dict[str, tuple[Op, Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]]] = {
    "conv": (conv(8, 16), lambda w, x: f.conv2d(x["x0"], w["w_0"], w["b_0"], padding=1)),
    "image": (conv(3, 16, stride=(2, 2)), lambda w, x: f.conv2d(x["x"], w["w_0"], w["b_0"], 2, 1)),
    "1d": (
        Op(kind="conv", c_in=8, c_out=8, h=20, kernel=(5,), stride=(1,), padding=(2,)),
        lambda w, x: f.conv1d(x["x0"], w["w_0"], w["b_0"], padding=2),
    ),
    "3d": (
        Op(
            kind="conv", c_in=8, c_out=6, d=5, h=4, w=3, kernel=(3, 2, 1), stride=(2, 1, 1), padding=(1, 0, 0)
        ),
        lambda w, x: f.conv3d(x["x0"], w["w_0"], w["b_0"], (2, 1, 1), (1, 0, 0)),
    ),
    "3d image": (
        Op(kind="conv", c_in=3, c_out=6, d=5, h=4, w=3, kernel=(3, 2, 1), tail=("relu",)),
        lambda w, x: f.relu(f.conv3d(x["x"], w["w_0"], w["b_0"])),
    ),
    "3d pool": (
        Op(kind="max_pool", c_in=8, c_out=8, d=4, h=6, w=6, kernel=(2, 3, 3), stride=(2, 3, 3)),
        lambda w, x: f.max_pool3d(x["x0"], (2, 3, 3)),
    ),
    "depthwise": (
        conv(8, 8, groups=8),
        lambda w, x: f.conv2d(x["x0"], w["w_0"], w["b_0"], padding=1, groups=8),
    ),
    "grouped": (
        conv(8, 16, groups=2),
        lambda w, x: f.conv2d(x["x0"], w["w_0"], w["b_0"], padding=1, groups=2),
    ),
    "dilated": (
        conv(8, 8, dilation=(2, 2), padding=(2, 2)),
        lambda w, x: f.conv2d(x["x0"], w["w_0"], w["b_0"], padding=2, dilation=2),
    ),
    "residual": (
        conv(8, 8, tail=("batch_norm", "add", "relu")),
        lambda w, x: f.relu(f.conv2d(x["x0"], w["w_0"], w["b_0"], padding=1) + x["r0"]),
    ),
    "relu6": (
        conv(8, 8, tail=("relu6",)),
        lambda w, x: f.relu6(f.conv2d(x["x0"], w["w_0"], w["b_0"], padding=1)),
    ),
    "silu": (
        conv(8, 8, tail=("silu",)),
        lambda w, x: f.silu(f.conv2d(x["x0"], w["w_0"], w["b_0"], padding=1)),
    ),
    "hardswish": (
        conv(8, 8, tail=("hardswish",)),
        lambda w, x: f.hardswish(f.conv2d(x["x0"], w["w_0"], w["b_0"], padding=1)),
    ),
    "transposed": (
        Op(kind="conv_transpose", c_in=8, c_out=6, h=5, w=5, kernel=(2, 2), stride=(2, 2)),
        lambda w, x: f.conv_transpose2d(x["x0"], w["w_0"], w["b_0"], stride=2),
    ),
    "linear": (
        Op(kind="linear", c_in=8, c_out=5, batch=3),
        lambda w, x: f.linear(x["x"], w["w_0"], w["b_0"]),
    ),
    "layer_norm": (
        Op(kind="layer_norm", c_in=8, c_out=8, batch=2, h=7),
        lambda w, x: f.layer_norm(x["x"], (8,), w["gamma_0"], w["beta_0"]),
    ),
    "attention": (
        Op(kind="attention", c_in=12, c_out=12, h=7, w=5, batch=2, groups=3),
        lambda w, x: attended(x, 3),
    ),
    "attention with fixed heads": (
        Op(kind="attention", c_in=12, c_out=12, h=7, w=7, kernel=(2,)),
        lambda w, x: attended(x, 2),
    ),
    "product": (
        Op(kind="product", c_in=12, c_out=12, h=7, w=5, batch=2, groups=3),
        lambda w, x: x["x"].reshape(2, 3, 7, 4) @ x["x1"].reshape(2, 3, 4, 5),
    ),
    "softmax": (Op(kind="softmax", c_in=3, c_out=3, h=6, w=5, batch=2), lambda w, x: x["x"].softmax(3)),
    "tokens": (
        Op(kind="linear", c_in=8, c_out=5, batch=2, h=7),
        lambda w, x: f.linear(x["x"], w["w_0"].T, w["b_0"]),
    ),
    "max_pool": (
        Op(kind="max_pool", c_in=8, c_out=8, h=9, w=9, kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
        lambda w, x: f.max_pool2d(x["x0"], 3, 2, 1),
    ),
    "avg_pool": (
        Op(kind="avg_pool", c_in=8, c_out=8, h=8, w=8, kernel=(2, 2), stride=(2, 2)),
        lambda w, x: f.avg_pool2d(x["x0"], 2),
    ),
    "global_avg_pool": (
        Op(kind="global_avg_pool", c_in=8, c_out=8, h=6, w=6),
        lambda w, x: x["x0"].mean((2, 3), keepdim=True),
    ),
    "add": (Op(kind="add", c_in=8, c_out=8, h=6, w=6), lambda w, x: x["x0"] + x["x1"]),
    "mul": (Op(kind="mul", c_in=8, c_out=8, h=6, w=6), lambda w, x: x["x0"] * x["x1"]),
    "concat": (Op(kind="concat", c_in=24, c_out=24, h=6, w=6), lambda w, x: torch.cat([x["x0"], x["x1"]], 1)),
    "batch_norm": (
        Op(kind="batch_norm", c_in=8, c_out=8, h=6, w=6),
        lambda w, x: f.batch_norm(x["x0"], w["mean_0"], w["var_0"], w["gamma_0"], w["beta_0"]),
    ),
    "upsample": (
        Op(kind="upsample", c_in=8, c_out=8, h=6, w=6, stride=(2, 2)),
        lambda w, x: f.interpolate(x["x0"], scale_factor=2),
    ),
    "gelu": (Op(kind="gelu", c_in=8, c_out=8, h=6, w=6), lambda w, x: f.gelu(x["x0"])),
    "hardsigmoid": (Op(kind="hardsigmoid", c_in=8, c_out=8, h=6, w=6), lambda w, x: f.hardsigmoid(x["x0"])),
}


@pytest.mark.parametrize("case", CASES)
def test_a_built_op_computes_what_pytorch_computes(case: str) -> None:
    op, reference = CASES[case]
    found, constants, tensors = computed(op)
    torch.testing.assert_close(found, reference(constants, tensors), rtol=1e-4, atol=1e-5)
    assert found.shape[1] == op.c_out or op.spec.rows
    if not op.spec.rows:
        assert tuple(found.shape[2:]) == output_size(op)


def test_a_twin_differs_by_one_fused_convolution(tmp_path: Path) -> None:
    op = conv(32, 32, tail=("batch_norm", "add", "relu"))
    two, one = (optimised(op, n, tmp_path / f"{n}.onnx") for n in (2, 1))
    assert sorted(two) == sorted([*one, "Conv"])
    assert "Relu" not in two
    assert two.count("Add") == 1  # to its input, so that it waits; none behind it
    assert "BatchNormalization" not in two


def test_a_twin_of_an_activation_does_not_fuse_it_into_what_comes_before(tmp_path: Path) -> None:
    op = Op(kind="relu", c_in=32, c_out=32, h=8, w=8)
    two, one = (optimised(op, n, tmp_path / f"{n}.onnx") for n in (2, 1))
    assert sorted(two) == sorted([*one, "Relu"])


def test_the_two_sides_of_a_twin_change_layout_equally_often(tmp_path: Path) -> None:
    two, one = (optimised(conv(32, 32), n, tmp_path / f"{n}.onnx") for n in (2, 1))
    assert sum("Reorder" in kind for kind in two) == sum("Reorder" in kind for kind in one)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (Op(kind="lstm", c_in=8, c_out=8), "an op 'lstm' with tail"),
        (conv(8, 8, tail=("softmax",)), r"tail \['softmax'\]"),
        (conv(8, 8, dtype="float16"), "an op in float16, nchw was asked for"),
        (conv(8, 8, h=1, w=1, padding=(0, 0)), "leaves no output"),
        (Op(kind="conv", c_in=8, c_out=8, kernel=(3, 3, 3, 3)), "1d, 2d and 3d are built"),
    ],
)
def test_what_cannot_be_built_is_refused(op: Op, message: str) -> None:
    with pytest.raises(UnsupportedOpError, match=message):
        differential_graph(op, 1)


@pytest.mark.parametrize(
    ("op", "copies"),
    [
        (Op(kind="linear", c_in=1, c_out=1), 9),  # hardly any work: as many as there may be
        (Op(kind="linear", c_in=64, c_out=128), 9),  # 65,536 / 8,192 MACs, and one
        (Op(kind="linear", c_in=128, c_out=128), 5),
        (Op(kind="max_pool", c_in=64, c_out=64, h=16, w=16, kernel=(2, 2), stride=(2, 2)), 5),
        (Op(kind="linear", c_in=128, c_out=128, h=9, w=9), 5),  # 64 KiB are few weights
        (conv(64, 64, h=25, w=25), 3),  # 23 million MACs, each weight used 625 times
        (conv(40, 40, h=24, w=24), 5),  # 8.3 million: 33.5 have room for four
        (conv(40, 40, h=26, w=28), 4),  # 10.5 million: for three
        (conv(384, 256), 2),  # 3.4 MiB: three would have ten
        (conv(256, 256, h=40, w=40), 3),  # 2.25 MiB, each used 1,600 times
        (conv(384, 256, h=40, w=40), 2),
        (conv(4, 4, tail=("add",)), 8),  # 9,216 MACs: 65,536 have room for seven
        (conv(64, 64), 9),  # 144 KiB, each used 64 times: 8 MiB have room for more than nine
        (conv(256, 256), 3),  # 2.25 MiB
        (conv(512, 512), 2),  # 9 MiB
    ],
)
def test_short_ops_and_those_of_seldom_used_weights_have_more_copies(op: Op, copies: int) -> None:
    assert TimingPolicy().copies(op) == copies


def test_more_copies_differ_from_one_by_themselves_alone(tmp_path: Path) -> None:
    pool = Op(kind="max_pool", c_in=8, c_out=8, h=4, w=4, kernel=(2, 2), stride=(2, 2))
    many, one = (Counter(optimised(pool, copies, tmp_path / f"{copies}.onnx", sinks=9)) for copies in (9, 1))
    # itself, as often as there are copies, a reader of what it reads, and of what it makes nine, twice
    assert many - one == Counter(MaxPool=8)
    assert one["MaxPool"] == 1 + 1 + 2 * 9


def test_each_of_more_copies_has_a_residual_of_its_own(tmp_path: Path) -> None:
    op = conv(16, 16, tail=("batch_norm", "add", "relu"))  # whole blocks of channels, of 8 or of 16
    many, one = (optimised(op, copies, tmp_path / f"{copies}.onnx", sinks=4) for copies in (4, 1))
    assert Counter(many)["Add"] == 1  # to the input; theirs are fused, as in a network
    assert Counter(many) - Counter(one) == Counter(Conv=3)


def ran(op: Op, copies: int, path: Path, sinks: int) -> tuple[str, ...]:
    """Names of the nodes in the order in which a new session runs them."""
    made = session(differential_graph(op, copies, sinks), merge=False, trace_to=path)
    made.run(None, feeds(made))
    events = json.loads(Path(made.end_profiling()).read_text())
    nodes = [e["name"].removesuffix("_kernel_time") for e in events if e["name"].endswith("_kernel_time")]
    return tuple(node.split("_token_")[0].removesuffix("_nchwc") for node in nodes)


RESIDUAL = conv(32, 64, tail=("batch_norm", "add", "relu"))


@pytest.mark.parametrize(
    "op",
    [
        RESIDUAL,
        conv(32, 64),
        Op(kind="max_pool", c_in=32, c_out=32, h=8, w=8, kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
        Op(kind="concat", c_in=64, c_out=64, h=8, w=8),
        Op(kind="add", c_in=32, c_out=32, h=8, w=8),
        Op(kind="linear", c_in=32, c_out=64, h=8),
    ],
    ids=lambda op: f"{op.kind}{len(op.tail)}",
)
def test_every_session_runs_the_nodes_of_a_twin_in_the_same_order(op: Op, tmp_path: Path) -> None:
    for copies in (3, 1):
        assert len({ran(op, copies, tmp_path / "trace", 3) for _ in range(8)}) == 1


@pytest.mark.parametrize("width", [64, 20], ids=["whole blocks", "part of a block"])
def test_what_a_copy_adds_to_was_looked_at_before_so_that_it_can_add_in_place(
    width: int, tmp_path: Path
) -> None:
    for copies in (3, 1):
        order = ran(RESIDUAL.with_channels(32, width), copies, tmp_path / "trace", 3)
        last = max(order.index(f"r{number}.seen") for number in range(3))
        assert last < order.index("x0") < min(order.index(f"y_{number}") for number in range(copies))


def test_with_one_copy_the_other_residuals_stay_until_the_end() -> None:
    read = {node.name: node.input[0] for node in differential_graph(RESIDUAL, 1, 3).graph.node}
    results = {node.name: node.input[0] for node in differential_graph(conv(32, 64), 1, 3).graph.node}
    assert [read[f"o{number}"] for number in (1, 2)] == ["r1", "r2"]
    assert read["o0"] not in ("r0", "r1", "r2")
    assert {results[f"o{number}"] for number in range(3)} == {"y_0"}


def test_a_reader_takes_the_first_position_alone() -> None:
    graph = {node.name: node for node in differential_graph(conv(32, 64, h=9, w=7), 2).graph.node}
    sizes = {a.name: list(a.ints) for a in graph["o1"].attribute}
    assert (graph["o1"].op_type, sizes["kernel_shape"], sizes["strides"]) == ("MaxPool", [1, 1], [9, 7])
