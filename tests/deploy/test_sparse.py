"""Zeros are zeros in the file, in runs along what the layer sums over, and their worth is said plainly."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from halpiee.deploy.onnx import export_onnx
from halpiee.deploy.sparse import Zeros, follows, obstacle, semi_structured, with_zeros, zeros_in
from halpiee.errors import MissingError, StructureError


def two_of_four(weight: Tensor, dim: int = 1) -> Tensor:
    """The two largest of every four along a dimension, by a loop."""
    runs = weight.detach().movedim(dim, -1).contiguous()
    mask = torch.zeros_like(runs, dtype=torch.bool)
    flat, flags = runs.view(-1, 4), mask.view(-1, 4)
    for i, run in enumerate(flat.abs().tolist()):
        for j in sorted(range(4), key=lambda k: -run[k])[:2]:
            flags[i, j] = True
    return mask.movedim(-1, dim)


class Net(nn.Module):
    """Convolution with batch norm, a second one of three input channels' worth more, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def sparse() -> Any:
    torch.manual_seed(0)
    net = Net().eval()
    net.norm.weight.data.uniform_(0.5, 2)
    return with_zeros(
        net,
        {name: two_of_four(dict(net.named_parameters())[name]) for name in ("second.weight", "head.weight")},
    )


def test_inactive_weights_become_zeros_even_where_they_are_infinite() -> None:
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, float("inf"), float("nan"), 4.0]]))
    found: Any = with_zeros(model, {"weight": torch.tensor([[True, False, False, True]])})
    assert found.weight.tolist() == [[1.0, 0.0, 0.0, 4.0]]
    assert torch.isinf(model.weight[0, 1])


def test_masks_of_another_network_are_refused() -> None:
    with pytest.raises(StructureError, match=r"'weight' with shape \(2, 2\) .* the model has \(1, 4\)"):
        with_zeros(nn.Linear(4, 1), {"weight": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(StructureError, match="no such parameter"):
        with_zeros(nn.Linear(4, 1), {"other": torch.ones(2, 2, dtype=torch.bool)})


def test_runs_lie_along_the_inputs_not_the_outputs() -> None:
    along_inputs = torch.tensor([[1.0, 2.0, 0.0, 0.0]] * 4)
    assert follows(along_inputs)
    assert not follows(along_inputs.T)
    assert follows(along_inputs.T, dim=0)
    assert not follows(torch.ones(4, 6))  # six inputs are no runs of four
    assert follows(along_inputs, 1, 2) is False
    assert follows(torch.tensor([[1.0, 0.0, 0.0, 2.0]]), 1, 2)


@pytest.mark.parametrize("seed", range(4))
def test_pytorchs_own_conversion_takes_exactly_what_follows(seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(32, 64).half()
    right = weight.masked_fill(~two_of_four(weight), 0)
    kept, meta = sparse_semi_structured_from_dense_cutlass(right)  # type: ignore[no-untyped-call]
    assert follows(right)
    assert kept.shape == (32, 32)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(kept, meta), right)  # type: ignore[no-untyped-call]
    # Runs along the outputs are not what it reads: it would lose values.
    across = weight.masked_fill(~two_of_four(weight, dim=0), 0)
    kept, meta = sparse_semi_structured_from_dense_cutlass(across)  # type: ignore[no-untyped-call]
    assert not follows(across)
    assert not torch.equal(sparse_semi_structured_to_dense_cutlass(kept, meta), across)  # type: ignore[no-untyped-call]


def test_zeros_and_their_runs_survive_the_export_and_the_folded_norm(sparse: Any, tmp_path: Path) -> None:
    done = export_onnx(sparse, (torch.zeros(1, 3, 8, 8),), tmp_path / "net.onnx")
    assert done.rel_l2 <= 1e-5
    found = zeros_in(tmp_path / "net.onnx")
    assert (found.layers, found.patterned) == (3, 2)  # the first has three input channels
    zeros = (8 * 16 * 9 + 16 * 4) / 2
    assert found.share == pytest.approx(zeros / (3 * 8 * 9 + 8 * 16 * 9 + 16 * 4))
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "net.onnx").graph.initializer}
    (second,) = [w for w in weights.values() if w.shape == (16, 8, 3, 3)]
    assert np.array_equal(second == 0, sparse.second.weight.detach().numpy() == 0)


def test_a_product_with_a_transposed_weight_is_read_along_its_rows(tmp_path: Path) -> None:
    weight = np.array([[1.0], [2.0], [0.0], [0.0]], np.float32)  # [inputs, outputs]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c]) for n, c in (("x", 4), ("y", 1))]
    for node in (helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Gemm", ["x", "w"], ["y"])):
        graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "a.onnx")
        assert zeros_in(tmp_path / "a.onnx").patterned == 1
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    graph = helper.make_graph(
        [node], "g", values[:1], values[1:], [numpy_helper.from_array(weight.T.copy(), "w")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "a.onnx")
    assert zeros_in(tmp_path / "a.onnx").patterned == 1


def test_the_zipped_size_is_that_of_the_deflated_file(sparse: Any, tmp_path: Path) -> None:
    export_onnx(sparse, (torch.zeros(1, 3, 8, 8),), tmp_path / "sparse.onnx")
    export_onnx(Net().eval(), (torch.zeros(1, 3, 8, 8),), tmp_path / "dense.onnx")
    found = {name: zeros_in(tmp_path / f"{name}.onnx") for name in ("sparse", "dense")}
    content = (tmp_path / "sparse.onnx").read_bytes()
    assert found["sparse"].size_bytes == len(content)
    assert found["sparse"].zipped_bytes == len(zlib.compress(content, 6))
    assert found["sparse"].zipped_bytes < 0.8 * found["dense"].zipped_bytes


def test_what_zeros_bring_is_said_plainly() -> None:
    many = Zeros(0.9, 10, 0, 4_000_000, 900_000)
    assert many.text == (
        "90.0% of the weights are zero: no speed on ONNX Runtime or PyTorch, whose kernels multiply by zeros too; "
        "zipped the file takes 0.90 of 4.00 MB"
    )
    assert "8 of 10 layers are 2:4, which a TensorRT engine" in Zeros(0.5, 10, 8, 1, 1).text
    assert Zeros(0.0, 10, 0, 1, 1).text == "no zeros to speak of"


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (torch.zeros(32, 64), "float32, the kernels take float16 and bfloat16"),
        (torch.zeros(24, 64).half(), "24×64, the kernels take multiples of 32×64"),
        (torch.ones(32, 64).half(), "more than two of four consecutive inputs are not zero"),
    ],
)
def test_what_keeps_a_layer_dense_is_named(weight: Tensor, words: str) -> None:
    assert obstacle(weight) == words


def test_a_half_precision_two_of_four_weight_has_no_obstacle() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).half()
    assert obstacle(weight.masked_fill(~two_of_four(weight), 0)) is None


def test_without_a_gpu_semi_structured_tensors_are_refused_with_the_way_out() -> None:
    with pytest.raises(MissingError, match="on the CPU export to ONNX instead, where the zeros stay zeros"):
        semi_structured(nn.Linear(64, 64), device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_semi_structured_layers_compute_what_the_dense_ones_do() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 10)).half()
    masked = with_zeros(model, {"0.weight": two_of_four(model[0].weight)})
    found, left = semi_structured(masked)
    assert list(left) == ["2"]
    x = torch.randn(64, 128, dtype=torch.float16, device="cuda")
    expected = masked.cuda()(x)
    assert (found(x) - expected).norm() / expected.norm() < 1e-2
