"""Batch norms and branches that became constants leave nothing behind that is computed again and again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from halpiee.deploy.folding import fold_batch_norm, fold_constants
from halpiee.deploy.onnx import export_onnx, onnx_outputs
from halpiee.errors import MismatchError
from halpiee.structure import shrink, trace
from halpiee.zoo.networks import BasicBlock, ResNet


class Residual(nn.Module):
    """A branch of two convolutions beside a skip; the second has a bias or not."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1, bias=bias)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        return self.head(torch.sigmoid(x + self.conv2(torch.relu(self.conv1(x)))))


def emptied(model: nn.Module, shape: tuple[int, ...], every: int = 1) -> nn.Module:
    """The network without the inner channels of each branch that may go, or of every second one."""
    structure = trace(model, (torch.zeros(shape),), vanish=True)
    names = [g.name for g in structure.groups if g.may_vanish][::every]
    assert names
    sizes = {name: structure.by_name[name].size for name in names}
    return shrink(model, structure, {n: torch.zeros(size, dtype=torch.bool) for n, size in sizes.items()})


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_emptied_branch_becomes_a_number_per_channel(tmp_path: Path, precision: Any) -> None:
    torch.manual_seed(0)
    compact = emptied(Residual(bias=True).eval(), (1, 3, 8, 8))
    out = tmp_path / "net.onnx"
    export_onnx(compact, (torch.zeros(1, 3, 8, 8),), out, precision=precision, batches=(1, 3))
    found = kinds(out)
    assert (found["Conv"], found["Add"]) == (2, 1)
    assert not {"ConstantOfShape", "Expand", "Shape", "Concat"} & set(found)
    shapes = [tuple(t.dims) for t in onnx.load(out).graph.initializer]
    assert (1, 8, 1, 1) in shapes
    assert not [shape for shape in shapes if 0 in shape]


def test_an_emptied_branch_without_a_bias_costs_nothing(tmp_path: Path) -> None:
    compact = emptied(Residual(bias=False).eval(), (1, 3, 8, 8))
    export_onnx(compact, (torch.zeros(1, 3, 8, 8),), tmp_path / "net.onnx", batches=(1, 3))
    assert kinds(tmp_path / "net.onnx") == Counter(Conv=2, Relu=1, Sigmoid=1)


