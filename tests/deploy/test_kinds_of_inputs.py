"""Models with inputs and outputs of every kind are exported and proved, or refused by one sentence."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from halpiee.deploy.onnx import export_onnx, onnx_outputs
from halpiee.errors import MismatchError, UsageError
from latency.backends.onnxruntime.model import read_metadata

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    """A convolution; what forward takes and gives beside is each test's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> object:
        return self.conv(x)


def ran(path: Path, *inputs: Tensor) -> np.ndarray:
    return onnx_outputs(path)(inputs)[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_precision_is_exported_with_inputs_of_that_type(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model = Net().to(dtype)
    report = export_onnx(model, (X.to(dtype),), tmp_path / "net.onnx")
    assert report.rel_l2 < 1e-5
    with torch.no_grad():
        expected = Net().to(dtype).float()(X)
    np.testing.assert_allclose(ran(report.path, X), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert next(model.parameters()).dtype == dtype


def test_a_forward_that_casts_to_half_is_refused_with_the_way_out(tmp_path: Path) -> None:
    class Casts(Net):
        def forward(self, x: Tensor) -> object:
            return self.conv(x.bfloat16())

    with pytest.raises(
        UsageError, match=r"its weights are bfloat16 and were made float32, .* cast to that of its"
    ):
        export_onnx(Casts().bfloat16(), (X.bfloat16(),), tmp_path / "net.onnx")


@dataclass
class Found:
    boxes: Tensor
    loss: float | None = None


@pytest.mark.parametrize(
    ("others", "left_out"),
    [
        ({"loss": None}, "loss = None"),
        ({"loss": 0.5, "more": (None, 3)}, "loss = 0.5; more.0 = None; more.1 = 3"),
        ({"found": Found(torch.zeros(1))}, "found.loss = None"),
    ],
)
def test_none_and_numbers_among_the_outputs_are_left_out_and_said(
    tmp_path: Path, others: dict[str, object], left_out: str
) -> None:
    class Many(Net):
        def forward(self, x: Tensor) -> object:
            y = self.conv(x)
            extra = {k: Found(y.mean(1)) if isinstance(v, Found) else v for k, v in others.items()}
            return {"first": None, "y": y, **extra}

    report = export_onnx(Many(), (X,), tmp_path / "net.onnx")
    assert read_metadata(report.path)["left_out"] == f"first = None; {left_out}"
    assert report.notes == (
        f"{report.path} leaves out what is no tensor of the outputs: first = None; {left_out}",
    )
    with torch.no_grad():
        np.testing.assert_allclose(ran(report.path, X), Net()(X).numpy(), rtol=1e-4, atol=1e-5)


def test_an_output_that_holds_a_text_is_refused_with_its_place(tmp_path: Path) -> None:
    class Text(Net):
        def forward(self, x: Tensor) -> object:
            return {"y": self.conv(x), "kind": "cat"}

    with pytest.raises(UsageError, match=r"the model returns str as kind, .* wrap it"):
        export_onnx(Text(), (X,), tmp_path / "net.onnx")


@pytest.mark.parametrize("step", [torch.tensor(7), torch.tensor(0.5)])
@pytest.mark.parametrize("first", [True, False])
def test_a_scalar_input_stays_an_input_of_the_file(tmp_path: Path, step: Tensor, first: bool) -> None:
    class Step(Net):
        def forward(self, *given: Tensor) -> object:
            x, t = given[::-1] if first else given
            return self.conv(x) * torch.cos(t.float() / 3)

    class FirstStep(Step):
        def forward(self, t: Tensor, x: Tensor) -> object:  # type: ignore[override]
            return super().forward(t, x)

    class LastStep(Step):
        def forward(self, x: Tensor, t: Tensor) -> object:  # type: ignore[override]
            return super().forward(x, t)

    model: nn.Module = FirstStep() if first else LastStep()
    report = export_onnx(model, (step, X) if first else (X, step), tmp_path / "net.onnx")
    assert report.fixed_batch is None
    assert report.batch_sizes == (1, 2, 5)
    other, x = step * 3, torch.cat([X, X])  # another scalar and another batch than the example's
    with torch.no_grad():
        expected = Net()(x) * torch.cos(other.float() / 3)
    np.testing.assert_allclose(
        ran(report.path, *((other, x) if first else (x, other))), expected.numpy(), rtol=1e-4, atol=1e-5
    )


def test_an_input_of_another_first_dimension_keeps_its_shape(tmp_path: Path) -> None:
    class Table(Net):
        def forward(self, x: Tensor, table: Tensor) -> object:  # type: ignore[override]
            return self.conv(x) + table.mean()

    report = export_onnx(Table(), (X, torch.ones(5, 2)), tmp_path / "net.onnx")
    assert (report.fixed_batch, report.batch_sizes) == (None, (1, 2, 5))


@pytest.mark.parametrize("value", [True, 2, 0.5, "twice", None])
def test_inputs_that_are_no_tensors_are_constants_of_the_file(tmp_path: Path, value: object) -> None:
    class Asked(Net):
        def forward(self, x: Tensor, how: object, pair: tuple[Tensor, int] | None = None) -> object:  # type: ignore[override]
            return self.conv(x) * (2 if how == value else 1)

    report = export_onnx(Asked(), (X, value), tmp_path / "net.onnx")
    assert read_metadata(report.path)["constants"] == f"input 1 = {value!r}"
    assert report.notes == (
        f"{report.path} is made for these inputs, which are no tensors: input 1 = {value!r}",
    )
    assert report.batch_sizes == (1, 2, 5)
    with torch.no_grad():
        np.testing.assert_allclose(ran(report.path, X), 2 * Net()(X).numpy(), rtol=1e-4, atol=1e-5)


def test_tensors_in_tuples_and_dicts_are_inputs_of_the_file(tmp_path: Path) -> None:
    class Nested(Net):
        def forward(self, pair: tuple[Tensor, int], more: dict[str, Tensor]) -> object:  # type: ignore[override]
            return self.conv(pair[0]) * pair[1] + more["shift"]

    shift = torch.randn(2, 4, 1, 1)
    report = export_onnx(Nested(), ((X, 3), {"shift": shift}), tmp_path / "net.onnx")
    with torch.no_grad():
        expected = Net()(X) * 3 + shift
    np.testing.assert_allclose(ran(report.path, X, shift), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert read_metadata(report.path)["constants"] == "input 0 1 = 3"


@pytest.mark.parametrize(
    "value", [object(), torch.zeros(2, 2).to_sparse(), torch.zeros(2, dtype=torch.complex64)]
)
def test_an_input_that_no_graph_can_hold_is_refused(tmp_path: Path, value: object) -> None:
    class Asked(Net):
        def forward(self, x: Tensor, other: object) -> object:  # type: ignore[override]
            return self.conv(x)

    with pytest.raises(
        UsageError, match=r"input 1 of the model is a .*, which no ONNX graph can take; give real"
    ):
        export_onnx(Asked(), (X, value), tmp_path / "net.onnx")


class Kept(Net):
    """Keeps anchors that it made for the first batch it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: Tensor | None = None

    def forward(self, x: Tensor) -> object:
        if self.anchors is None:
            self.anchors = torch.linspace(0, 1, len(x)).view(-1, 1, 1, 1).expand(len(x), 4, 8, 8).clone()
        return self.conv(x) + self.anchors


class Remade(Kept):
    """Makes them anew where the size of its images is another, with the batch of that time."""

    def forward(self, x: Tensor) -> object:
        if self.anchors is None or self.anchors.shape[2:] != x.shape[2:]:
            self.anchors = None
        return super().forward(x)


class Viewed(Net):
    """Has the batch of its images as a number of its own."""

    def forward(self, x: Tensor) -> object:
        return self.conv(x).view(2, 4, 4, 16)


@pytest.mark.parametrize("kind", [Kept, Remade, Viewed])
def test_a_model_with_its_batch_in_it_gets_a_file_of_that_batch_which_says_so(
    tmp_path: Path, kind: type[nn.Module]
) -> None:
    model = kind()
    with torch.no_grad():
        expected = model(X)
    report = export_onnx(model, (X,), tmp_path / "net.onnx")
    assert (report.fixed_batch, report.batch_sizes) == (2, (2, 2, 2))
    assert read_metadata(report.path)["fixed_batch"] == "2"
    assert "net.onnx takes batches of 2 only: the network has the batch" in report.notes[0]
    np.testing.assert_allclose(ran(report.path, X), expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Kept, Remade])
def test_what_a_model_kept_of_a_batch_of_one_holds_for_every_batch(
    tmp_path: Path, kind: type[nn.Module]
) -> None:
    report = export_onnx(kind(), (X[:1],), tmp_path / "net.onnx")
    assert report.fixed_batch is None
    with torch.no_grad():
        np.testing.assert_allclose(ran(report.path, X[:1]), kind()(X[:1]).numpy(), rtol=1e-4, atol=1e-5)


def test_a_model_whose_values_hang_on_the_first_batch_gets_that_batch_too(tmp_path: Path) -> None:
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale: float | None = None

        def forward(self, x: Tensor) -> object:
            if self.scale is None:
                self.scale = float(len(x))
            return self.conv(x) * self.scale

    report = export_onnx(Scaled(), (X[:1],), tmp_path / "net.onnx")  # the export runs it on two first
    with torch.no_grad():
        np.testing.assert_allclose(ran(report.path, X[:1]), Net()(X[:1]).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ids", [[[5]], [[0, 0, 0]], [[7, 7]]])
def test_token_numbers_that_are_all_the_same_are_varied_for_the_proof(
    tmp_path: Path, ids: list[list[int]]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))
    report = export_onnx(model, (torch.tensor(ids),), tmp_path / "net.onnx")
    assert report.rel_l2 < 1e-5


def test_a_loss_is_an_output_like_any_other(tmp_path: Path) -> None:
    class Loss(Net):
        def forward(self, x: Tensor) -> object:
            return self.conv(x).square().mean()

    assert export_onnx(Loss(), (X,), tmp_path / "net.onnx").rel_l2 < 1e-5


def test_a_file_that_no_batch_makes_right_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"net\.onnx was not written"):
        export_onnx(Kept(), (X,), tmp_path / "net.onnx", tolerance=-1.0)
    assert not list(tmp_path.iterdir())
