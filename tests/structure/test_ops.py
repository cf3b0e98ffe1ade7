"""Timed ops, their tails and both sides; channels, multiply-accumulates and parameters by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halpiee import zoo
from halpiee.structure import Structure, macs, parameters, shrink, trace, widths
from halpiee.structure.groups import TimedOp
from latency.backends.onnxruntime.model import to_onnx
from latency.op import Op

from . import nets


def by_layer(structure: Structure) -> dict[str, TimedOp]:
    return {timed.layer: timed for timed in structure.ops}


def test_a_resnet_block_is_two_convolutions_with_their_tails() -> None:
    ops = by_layer(trace(zoo.resnet20(), (torch.zeros(4, 3, 16, 16),)))
    assert ops["layers.1.0.conv1"].op == Op(
        kind="conv",
        c_in=16,
        c_out=32,
        h=16,
        w=16,
        batch=4,
        kernel=(3, 3),
        stride=(2, 2),
        padding=(1, 1),
        dilation=(1, 1),
        tail=("batch_norm", "relu"),
    )
    # y + shortcut(x): the addition belongs to its first operand
    assert ops["layers.1.0.conv2"].tail == ("batch_norm", "add", "relu")
    assert ops["layers.1.0.shortcut.0"].tail == ("batch_norm",)
    assert ops["layers.1.1.conv2"].tail == ("batch_norm", "add", "relu")


def test_what_hangs_on_no_layer_is_an_op_of_its_own() -> None:
    structure = trace(zoo.resnet20(), (torch.zeros(4, 3, 16, 16),))
    assert [t.op.kind for t in structure.ops if t.op.kind not in ("conv", "linear")] == ["global_avg_pool"]
    pool = by_layer(structure)["pool"]
    assert pool.op == Op(kind="global_avg_pool", c_in=64, c_out=64, h=4, w=4, batch=4)
    assert pool.in_groups == pool.out_groups == (("layers.2.0.conv2", 1),)


def test_preactivation_norms_and_additions_follow_what_runs_before_them() -> None:
    ops = [(t.op.kind, t.layer, t.tail) for t in trace(zoo.wrn22_2(), (torch.zeros(1, 3, 16, 16),)).ops[:6]]
    assert ops == [
        ("conv", "conv1", ("batch_norm", "relu")),
        ("conv", "blocks.0.conv1", ("batch_norm", "relu")),
        ("conv", "blocks.0.conv2", ("add",)),
        ("conv", "blocks.0.shortcut", ()),
        ("batch_norm", "blocks.1.bn1", ()),
        ("relu", "blocks.1.relu", ()),
    ]


class Sum(nn.Module):
    """Two convolutions of a feature map, run and added in either order."""

    def __init__(self, runs: str, adds: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.a, self.b = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(16, 32, 1)
        self.runs, self.adds = runs, adds

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        found = {name: getattr(self, name)(x) for name in self.runs}
        return F.relu(found[self.adds[0]] + found[self.adds[1]]).mean((2, 3))


@pytest.mark.parametrize("runs", ["ab", "ba"])
@pytest.mark.parametrize("adds", ["ab", "ba"])
def test_an_addition_joins_the_convolution_that_onnx_runtime_fuses_it_into(
    runs: str, adds: str, tmp_path: Path
) -> None:
    net, x = Sum(runs, adds).eval(), torch.randn(1, 3, 18, 18)
    tails = {layer: timed.tail for layer, timed in by_layer(trace(net, (x,))).items()}
    assert tails[adds[0]] == ("add", "relu")
    assert tails[adds[1]] == ()
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4  # it warns that an optimised model is for this machine only
    model = to_onnx(net, (x,)).SerializeToString()
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    kernels = {t.name: t.dims[-1] for t in graph.initializer if len(t.dims) == 4}
    (fused,) = (node for node in graph.node if node.op_type == "Conv" and len(node.input) == 4)
    assert kernels[fused.input[1]] == {"a": 3, "b": 1}[adds[0]]


def test_pools_and_linear_layers_have_their_shapes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)
            self.pool = nn.MaxPool2d(3, 2, padding=1)
            self.average = nn.AvgPool2d(2)
            self.fc = nn.Linear(6 * 4, 5)

        def forward(self, x: Tensor) -> Any:
            x = self.average(self.pool(self.conv(x)))
            return self.fc(F.interpolate(x, scale_factor=2.0).flatten(1)[:, :24])

    structure = trace(Net(), (torch.zeros(2, 3, 8, 8),))
    ops = {t.op.kind: t.op for t in structure.ops}
    assert ops["max_pool"] == Op(
        kind="max_pool",
        c_in=6,
        c_out=6,
        h=6,
        w=6,
        batch=2,
        kernel=(3, 3),
        stride=(2, 2),
        padding=(1, 1),
        dilation=(1, 1),
    )
    assert ops["avg_pool"].kernel == (2, 2)
    assert (ops["avg_pool"].h, ops["avg_pool"].stride) == (3, (2, 2))
    assert (ops["upsample"].h, ops["upsample"].stride) == (1, (2, 2))
    assert (ops["linear"].c_in, ops["linear"].c_out, ops["linear"].batch, ops["linear"].h) == (24, 5, 2, 1)


def test_a_linear_layer_on_sequences_counts_its_tokens() -> None:
    structure = trace(nets.LayerNormed(), (torch.zeros(2, 4, 3),))
    assert [
        (t.op.kind, t.op.batch, t.op.h, t.op.w, t.tail) for t in structure.ops if t.op.kind == "linear"
    ] == [
        ("linear", 2, 4, 1, ()),
        ("linear", 2, 4, 1, ()),
    ]


def test_a_concatenation_lists_all_its_groups() -> None:
    structure = trace(nets.Concat(), (torch.zeros(nets.IMAGE),))
    concat = next(t for t in structure.ops if t.op.kind == "concat")
    assert concat.out_groups == (("a", 1), ("b", 1))
    assert (concat.op.c_in, concat.op.c_out) == (10, 10)
    head = by_layer(structure)["head"]
    assert head.in_groups == (("a", 1), ("b", 1), ("join", 1))


def test_a_flatten_multiplies_channels() -> None:
    layers = {layer.name: layer for layer in trace(nets.Flatten(), (torch.zeros(nets.IMAGE),)).layers}
    assert layers["fc"].in_groups == (("conv", 4),)


def test_a_second_call_has_its_own_name_and_size() -> None:
    structure = trace(nets.Shared(), (torch.zeros(nets.IMAGE),))
    ops = by_layer(structure)
    assert (ops["twice"].op.h, ops["twice#2"].op.h) == (8, 4)
    assert [layer.name for layer in structure.layers] == ["stem", "twice", "twice#2", "head"]


def test_widths_and_macs_follow_the_counts() -> None:
    structure = trace(nets.Residual(), (torch.zeros(nets.IMAGE),))
    assert widths(structure) == {"stem": 8, "conv1": 6, "conv2": 8, "head": 5}
    # 8×8 positions: 3·8·9, 8·6·9, 6·8·9 weights; the head is 8·5
    assert macs(structure) == {"stem": 216 * 64, "conv1": 432 * 64, "conv2": 432 * 64, "head": 40}
    counts = {"stem": 4, "conv1": 3}
    assert widths(structure, counts) == {"stem": 4, "conv1": 3, "conv2": 4, "head": 5}
    assert macs(structure, counts) == {"stem": 108 * 64, "conv1": 108 * 64, "conv2": 108 * 64, "head": 20}


def test_macs_of_depthwise_grouped_and_transposed_layers() -> None:
    depthwise = trace(nets.Depthwise(2), (torch.zeros(nets.IMAGE),))
    assert macs(depthwise)["depth"] == 16 * 9 * 64
    assert macs(depthwise, {"expand": 3})["depth"] == 6 * 9 * 64
    grouped = trace(nets.Grouped(), (torch.zeros(nets.IMAGE),))
    assert macs(grouped)["g"] == 16 * 2 * 9 * 64
    assert macs(grouped, {"a": 1})["g"] == 4 * 2 * 9 * 64
    transposed = trace(nets.Transposed(), (torch.zeros(nets.IMAGE),))
    assert macs(transposed)["up"] == 8 * 6 * 4 * 64  # every input position meets every weight
    assert macs(transposed)["b"] == 6 * 5 * 256


def test_macs_do_not_depend_on_the_batch() -> None:
    one = macs(trace(nets.Flatten(), (torch.zeros(1, 3, 8, 8),)))
    assert macs(trace(nets.Flatten(), (torch.zeros(5, 3, 8, 8),))) == one


def test_parameters_are_those_of_the_shrunk_network() -> None:
    for builder, shape in nets.PRUNED.values():
        model = builder()
        structure = trace(model, (torch.zeros(shape),))
        keep = nets.random_keep(structure, 1)
        counts = {name: int(mask.sum()) for name, mask in keep.items()}
        compact = shrink(model, structure, keep)
        assert parameters(structure) == sum(p.numel() for p in model.parameters())
        assert parameters(structure, counts) == sum(p.numel() for p in compact.parameters())
