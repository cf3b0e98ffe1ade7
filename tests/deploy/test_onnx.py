"""An exported file computes what the model computes, or it is not written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

import halpiee
from halpiee.deploy import onnx as exporting
from halpiee.deploy.onnx import ExportReport, export_onnx, onnx_outputs, stamp
from halpiee.errors import MismatchError, OutputInUseError, UsageError
from latency.backends.onnxruntime.model import read_metadata


def small_net(*, first: nn.Module | None = None) -> nn.Module:
    """Conv–BN–ReLU–conv–pool–linear with statistics and affine that are not the identity."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2),
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]
    model = nn.Sequential(*([first] if first else []), *layers, *head)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


EXAMPLE = (torch.zeros(1, 3, 8, 8),)


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def left_overs(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ExportReport]:
    """A model in training mode, with one norm in eval mode, and its export."""
    model = small_net().train()
    model[1].eval()  # type: ignore[index]
    path = tmp_path_factory.mktemp("deep") / "a/b/net.onnx"
    return model, export_onnx(
        model, EXAMPLE, path, batches=(1, 2, 6), metadata={"budget": "50%", "device": "a < b"}
    )


def test_the_file_computes_what_the_model_computes_at_every_batch_size(
    exported: tuple[nn.Module, ExportReport],
) -> None:
    model, run = small_net().eval(), onnx_outputs(exported[1].path)
    for size in (1, 4, 9):
        x = torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            np.testing.assert_allclose(run((x,))[0], model(x).numpy(), rtol=1e-4, atol=1e-5)


def test_the_report_says_what_was_compared_and_written(exported: tuple[nn.Module, ExportReport]) -> None:
    report = exported[1]
    assert report.rel_l2 <= 1e-5
    assert report.top1_agreement == 1.0
    assert report.batch_sizes == (1, 2, 6)
    assert report.size_bytes == report.path.stat().st_size
    assert report.opset == onnx.load(report.path).opset_import[0].version


def test_exporting_leaves_the_model_as_it_was(exported: tuple[nn.Module, ExportReport]) -> None:
    model, fresh = exported[0], small_net().state_dict()
    assert model.training
    assert not model[1].training  # type: ignore[index]
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())


def test_metadata_is_in_the_file(exported: tuple[nn.Module, ExportReport]) -> None:
    found = {p.key: p.value for p in onnx.load(exported[1].path).metadata_props}
    assert found["budget"] == "50%"
    assert found["device"] == "a < b"
    assert found["halpiee_version"] == halpiee.__version__


def test_no_batch_norm_is_left_after_or_before_a_convolution(tmp_path: Path) -> None:
    export_onnx(small_net(first=nn.BatchNorm2d(3)), EXAMPLE, tmp_path / "net.onnx")
    assert "BatchNormalization" not in kinds(tmp_path / "net.onnx")


def test_a_half_precision_file_takes_float32_and_stays_near(tmp_path: Path) -> None:
    report = export_onnx(small_net(), EXAMPLE, tmp_path / "net.onnx", precision="fp16")
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    weights = [t for t in graph.initializer if len(t.dims) == 4]
    assert {t.data_type for t in weights} == {TensorProto.FLOAT16}
    assert 1e-6 < report.rel_l2 <= 1e-2


def test_a_half_precision_file_may_take_half_precision(tmp_path: Path) -> None:
    export_onnx(small_net(), EXAMPLE, tmp_path / "net.onnx", precision="fp16", fp32_io=False)
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16


def test_over_the_tolerance_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        MismatchError, match=r"net\.onnx was not written: in fp16 .* 1e-09 is allowed"
    ) as caught:
        export_onnx(small_net(), EXAMPLE, tmp_path / "net.onnx", precision="fp16", tolerance=1e-9)
    assert caught.value.exit_code == 4
    assert caught.value.error > 1e-9
    assert left_overs(tmp_path) == []


def test_an_existing_file_is_left_alone_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(OutputInUseError, match="exists already and was left alone; give another name"):
        export_onnx(small_net(), EXAMPLE, path)
    assert path.read_bytes() == b"mine"
    export_onnx(small_net(), EXAMPLE, path, overwrite=True)
    assert "Conv" in kinds(path)
    assert left_overs(tmp_path) == ["net.onnx"]


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(OutputInUseError, match="is a folder; give the name of a file"):
        export_onnx(small_net(), EXAMPLE, tmp_path, overwrite=True)


def test_outputs_that_are_no_tensors_are_refused_before_the_export(tmp_path: Path) -> None:
    class Text(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "cat"

    with pytest.raises(UsageError, match="the model returns str"):
        export_onnx(Text(), EXAMPLE, tmp_path / "net.onnx")


def test_the_operator_set_is_one_that_tensorrt_reads(exported: tuple[nn.Module, ExportReport]) -> None:
    model = onnx.load(exported[1].path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert model.ir_version == 10


def test_what_does_not_fit_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "MAX_BYTES", 1000)
    with pytest.raises(
        UsageError, match=r"one ONNX file at most 2\.1 GB; export with precision fp16, or prune"
    ):
        export_onnx(small_net(), EXAMPLE, tmp_path / "net.onnx")
    assert left_overs(tmp_path) == []


def test_an_input_that_the_model_cannot_take_is_refused_with_its_shape(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"with inputs of 1×5×8×8 and raised RuntimeError on them"):
        export_onnx(small_net(), (torch.zeros(1, 5, 8, 8),), tmp_path / "net.onnx")


def test_a_stamp_adds_to_what_the_file_says(tmp_path: Path) -> None:
    export_onnx(small_net(), EXAMPLE, tmp_path / "net.onnx", metadata={"budget": "50%"})
    stamp(tmp_path / "net.onnx", {"measured_us": "12"})
    found = read_metadata(tmp_path / "net.onnx")
    assert (found["budget"], found["measured_us"], found["precision"]) == ("50%", "12", "fp32")
    assert len(onnx_outputs(tmp_path / "net.onnx")((torch.zeros(2, 3, 8, 8),))[0]) == 2


def test_a_head_that_begins_at_zero_is_compared_with_other_weights_in_its_place(tmp_path: Path) -> None:
    head = nn.Linear(4 * 36, 5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), head)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    report = export_onnx(model, (torch.zeros(1, 3, 8, 8),), tmp_path / "net.onnx")
    assert 0 < report.rel_l2 < 1e-5  # that of zeros is 0
    run = onnx_outputs(report.path)
    assert not run((torch.ones(1, 3, 8, 8),))[0].any()  # the file has the model's own weights


def test_an_export_whose_outputs_hang_on_no_input_is_refused(tmp_path: Path) -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x) * 0 + self.layer.bias

    with pytest.raises(MismatchError, match="gives the same outputs for every input, with other weights too"):
        export_onnx(Blind(), (torch.zeros(1, 4),), tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: x + torch.randn_like(x),
        lambda x: nn.functional.dropout(x, 0.5, training=True),
        lambda x: x * float(np.random.rand()),
    ],
    ids=["noise", "dropout left on", "numpy"],
)
def test_a_network_that_draws_in_eval_mode_is_refused_and_draws_nothing_of_the_users(
    draw: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return draw(super().forward(x))

    torch.manual_seed(3)
    np.random.seed(3)
    model, before = Noisy(4, 3), torch.get_rng_state()
    with pytest.raises(UsageError, match="draws random numbers, which no other runtime draws alike"):
        export_onnx(model, (torch.zeros(2, 4),), tmp_path / "net.onnx")
    assert left_overs(tmp_path) == []
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.rand() == np.random.RandomState(3).rand()