@pytest.mark.parametrize("every", [1, 2])
def test_blocks_of_a_resnet_that_are_gone_leave_no_layers(tmp_path: Path, every: int) -> None:
    torch.manual_seed(0)
    model = ResNet(BasicBlock, (1, 1, 1), (4, 8, 16)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.uniform_(-0.3, 0.3)
            assert module.running_mean is not None
            module.running_mean.uniform_(-0.3, 0.3)
    whole = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    gone = len(range(0, 3, every))
    compact = emptied(model, (1, 3, 8, 8), every)
    export_onnx(compact, (torch.zeros(1, 3, 8, 8),), tmp_path / "net.onnx", batches=(1, 2))
    found = kinds(tmp_path / "net.onnx")
    assert found["Conv"] == whole - 2 * gone
    assert not {"ConstantOfShape", "Expand", "BatchNormalization"} & set(found)


def test_an_emptied_feed_forward_block_leaves_its_bias_and_nothing_of_size_zero(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)
            self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

        def forward(self, x: Tensor) -> Any:
            return self.head((x + self.mlp(self.norm(x))).mean(1))

    compact = emptied(Block().eval(), (1, 5, 8))
    export_onnx(compact, (torch.zeros(1, 5, 8),), tmp_path / "net.onnx", batches=(1, 3))
    assert kinds(tmp_path / "net.onnx") == Counter(Add=1, ReduceMean=1, Gemm=1)
    constants = onnx.load(tmp_path / "net.onnx").graph.initializer
    assert not [t.name for t in constants if 0 in t.dims]


def graph(nodes: list[onnx.NodeProto], *, channels: int = 2) -> onnx.ModelProto:
    """x [2, 2, 3] and small [2, 1, 1] → y; constants ``c`` [2, 1] = (1, −2) and a size for ConstantOfShape."""
    constants = [
        numpy_helper.from_array(np.array([[1.0], [-2.0]], np.float32), "c"),
        numpy_helper.from_array(np.array([2, channels, 3]), "size"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, channels, 3]),
        helper.make_tensor_value_info("small", TensorProto.FLOAT, [2, 1, 1]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, channels, 3])
    made = helper.make_graph(nodes, "g", inputs, [output], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def filled(value: float) -> onnx.NodeProto:
    tensor = numpy_helper.from_array(np.array([value], np.float32))
    return helper.make_node("ConstantOfShape", ["size"], ["fixed"], value=tensor)


def test_what_a_constant_goes_through_is_worked_out_once() -> None:
    nodes = [
        filled(0.5),
        helper.make_node("Mul", ["fixed", "c"], ["scaled"]),  # 0.5, −1
        helper.make_node("Relu", ["scaled"], ["cut"]),  # 0.5, 0
        helper.make_node("Sub", ["x", "cut"], ["y"]),
    ]
    model = graph(nodes)
    assert fold_constants(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Sub"]
    (y,) = onnx_outputs(model)((torch.ones(2, 2, 3), torch.ones(2, 1, 1)))
    assert y[1].tolist() == [[0.5] * 3, [1.0] * 3]


def test_a_constant_that_gives_the_shape_stays() -> None:
    model = graph([filled(0.5), helper.make_node("Add", ["small", "fixed"], ["y"])])
    assert fold_constants(model) == 0
    (y,) = onnx_outputs(model)((torch.ones(2, 2, 3), torch.ones(2, 1, 1)))
    assert y.shape == (2, 2, 3)


def test_a_sum_with_zero_that_is_the_output_keeps_its_name() -> None:
    model = graph([filled(0.0), helper.make_node("Add", ["fixed", "x"], ["y"])])
    fold_constants(model)
    onnx.checker.check_model(model, full_check=True)
    (y,) = onnx_outputs(model)((torch.ones(2, 2, 3), torch.ones(2, 1, 1)))
    assert y.tolist() == np.ones((2, 2, 3)).tolist()


def batch_norm_graph(rank: int) -> onnx.ModelProto:
    """One batch norm on the input, γ = (2, 1), β = (1, 0), μ = (3, −1), σ² = (4, 1), ε = 0."""
    shape: list[str | int | None] = ["batch", 2, 3, 3, 3]
    values = {"g": [2.0, 1.0], "b": [1.0, 0.0], "m": [3.0, -1.0], "v": [4.0, 1.0]}
    initializers = [numpy_helper.from_array(np.array(v, np.float32), k) for k, v in values.items()]
    node = helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"], name="norm", epsilon=0.0)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape[:rank]) for name in "xy")
    graph = helper.make_graph([node], "one", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_a_lone_batch_norm_becomes_a_layer_of_its_own(rank: int) -> None:
    model = batch_norm_graph(rank)
    assert fold_batch_norm(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == (["Mul", "Add"] if rank == 2 else ["Conv"])
    x = torch.full((1, 2, 3, 3, 3)[:rank], 5.0)
    y = onnx_outputs(model)((x,))[0].reshape(2, -1)
    assert y[0].tolist() == [3.0] * y.shape[1]  # (5 − 3) · 2/2 + 1
    assert y[1].tolist() == [6.0] * y.shape[1]  # (5 + 1) · 1/1 + 0


def test_a_batch_norm_whose_parameters_are_computed_is_refused() -> None:
    model = batch_norm_graph(4)
    mean = next(t for t in model.graph.initializer if t.name == "m")
    model.graph.initializer.remove(mean)
    model.graph.input.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, [2]))
    with pytest.raises(
        MismatchError, match="still holds the batch norm 'norm', whose parameters are no constants"
    ):
        fold_batch_norm(model)
