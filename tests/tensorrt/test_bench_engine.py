"""The script that times engines on a target: times by closed form, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from latency.backends.tensorrt.engine import write_engine
from tools import bench_engine

from .gpu import GRAPH_US, LAUNCH_US
from .running import LAYER_US


@pytest.fixture
def engines(machine: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two engines, of four layers and of two; both take batches of 1 to 8."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    paths = []
    for name, layers in (("dense", 4), ("pruned", 2)):
        plan = {
            "version": machine.trt.__version__,
            "gpu": machine.gpu.name,
            "layers": [f"layer{i}" for i in range(layers)],
            "io": [["x", "INPUT", "FLOAT", [-1, 3]], ["y", "OUTPUT", "FLOAT", [-1, 2]]],
            "profile": {"x": [[1, 3], [1, 3], [8, 3]]},
            "onnx": None,
        }
        path = tmp_path / f"{name}.engine"
        write_engine(path, json.dumps(plan).encode(), {})
        paths.append(str(path))
    return paths


def test_graph_replays_or_launches_are_timed(
    machine: SimpleNamespace, engines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_engine.main([*engines, "--batch", "4", "--json", "--rounds", "12"]) == 0
    found = json.loads(capsys.readouterr().out)
    entry = GRAPH_US if machine.library == "cuda-python" else LAUNCH_US
    assert found["graph"] is (machine.library == "cuda-python")
    dense, pruned = found["engines"]
    assert dense["median_us"] == pytest.approx(entry + 4 * LAYER_US)
    assert pruned["fps"] == pytest.approx(4e6 / (entry + 2 * LAYER_US))
    assert pruned["speedup"] == pytest.approx((entry + 4 * LAYER_US) / (entry + 2 * LAYER_US))


def test_layers_are_told_by_the_profiler(
    machine: SimpleNamespace, engines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_engine.main([engines[1], "--layers", "--json", "--rounds", "9"]) == 0
    [row] = json.loads(capsys.readouterr().out)["engines"]
    assert row["layers_us"] == pytest.approx({"layer0": LAYER_US, "layer1": LAYER_US})


def test_a_batch_beyond_the_engine_is_refused(engines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_engine.main([*engines, "--batch", "9"]) == 2
    assert "lies outside what the engine was built for" in capsys.readouterr().err


def test_an_engine_of_unknown_origin_is_not_loaded(
    engines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.engine"
    foreign.write_bytes(Path(engines[0]).read_bytes())
    assert bench_engine.main([str(foreign)]) == 2
    assert "or --trust-engine" in capsys.readouterr().err
    assert bench_engine.main([str(foreign), "--trust-engine", "--rounds", "9"]) == 0


def test_an_engine_of_another_gpu_is_said(
    machine: SimpleNamespace, engines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    machine.gpu.name = "Another GPU"
    assert bench_engine.main(engines) == 2
    assert "belongs to another version or GPU" in capsys.readouterr().err


def test_neither_torch_nor_halpiee_nor_onnx_is_imported() -> None:
    command = (
        "import sys; import tools.bench_engine, latency.backends.tensorrt; "
        "assert not {'torch', 'halpiee', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", command], cwd=root, check=True)


def test_bench_times_engines_beside_each_other_and_trusts_none_of_unknown_origin(
    machine: SimpleNamespace, engines: list[str], tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from halpiee.cli.app import program
    from halpiee.errors import UsageError

    shown = CliRunner().invoke(program, ["bench", *engines, "--batch", "4", "--rounds", "9", "--json"])
    assert shown.exception is None, shown.exception
    rows = json.loads(shown.stdout)["files"]
    assert [(row["name"], row["runtime"], row["batch"]) for row in rows] == [
        ("dense.engine", "tensorrt", 4),
        ("pruned.engine", "tensorrt", 4),
    ]
    foreign = tmp_path / "foreign.engine"
    foreign.write_bytes(Path(engines[0]).read_bytes())
    refused = CliRunner().invoke(program, ["bench", str(foreign)])
    assert isinstance(refused.exception, UsageError)
    assert "--trust-engine" in str(refused.exception)
    assert (
        CliRunner().invoke(program, ["bench", str(foreign), "--trust-engine", "--rounds", "9"]).exit_code == 0
    )
