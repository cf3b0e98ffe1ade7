"""Training to a latency of TensorRT: ops and whole networks are engines, on a stand-in whose times are a formula."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import latency
from halpiee.cli.app import program
from halpiee.deploy.target import Target
from halpiee.selection.options import fixed_sides
from halpiee.shared_options import Cycle
from halpiee.structure import trace
from halpiee.training import pipeline, stage
from halpiee.training.config import Settings
from halpiee.training.preflight import open_run
from halpiee.zoo import build
from tests.training.talk import Quiet, one_thread

from .conftest import installed
from .gpu import GRAPH_US

TRAINING = Path(__file__).parents[1] / "training"


def engine_us(plan: dict[str, Any]) -> float:
    """Convolutions and linear layers take 4 + 0.5 · c_in · c_out µs each, all else 1 µs for an engine of its own."""
    if plan["onnx"]:
        import onnx

        graph = onnx.load_from_string(base64.b64decode(plan["onnx"])).graph
        shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        found = [shapes[node.input[1]] for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        return sum(4 + 0.5 * float(shape[0] * shape[1]) for shape in found)
    if not any("conv" in layer or "linear" in layer for layer in plan["layers"]):
        return 1.0
    (*_, given), (*_, made) = plan["io"][0], plan["io"][-1]
    return 4 + 0.5 * int(given[1]) * int(made[1])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    machine = installed(11, "cuda-python", monkeypatch)
    machine.told.us, machine.told.computes = engine_us, False
    monkeypatch.setattr(stage, "pick_threads", one_thread)
    monkeypatch.syspath_prepend(str(TRAINING))
    return machine


def settings(**other: Any) -> Settings:
    return Settings(
        model="toy:net", data="toy:data", budget="0.6", method="iee", epochs=4, batch_size=12, rounds=9,
        baseline=False, cycle=Cycle(cycles=3, end=0.75), **other,
    )  # fmt: skip


def profiled(path: Path, target: Target) -> Path:
    structure = target.of(trace(build("toy:net", num_classes=6), (torch.zeros(1, 3, 6, 6),)))
    ops = [timed.op for timed in structure.ops]
    latency.sweep(
        ops,
        backend=target.backend,
        settings=target.keeping(path).settings,
        fixed=fixed_sides(structure),
        path=path,
    )
    return path


def us_of_widths(widths: dict[str, int]) -> float:
    """µs of the whole network with these channels: the graph, two convolutions and the linear layer."""
    a, b = widths["conv1"], widths["conv2"]
    return GRAPH_US + 12 + 0.5 * (3 * a + a * b + 6 * b)


@pytest.mark.slow  # trains, exports and times a small network
@pytest.mark.parametrize("way", ["profile", "backend"])
def test_a_training_ends_within_the_latency_that_engines_take(gpu: Any, way: str, tmp_path: Path) -> None:
    given = settings(backend="tensorrt")
    if way == "profile":
        asked = Target("tensorrt", precision="fp16", options={"level": 5})
        given = settings(profile=str(profiled(tmp_path / "trt.jsonl", asked)))
    run = open_run(given, tmp_path / "run", Quiet())
    del gpu.told.levels[:]
    report = pipeline.execute(run)
    dense_us, widths = us_of_widths({"conv1": 8, "conv2": 12}), report["widths"]
    pruned_us = us_of_widths(widths)
    assert report["dense_us"] == pytest.approx(dense_us, rel=1e-6)
    assert report["measured_us"] == pytest.approx(pruned_us, rel=1e-6)
    assert pruned_us <= 1.02 * 0.6 * dense_us
    assert report["promise"]["met"]
    level, dtype = (5, "float16") if way == "profile" else (3, "float32")
    assert set(gpu.told.levels) == {level}
    assert (report["backend"], report["precision"]) == ("tensorrt", dtype)
    assert report["environment"]["optimization"] == f"level {level}"


@pytest.mark.slow
def test_the_sum_of_ops_is_fitted_to_whole_engines(gpu: Any, tmp_path: Path) -> None:
    """Whole engines cost a graph's entry more than their ops, and what stands alone in the table costs nothing."""
    run = open_run(settings(backend="tensorrt"), tmp_path / "run", Quiet())
    cost = pipeline.priced(run)
    assert cost.calibration is not None
    assert cost.dense_us == pytest.approx(us_of_widths({"conv1": 8, "conv2": 12}), rel=1e-6)
    for counts in ({"conv1": 2, "conv2": 3}, {"conv1": 5, "conv2": 12}, {"conv1": 8, "conv2": 6}):
        assert cost.total_us(counts) == pytest.approx(us_of_widths(counts), rel=0.05)


def test_engines_of_a_run_are_built_as_its_profile_says_and_keep_what_they_learn_in_its_folder(
    gpu: Any, tmp_path: Path
) -> None:
    asked = Target("tensorrt", precision="fp16", options={"level": 4})
    path = profiled(tmp_path / "trt.jsonl", asked)
    backend = asked.keeping(path).opened()
    backend.build(latency.Op(kind="linear", c_in=4, c_out=4, dtype="float16"))
    backend.builder.cache.save()  # type: ignore[attr-defined]
    learnt = (tmp_path / "trt.jsonl.timing").read_bytes()
    run = open_run(settings(profile=str(path)), tmp_path / "run", Quiet())
    assert (run.target.precision, run.target.options["level"]) == ("fp16", 4)
    kept = run.target.options["timing_cache"]
    assert kept.parent == tmp_path / "run"
    assert kept.read_bytes() == learnt
    del gpu.told.caches[:], gpu.told.levels[:]
    with run.target.ready(run.build().eval(), run.example):
        pass
    assert gpu.told.caches == [learnt]
    assert gpu.told.levels == [4]


def test_the_installed_command_profiles_with_tensorrt_on_the_gpu_that_is_named(
    gpu: Any, tmp_path: Path
) -> None:
    gpu.gpu.devices = 2
    out = tmp_path / "trt.jsonl"
    words = [
        "--backend",
        "tensorrt",
        "--device",
        "cuda:1",
        "--precision",
        "fp16",
        "--out",
        str(out),
        "--json",
    ]
    done = CliRunner().invoke(program, ["profile", "toy:net", "--size", "6", "--classes", "6", *words])
    assert done.exception is None, done.exception
    facts = latency.Profile.load(out).environment
    assert (facts["backend"], facts["dtype"], facts["optimization"]) == ("tensorrt", "float16", "level 3")
    refused = CliRunner().invoke(
        program, ["profile", "toy:net", "--size", "6", *words[:3], "cuda:2", *words[4:]]
    )
    assert "GPU 2 was asked for, and this machine has 2" in str(refused.exception)
