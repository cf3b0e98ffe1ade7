"""Engines from ONNX files, on the stand-in, which computes what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper

from halpiee.deploy.tensorrt import Batches, build_engine, trtexec_line
from halpiee.errors import MismatchError, MissingError, OutputInUseError, UsageError
from latency.backends.tensorrt.builder import Settings
from latency.backends.tensorrt.engine import read_engine, sidecar


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """y = relu(x) · w, with a free batch."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 2], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    nodes = [helper.make_node("Relu", ["input"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["output"])]
    x = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "small", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(tmp_path / "small.onnx"))
    return tmp_path / "small.onnx"


def test_an_engine_is_compared_written_and_kept_while_it_fits(machine: SimpleNamespace, file: Path) -> None:
    out = file.with_name("small.engine")
    found = build_engine(file, out, batches=Batches(1, 2, 4))
    assert (found.built, found.why, found.rel_l2, found.batches) == (True, "new", 0.0, (1, 2, 4))
    assert found.device == "Imagined GPU"
    again = build_engine(file, out, batches=Batches(1, 2, 4))
    assert (again.built, again.why) == (False, "fits")


@pytest.mark.parametrize("change", ["version", "gpu", "onnx", "plan"])
def test_an_engine_that_does_not_fit_is_built_again(
    machine: SimpleNamespace, file: Path, change: str
) -> None:
    out = file.with_name("small.engine")
    build_engine(file, out)
    if change == "version":
        machine.trt.__version__ = "10.99.0"
    elif change == "gpu":
        machine.gpu.name = "Another GPU"
    elif change == "onnx":
        model = onnx.load(str(file))
        model.producer_name = "another"
        onnx.save(model, str(file))
    else:
        out.write_bytes(b"torn")
    found = build_engine(file, out)
    why = {"version": "another tensorrt", "gpu": "another device", "onnx": "another onnx_sha256"}
    assert (found.built, found.why) == (True, why.get(change, "not built here"))
    assert build_engine(file, out).why == "fits"


def test_an_engine_that_computes_something_else_is_not_written(machine: SimpleNamespace, file: Path) -> None:
    machine.told.error = 0.5
    out = file.with_name("small.engine")
    with pytest.raises(MismatchError, match="was not written: the engine differs"):
        build_engine(file, out)
    assert not out.exists()


def test_a_file_that_is_no_engine_of_ours_is_left_alone(machine: SimpleNamespace, file: Path) -> None:
    out = file.with_name("small.engine")
    out.write_bytes(b"something")
    with pytest.raises(OutputInUseError, match="nothing is overwritten"):
        build_engine(file, out)
    assert out.read_bytes() == b"something"


def test_only_engines_built_here_are_read(
    machine: SimpleNamespace, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = file.with_name("small.engine")
    build_engine(file, out)
    plan = read_engine(out)
    stated = sidecar(out).read_text()
    sidecar(out).write_text(stated.replace("Imagined", "Forged"))
    with pytest.raises(UsageError, match="--trust-engine"):
        read_engine(out)
    assert read_engine(out, trust=True) == plan
    sidecar(out).write_text(stated)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another user"))
    with pytest.raises(UsageError, match="not built by halpiee here"):
        read_engine(out)


def test_what_the_parser_complains_of_is_said(machine: SimpleNamespace, file: Path) -> None:
    machine.told.unreadable = "no importer for op Wobble"
    with pytest.raises(UsageError, match="cannot read it: no importer for op Wobble"):
        build_engine(file, file.with_name("small.engine"))


def test_no_gpu_is_an_error_with_a_next_step(machine: SimpleNamespace, file: Path) -> None:
    machine.gpu.devices = 0
    with pytest.raises(MissingError, match="nvidia-smi"):
        build_engine(file, file.with_name("small.engine"))


def test_sparse_weights_are_used_where_asked(machine: SimpleNamespace, file: Path) -> None:
    build_engine(file, file.with_name("a.engine"))
    assert machine.told.flags["SPARSE_WEIGHTS"] is False
    build_engine(file, file.with_name("b.engine"), settings=Settings(sparse=True))
    assert machine.told.flags["SPARSE_WEIGHTS"] is True


def test_the_trtexec_line_says_the_same() -> None:
    line = trtexec_line(
        Path("a.onnx"),
        Path("a.engine"),
        shapes={"input": Batches(1, 8, 32).of_one((3, 4, 5))},
        settings=Settings(level=4),
    )
    assert line == (
        "trtexec --onnx=a.onnx --saveEngine=a.engine --stronglyTyped --minShapes=input:1x3x4x5 "
        "--optShapes=input:8x3x4x5 --maxShapes=input:32x3x4x5 --builderOptimizationLevel=4 --avgTiming=8 "
        "--maxAuxStreams=0 --timingCacheFile=a.engine.timing --noTF32 --useCudaGraph --noDataTransfers --useSpinWait "
        "--separateProfileRun"
    )


def test_the_trtexec_line_names_every_input_with_an_open_batch_and_no_other() -> None:
    shapes: dict[str, list[tuple[int, ...]]] = {
        "image": [(1, 3, 8, 8), (4, 3, 8, 8), (9, 3, 8, 8)],
        "ids": [(1, 7), (4, 7), (9, 7)],
    }
    words = trtexec_line(Path("a.onnx"), Path("a.engine"), shapes=shapes, settings=Settings()).split()
    found = [word for word in words if "Shapes=" in word]
    assert found == [
        "--minShapes=image:1x3x8x8,ids:1x7",
        "--optShapes=image:4x3x8x8,ids:4x7",
        "--maxShapes=image:9x3x8x8,ids:9x7",
    ]
    fixed = trtexec_line(Path("a.onnx"), Path("a.engine"), shapes={}, settings=Settings())
    assert "Shapes" not in fixed


@pytest.mark.parametrize("text", ["0", "4:2:8", "a", "1:2"])
def test_batches_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="smallest:usual:largest"):
        Batches.of(text)
