"""The way from PyTorch to ONNX, sessions, and one short sweep on the real runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import latency
from latency.backends.onnxruntime import OnnxRuntime
from latency.backends.onnxruntime.model import to_onnx
from latency.backends.onnxruntime.network import feeds, session
from latency.errors import UsageError
from latency.op import Op

from .fakes import conv


class Net(nn.Module):
    """Conv, norm and activation, a global mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.pool(torch.relu(self.norm(self.conv(x)))).flatten(1))
        return answer


@pytest.fixture(scope="module")
def exported() -> tuple[Net, onnx.ModelProto]:
    torch.manual_seed(0)
    model = Net()
    model(torch.randn(16, 3, 8, 8))  # running statistics other than 0 and 1
    return model, to_onnx(model, (torch.randn(1, 3, 8, 8),))


def test_an_exported_model_computes_what_pytorch_computes_at_any_batch_size(
    exported: tuple[Net, onnx.ModelProto],
) -> None:
    model, proto = exported
    run = session(proto)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 8, 8)
        with torch.no_grad():
            expected = model.eval()(x)
        (found,) = run.run(None, {"x": x.numpy()})
        assert float(np.linalg.norm(found - expected.numpy()) / np.linalg.norm(expected.numpy())) < 1e-5
    model.train()


def test_names_are_the_same_every_time_and_the_batch_is_free(exported: tuple[Net, onnx.ModelProto]) -> None:
    graph = exported[1].graph
    assert [i.name for i in graph.input] == ["x"]
    assert [o.name for o in graph.output] == ["output"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_batch_norm_is_folded_and_the_mean_is_a_pool(exported: tuple[Net, onnx.ModelProto]) -> None:
    kinds = [node.op_type for node in exported[1].graph.node]
    assert "BatchNormalization" not in kinds
    assert "ReduceMean" not in kinds
    assert kinds.count("GlobalAveragePool") == 1
    onnx.checker.check_model(exported[1], full_check=True)


def test_the_model_keeps_its_mode_and_weights(exported: tuple[Net, onnx.ModelProto]) -> None:
    model = Net().train()
    model.norm.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    to_onnx(model, (torch.randn(1, 3, 8, 8),))
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_inputs_are_called_as_the_arguments_and_outputs_without_keys_are_numbered() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return a + b, a * b

    proto = to_onnx(Two(), (torch.randn(2, 3), torch.randn(2, 3)))
    assert [i.name for i in proto.graph.input] == ["a", "b"]
    assert [o.name for o in proto.graph.output] == ["output_0", "output_1"]


def test_a_fixed_batch_is_written_where_that_is_wanted() -> None:
    proto = to_onnx(nn.Linear(3, 2), (torch.randn(4, 3),), dynamic_batch=False)
    assert [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [4, 3]


def test_the_exporter_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    to_onnx(nn.Linear(3, 2), (torch.randn(1, 3),))
    assert capfd.readouterr() == ("", "")


def test_random_inputs_fill_free_dimensions(exported: tuple[Net, onnx.ModelProto]) -> None:
    assert feeds(session(exported[1]), batch=3)["x"].shape == (3, 3, 8, 8)


def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(UsageError, match=r"broken\.onnx \(8 bytes\) was to be read as an ONNX model"):
        session(tmp_path / "broken.onnx")


def test_measuring_states_its_clock(exported: tuple[Net, onnx.ModelProto]) -> None:
    found = latency.measure(exported[0], (torch.randn(1, 3, 8, 8),), rounds=9)
    assert found.clock == "cpu"
    assert found.n >= 9
    assert 0 < found.ci_lo_us <= found.median_us <= found.ci_hi_us


def test_the_number_of_inputs_is_checked(exported: tuple[Net, onnx.ModelProto]) -> None:
    with pytest.raises(UsageError, match="2 example inputs were passed; the model reads 1"):
        latency.measure(exported[1], (torch.randn(1, 3, 8, 8), torch.randn(1)))


def test_a_short_op_is_built_with_more_copies_than_are_subtracted() -> None:
    pool = Op(kind="max_pool", c_in=8, c_out=8, h=4, w=4, kernel=(2, 2), stride=(2, 2))
    assert (OnnxRuntime().build(pool).copies, OnnxRuntime().build(conv(64, 64, h=32, w=32)).copies) == (8, 2)


@pytest.mark.slow
@pytest.mark.timing
def test_a_sweep_on_the_real_runtime_answers_for_every_width(tmp_path: Path) -> None:
    ops = [conv(3, 8, h=4, w=4), Op(kind="linear", c_in=16, c_out=4)]
    quick = latency.sweep(
        ops, path=tmp_path / "p.jsonl", precision=latency.timing.timer.Precision(n_min=5, n_max=5)
    )
    for op in ops:
        assert float(quick.table(op).lookup(op.c_in, op.c_out)) == pytest.approx(
            next(
                c["us"]
                for c in quick.cells
                if (c["op"], c["c_in"], c["c_out"], c["role"]) == (op.kind, op.c_in, op.c_out, "sweep")
            )
        )
    quick.require(latency.environment())
