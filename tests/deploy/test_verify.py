"""The relative L2 error and the comparisons built on it."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from halpiee.deploy import onnx
from halpiee.deploy.onnx import export_onnx
from halpiee.deploy.verify import compare, outputs, random_batches, reference
from halpiee.errors import MismatchError, UsageError
from halpiee.structure.verification import relative_l2


def arrays(*values: list[float]) -> list[np.ndarray]:
    return [np.array(v, dtype=np.float32) for v in values]


def test_relative_l2_is_the_norm_of_the_difference_over_that_of_the_reference() -> None:
    # ‖(3, 4)‖ / ‖(0, 10)‖
    assert relative_l2(arrays([3.0, 14.0]), arrays([0.0, 10.0])) == pytest.approx(0.5)


def test_relative_l2_takes_all_outputs_together() -> None:
    # √(3² + 4²) / √(6² + 8²), not a mean of two ratios
    assert relative_l2(arrays([9.0], [12.0]), arrays([6.0], [8.0])) == pytest.approx(0.5)


def test_relative_l2_of_equal_zeros_is_zero_and_of_a_zero_reference_infinite() -> None:
    assert relative_l2(arrays([0.0]), arrays([0.0])) == 0.0
    assert relative_l2(arrays([1.0]), arrays([0.0])) == float("inf")


def test_relative_l2_is_summed_in_float64() -> None:
    big = np.full(3, 3e30, dtype=np.float32)  # its square overflows float32
    assert relative_l2([big * np.float32(1.5)], [big]) == pytest.approx(0.5, rel=1e-6)


def test_outputs_of_other_shapes_are_refused_not_broadcast() -> None:
    with pytest.raises(
        MismatchError, match=r"outputs of the shapes \[\(1,\)\] were compared with \[\(2,\)\]"
    ):
        relative_l2(arrays([1.0]), arrays([1.0, 1.0]))


def test_compare_reports_the_worst_batch_and_the_share_of_equal_winners() -> None:
    truth = {1: [[1.0, 0.0]], 2: [[0.0, 4.0], [3.0, 0.0]]}
    found = {1: [[1.0, 0.0]], 2: [[0.0, 4.0], [0.0, 4.0]]}
    batches = [(torch.zeros(1, 2),), (torch.zeros(2, 2),)]
    result = compare(
        lambda x: [np.array(found[len(x[0])])],
        lambda x: [np.array(truth[len(x[0])])],
        batches,
    )
    assert result.rel_l2 == pytest.approx(1.0)  # the second batch: √(3² + 4²) / √(4² + 3²)
    assert result.max_abs_error == 4.0
    assert result.top1_agreement == pytest.approx(2 / 3)
    assert result.batch_sizes == (1, 2)


def test_a_nan_is_never_within_a_tolerance() -> None:
    batches = [(torch.zeros(1, 1),), (torch.zeros(2, 1),)]

    def broken(x: tuple[Tensor, ...]) -> list[np.ndarray]:
        return [np.full((len(x[0]), 1), float("nan") if len(x[0]) == 1 else 1.0)]

    result = compare(broken, lambda x: [np.ones((len(x[0]), 1))], batches)
    assert not result.within(1e9)


def test_random_batches_keep_shape_dtype_and_range_and_repeat_with_the_seed() -> None:
    example = (torch.zeros(4, 3, 2), torch.tensor([[5], [9]]))
    batches = random_batches(example, (1, 7), seed=3)
    assert [tuple(x.shape) for x in batches[1]] == [(7, 3, 2), (7, 1)]
    assert batches[1][1].dtype == torch.int64
    assert set(batches[1][1].flatten().tolist()) <= {5, 6, 7, 8, 9}
    again = random_batches(example, (1, 7), seed=3)
    assert all(
        torch.equal(a, b) for x, y in zip(batches, again, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert not torch.equal(batches[0][0], random_batches(example, (1,), seed=4)[0][0])


def test_reference_is_an_evaluating_float32_copy() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).double().train()
    copy = reference(model)
    assert not copy.training
    assert not copy[1].training  # type: ignore[index]
    assert next(copy.parameters()).dtype == torch.float32
    assert model.training
    assert next(model.parameters()).dtype == torch.float64


def test_outputs_takes_tensors_out_of_tuples_and_dicts_in_order() -> None:
    class Many(nn.Module):
        def forward(self, x: Tensor) -> dict[str, object]:
            return {"a": x + 1, "b": (x + 2, [x + 3])}

    found = outputs(Many(), (torch.zeros(1),))
    assert [float(a[0]) for a in found] == [1.0, 2.0, 3.0]


def test_a_model_that_returns_something_else_is_refused() -> None:
    class Text(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "cat"

    with pytest.raises(
        UsageError, match="the model returns str, which cannot be compared or exported; wrap it"
    ):
        outputs(Text(), (torch.zeros(1),))


def test_a_reference_that_gives_the_same_for_every_input_tells_nothing() -> None:
    batches = [(torch.zeros(1, 2),), (torch.zeros(2, 2),)]

    def told(*rows: list[float]) -> bool:
        left = [np.array(rows[:1]), np.array(rows[1:])]
        return compare(lambda x: [left[len(x[0]) - 1]], lambda x: [left[len(x[0]) - 1]], batches).tells

    assert not told([0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    assert not told([1.0, 2.0], [1.0, 2.0], [1.0, 2.0])
    assert told([1.0, 2.0], [1.0, 2.0], [1.0, 2.1])


def test_a_network_whose_activations_vanish_is_exported_all_the_same(tmp_path: Path) -> None:
    """Statistics of the first steps let nothing through: what is compared instead must not be all rounding."""
    from halpiee.deploy.onnx import export_onnx

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in [3, *[8] * 17]:
        layers += [nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(net(x[:1]), net(x[1:]), rtol=1e-6, atol=1e-6)  # the same for every input
    assert export_onnx(net, (x[:1],), tmp_path / "net.onnx").rel_l2 < 1e-5


def undetermined() -> nn.Module:
    """Differences of rows that differ in their sixth digit: float32 leaves one or two of them."""
    torch.manual_seed(0)
    a, norm, b = nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 4, bias=False)
    scales = torch.rand(4) + 0.5
    with torch.no_grad():
        a.weight[1::2] = a.weight[::2] + 1e-6 * torch.randn(4, 16)
        b.weight.copy_(torch.eye(4).repeat_interleave(2, 1) * torch.tensor([1.0, -1.0]).repeat(4))
        norm.get_buffer("running_var").copy_(scales.repeat_interleave(2))
    return nn.Sequential(a, norm, b).eval()


def test_a_network_that_float32_does_not_determine_is_proved_with_other_weights(tmp_path: Path) -> None:
    net, x = undetermined(), torch.randn(4, 16)
    with torch.no_grad():
        single, double = net(x), copy.deepcopy(net).double()(x.double())
    own = float((single - double).norm() / double.norm())
    assert own > 1e-3
    report = export_onnx(net, (x[:1],), tmp_path / "net.onnx")
    assert report.rel_l2 <= 1e-5
    assert any("float32 does not determine" in note for note in report.notes)


def test_a_wrong_file_of_such_a_network_is_refused_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a thousandth, less than its own rounding."""
    right = onnx.onnx_outputs
    monkeypatch.setattr(onnx, "onnx_outputs", lambda proto: lambda x: [1.001 * y for y in right(proto)(x)])
    with pytest.raises(MismatchError, match="differs from PyTorch"):
        export_onnx(undetermined(), (torch.randn(1, 16),), tmp_path / "net.onnx")


def test_settled_norms_have_the_statistics_of_their_inputs_and_modes_are_kept() -> None:
    from halpiee.deploy.verify import settle

    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, momentum=0.03)).eval()
    x = torch.zeros(1, 1, 4, 4)
    settle(net, (x,))
    conv, norm = net[0], net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    from halpiee.deploy.verify import random_batches

    with torch.no_grad():
        y = conv(random_batches((x,), (8,))[0][0])
    torch.testing.assert_close(norm.running_mean, y.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, y.var((0, 2, 3)))
    assert (norm.momentum, norm.training, net.training) == (0.03, False, False)
