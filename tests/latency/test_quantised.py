"""Ops and networks in int8 on ONNX Runtime: as its own quantiser writes them, fused as in a deployed file."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

import latency
from latency.backends import load
from latency.backends.onnxruntime import OnnxRuntime, quantised
from latency.backends.onnxruntime.model import to_onnx, weight_precision
from latency.backends.onnxruntime.ops import differential_graph
from latency.errors import UsageError
from latency.op import Op, weight_bytes

CONV = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "h": 8, "w": 8}


def kernels(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Kinds of node that the runtime runs after all its optimisations."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 3
    without = ["CommonSubexpressionElimination"]
    ort.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"], disabled_optimizers=without
    )
    return Counter(node.op_type for node in onnx.load(str(folder / "optimised.onnx")).graph.node)


@pytest.mark.parametrize(
    ("op", "copy"),
    [
        (Op(kind="conv", c_in=16, c_out=16, tail=("relu",), **CONV), {"QLinearConv": 1}),  # type: ignore[arg-type]
        (Op(kind="conv", c_in=16, c_out=16, groups=16, **CONV), {"QLinearConv": 1}),  # type: ignore[arg-type]
        (
            Op(kind="conv", c_in=16, c_out=16, tail=("add", "relu"), **CONV),  # type: ignore[arg-type]
            {"QLinearConv": 1, "QLinearAdd": 1},
        ),
        (Op(kind="linear", c_in=16, c_out=16), {"QGemm": 1}),
    ],
)
def test_a_copy_of_an_op_is_one_integer_kernel(op: Op, copy: dict[str, int], tmp_path: Path) -> None:
    many, one = (kernels(quantised(differential_graph(op, copies, 3)), tmp_path) for copies in (3, 1))
    more = many - one
    assert {kind: more[kind] for kind in copy} == {kind: 2 * n for kind, n in copy.items()}
    assert not {kind for kind in many if kind in ("Conv", "Gemm", "Add", "Relu")}  # nothing is left in float


def test_an_int8_op_is_built_and_runs() -> None:
    built = OnnxRuntime(precision="int8").build(Op(kind="conv", c_in=16, c_out=16, dtype="int8", **CONV))  # type: ignore[arg-type]
    assert built.minus is not None
    built.run()
    built.minus()


def test_a_network_in_int8_computes_with_integers_and_its_relu_is_gone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)
    ).eval()
    proto = OnnxRuntime(precision="int8").deployed(model, (torch.zeros(1, 3, 8, 8),))
    assert weight_precision(proto) == "int8"
    found = kernels(proto, tmp_path)
    assert (found["QLinearConv"], found["QGemm"], found["Conv"], found["Relu"]) == (2, 1, 0, 0)
    backend = OnnxRuntime(precision="int8")
    with backend.network(model, (torch.zeros(2, 3, 8, 8),)) as runner:
        assert runner.precision == "int8"
        assert runner.infer({"input": np.zeros((2, 3, 8, 8), dtype=np.float32)})[0].shape == (2, 4)


def test_quantising_leaves_the_float_model_alone() -> None:
    proto = to_onnx(nn.Conv2d(3, 4, 1), (torch.zeros(1, 3, 4, 4),))
    before = proto.SerializeToString(deterministic=True)
    quantised(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_a_profile_in_int8_says_so_and_its_backend_is_found_again() -> None:
    facts = OnnxRuntime(precision="int8").environment()
    assert facts["dtype"] == "int8"
    assert OnnxRuntime.settings_of(facts, "nchw") == {"precision": "int8"}
    assert OnnxRuntime.settings_of(OnnxRuntime().environment(), "nchw") == {}
    assert weight_bytes(Op(kind="conv", c_in=4, c_out=8, kernel=(3, 3), dtype="int8")) == 4 * 8 * 9


def test_other_precisions_are_refused() -> None:
    settings: dict[str, Any] = {"precision": "fp16"}
    with pytest.raises(UsageError, match="it is measured on the CPU in fp32 or int8"):
        load("onnxruntime", settings=settings)


def test_a_sweep_in_int8_measures_cells_of_int8() -> None:
    op = Op(kind="conv", c_in=4, c_out=4, dtype="int8", **CONV)  # type: ignore[arg-type]
    estimate = latency.sweep([op], dry_run=True, settings={"precision": "int8"})
    assert estimate.cells > 0
