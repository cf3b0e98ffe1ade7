"""Twins: the op computes what PyTorch computes, and the runtime sees the graph that was meant."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch.nn import functional as f

from latency.backends.onnx_graph import copies_of, output_size, twin
from latency.errors import UnsupportedOpError
from latency.op import Op

from .fakes import conv


def optimised(op, copies, path, sinks=2):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4  # it warns that an optimised model is for this machine only
    ort.InferenceSession(
        twin(op, copies, sinks).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["CommonSubexpressionElimination"],
    )
    return [node.op_type for node in onnx.load(path).graph.node]


def computed(op):
    """What the graph of one copy computes behind the op and its tail, and the constants and feeds it used."""
    model = twin(op, 1)
    last = [n for n in model.graph.node if not n.name.endswith((".seen", "o0", "o1"))][-1]
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
    for name in [n.removesuffix(".source") for n in tensors if n.endswith(".source")]:
        weight, bias = constants[f"{name}.weight"], constants[f"{name}.bias"]
        kernel = f.conv1d if weight.dim() == 3 else f.conv2d
        tensors[name] = kernel(tensors[f"{name}.source"], weight, bias)
    return torch.from_numpy(session.run(None, feeds)[0]), constants, tensors


CASES = {
    "conv": (conv(8, 16), lambda w, x: f.conv2d(x["x0"], w["w_0"], w["b_0"], padding=1)),
    "image": (conv(3, 16, stride=(2, 2)), lambda w, x: f.conv2d(x["x"], w["w_0"], w["b_0"], 2, 1)),
    "1d": (
        Op(kind="conv", c_in=8, c_out=8, h=20, kernel=(5,), stride=(1,), padding=(2,)),
        lambda w, x: f.conv1d(x["x0"], w["w_0"], w["b_0"], padding=2),
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
def test_a_built_op_computes_what_pytorch_computes(case) -> None:
    op, reference = CASES[case]
    found, constants, tensors = computed(op)
    torch.testing.assert_close(found, reference(constants, tensors), rtol=1e-4, atol=1e-5)
    assert found.shape[1] == op.c_out or case in ("tokens", "layer_norm")
    if op.kind not in ("linear", "layer_norm"):
        assert tuple(found.shape[2:]) == output_size(op)


def test_a_twin_differs_by_one_fused_convolution(tmp_path) -> None:
    op = conv(32, 32, tail=("batch_norm", "add", "relu"))
    two, one = (optimised(op, n, tmp_path / f"{n}.onnx") for n in (2, 1))
    assert sorted(two) == sorted([*one, "Conv"])
    assert "Relu" not in two
    assert "Add" not in two
    assert "BatchNormalization" not in two


def test_a_twin_of_an_activation_does_not_fuse_it_into_what_comes_before(tmp_path) -> None:
    op = Op(kind="relu", c_in=32, c_out=32, h=8, w=8)
    two, one = (optimised(op, n, tmp_path / f"{n}.onnx") for n in (2, 1))
    assert sorted(two) == sorted([*one, "Relu"])


def test_the_two_sides_of_a_twin_change_layout_equally_often(tmp_path) -> None:
    two, one = (optimised(conv(32, 32), n, tmp_path / f"{n}.onnx") for n in (2, 1))
    assert sum("Reorder" in kind for kind in two) == sum("Reorder" in kind for kind in one)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (Op(kind="lstm", c_in=8, c_out=8), "an op 'lstm' with tail"),
        (conv(8, 8, tail=("softmax",)), r"tail \['softmax'\]"),
        (conv(8, 8, dtype="float16"), "an op in float16, nchw was asked for"),
        (conv(8, 8, h=1, w=1, padding=(0, 0)), "leaves no output"),
        (Op(kind="conv", c_in=8, c_out=8, kernel=(3, 3, 3)), "1d and 2d are built"),
    ],
)
def test_what_cannot_be_built_is_refused(op, message) -> None:
    with pytest.raises(UnsupportedOpError, match=message):
        twin(op, 1)


@pytest.mark.parametrize(
    ("op", "copies"),
    [
        (Op(kind="linear", c_in=1, c_out=1), 9),  # hardly any work: as many as there may be
        (Op(kind="linear", c_in=64, c_out=128), 9),  # 65,536 / 8,192 MACs, and one
        (Op(kind="linear", c_in=128, c_out=128), 5),
        (Op(kind="max_pool", c_in=64, c_out=64, h=16, w=16, kernel=(2, 2), stride=(2, 2)), 5),
        (Op(kind="linear", c_in=128, c_out=128, h=9, w=9), 2),  # 64 KiB are few weights
        (conv(64, 64, h=25, w=25), 2),  # 23 million MACs, each weight used 625 times
        (conv(40, 40), 2),
        (conv(64, 64), 9),  # 144 KiB, each used 64 times: 8 MiB have room for more than nine
        (conv(256, 256), 3),  # 2.25 MiB
        (conv(512, 512), 2),  # 9 MiB
    ],
)
def test_short_ops_and_those_of_seldom_used_weights_have_more_copies(op, copies) -> None:
    assert copies_of(op) == copies


def test_more_copies_differ_from_one_by_themselves_alone(tmp_path) -> None:
    pool = Op(kind="max_pool", c_in=8, c_out=8, h=4, w=4, kernel=(2, 2), stride=(2, 2))
    many, one = (Counter(optimised(pool, copies, tmp_path / f"{copies}.onnx", sinks=9)) for copies in (9, 1))
    assert (many["MaxPool"], one["MaxPool"]) == (9, 1)
    assert many["GlobalAveragePool"] == one["GlobalAveragePool"] == 5
    assert many - one == Counter(MaxPool=8)


def test_each_of_more_copies_has_a_residual_of_its_own(tmp_path) -> None:
    op = conv(16, 16, tail=("batch_norm", "add", "relu"))  # whole blocks of channels, of 8 or of 16
    many, one = (optimised(op, copies, tmp_path / f"{copies}.onnx", sinks=4) for copies in (4, 1))
    assert "Add" not in many + one  # fused, as in a network
    assert Counter(many) - Counter(one) == Counter(Conv=3)
