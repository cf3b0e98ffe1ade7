"""Ops and networks on OpenVINO, the real one; skipped where it is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import latency
from halpiee.deploy import Target, export_int8
from latency.backends import load
from latency.backends.onnxruntime import OnnxRuntime
from latency.backends.onnxruntime.model import to_onnx
from latency.backends.onnxruntime.ops import KINDS
from latency.errors import UsageError
from latency.op import OPS, Op

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'halpiee[openvino]'")


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 5)
    ).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_op_runs_in_both_graphs(kind: str) -> None:
    window = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)} if OPS[kind].window else {}
    places = {} if OPS[kind].rows else {"h": 6, "w": 6}
    built = load("openvino").build(Op(kind=kind, c_in=8, c_out=8, **places, **window))  # type: ignore[arg-type]
    assert built.minus is not None
    built.run()
    built.minus()


def test_a_network_computes_what_pytorch_computes_at_any_batch(model: nn.Sequential, tmp_path: Path) -> None:
    x = torch.randn(3, 3, 8, 8)
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(model, (x[:1],)).SerializeToString())
    for given in (model, path):
        with load("openvino").network(given, (x,)) as runner:
            found = runner.infer({"input": x.numpy()})
        np.testing.assert_allclose(found[0], model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_networks_of_both_runtimes_are_measured_in_turns(model: nn.Sequential) -> None:
    example = (torch.randn(1, 3, 8, 8),)
    runners = {
        "openvino": load("openvino").network(model, example),
        "ort": OnnxRuntime().network(model, example),
    }
    found = latency.compare(runners, backend="openvino", rounds=9)
    assert found["ort"].clock == "wall"
    assert all(one.median_us > 0 for one in found.values())


@pytest.mark.timing
def test_a_table_is_measured_and_says_its_runtime(tmp_path: Path) -> None:
    op = Op(kind="linear", c_in=64, c_out=64)
    profile = latency.sweep([op], backend="openvino", path=tmp_path / "p.jsonl", every=32)
    assert profile.environment["backend"] == "openvino"
    assert float(profile.table(op).lookup(64, 64)) > 0


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(UsageError, match="it is measured on the CPU in fp32 or int8; leave them out"):
        load("openvino", settings={"precision": "fp16"})
    proto = to_onnx(nn.Linear(4, 2), (torch.zeros(1, 4),))
    runner = load("openvino").network(proto, (torch.zeros(1, 5),))
    with pytest.raises(UsageError, match="OpenVINO was asked to run the model and refused"):
        runner.ready()


@pytest.mark.timing
def test_an_int8_table_prices_ops_as_their_quantised_form_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    op = Op(kind="linear", c_in=64, c_out=64, dtype="int8")
    profile = latency.sweep([op], backend="openvino", settings={"precision": "int8"}, path=path, every=32)
    assert (profile.environment["backend"], profile.environment["dtype"]) == ("openvino", "int8")
    assert float(profile.table(op).lookup(64, 64)) > 0
    target = Target.of_profile(profile)
    assert (target.backend, target.precision) == ("openvino", "int8")


def test_a_network_in_int8_runs_integer_kernels_and_a_calibrated_file_computes_the_same(
    model: nn.Sequential, tmp_path: Path
) -> None:
    x = torch.randn(3, 3, 8, 8)
    path = tmp_path / "int8.onnx"
    export_int8(model, (x[:1],), path, [x])
    with load("openvino").network(path, (x,)) as runner:
        found = runner.infer({"input": x.numpy()})[0]
    expected = model(x).detach().numpy()
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)
    with load("openvino", settings={"precision": "int8"}).network(model, (x,)) as runner:
        kinds = {str(node.get_rt_info()["runtimePrecision"].value) for node in nodes(runner)}
    assert kinds & {"i8", "u8"}


def nodes(runner: Any) -> Any:
    """The ops as OpenVINO runs them."""
    return runner._request.get_compiled_model().get_runtime_model().get_ops()
