"""Kernel times find the layers they belong to, and are what the profiler said."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from halpiee.deploy.calibrate import layer_times, side_by_side
from halpiee.deploy.onnx import export_onnx
from latency.backends.onnxruntime.network import session


class Net(nn.Module):
    """Convolutions with a residual, a depthwise one, a norm in front, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1))
        self.late = nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(x + self.body(x))
        x = torch.relu(self.late(x))
        return self.head(torch.sigmoid(self.depth(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layers") / "net.onnx"
    export_onnx(Net().eval(), (torch.zeros(1, 3, 8, 8),), path)
    return path


def test_every_layer_has_its_time_under_its_own_name(path: Path) -> None:
    found = layer_times({"net": path}, batch=2, runs=3)["net"]
    assert {"stem", "body.0", "body.2", "depth", "head"} <= set(found)
    others = {name for name in found if name not in ("stem", "body.0", "body.2", "late", "depth", "head")}
    assert all(name.startswith("(") for name in others)
    assert all(us >= 0 for us in found.values())


def test_a_time_is_the_median_over_the_runs_that_count_of_what_the_profiler_wrote(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("halpiee.deploy.calibrate")  # the name in the package is its function
    monkeypatch.setattr(module, "WARM_UP", 1)
    names = [n.output[0] for n in onnx.load(path).graph.node if n.op_type == "Conv"][:1]
    runs = [900, 10, 30, 20]  # the first warms up; two changes of layout each

    class Profiled:
        def run(self, *_: object) -> None: ...

        def end_profiling(self) -> str:
            events = []
            for us in runs:
                events += [
                    event("ReorderInput", 4),
                    event(f"{names[0]}_nchwc", us),
                    event("ReorderInput", us / 10),
                ]
            file = path.with_suffix(".profile")
            file.write_text(json.dumps([*events, {"cat": "Session", "name": "model_run", "dur": 9}]))
            return str(file)

    def event(name: str, us: float) -> dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": {"op_name": "Op"}}

    monkeypatch.setattr(module, "session", lambda *_, **__: Profiled())
    monkeypatch.setattr(module, "feeds", lambda *_, **__: {})
    assert layer_times({"net": path}, runs=3)["net"] == {"(Op)": 4 + 2.0, "stem": 20.0}


def test_a_layer_that_is_gone_takes_nothing_and_ops_come_last() -> None:
    times = {
        "dense": {"conv1": 5.0, "(Pool)": 1.0, "conv2": 7.0},
        "pruned": {"(Pool)": 1.5, "conv2": 2.0, "(New)": 3.0},
    }
    assert side_by_side(times) == [
        {"layer": "conv1", "dense_us": 5.0, "pruned_us": 0.0},
        {"layer": "conv2", "dense_us": 7.0, "pruned_us": 2.0},
        {"layer": "(Pool)", "dense_us": 1.0, "pruned_us": 1.5},
        {"layer": "(New)", "dense_us": 0.0, "pruned_us": 3.0},
    ]


def test_nothing_is_left_where_one_stands(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layer_times({"net": path}, runs=1)
    session(path)
    assert list(tmp_path.iterdir()) == []
