"""A finished run of a small network, made without training it, and a profile of another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import halpiee
from halpiee.structure import Plan, shrink
from halpiee.structure.plan import Selection
from halpiee.training.checkpoint import save_settings, save_weights
from halpiee.training.config import Settings
from halpiee.zoo import build

from .plans import write_profile
from .separable import build as build_separable


@pytest.fixture
def finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as training leaves it: half of the channels of each group of ``toy:net``, random weights."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))
    torch.manual_seed(0)
    model = build("toy:net", num_classes=6).eval()
    structure = halpiee.trace(model, (torch.zeros(1, 3, 6, 6),))
    keep = {g.name: torch.arange(g.size) % 2 == 0 for g in structure.prunable}
    folder = tmp_path / "run"
    folder.mkdir()
    settings = Settings(model="toy:net", data="toy:data", budget="0.5", epochs=4, batch_size=12)
    save_settings(folder, settings)
    plan = Plan.from_selection(structure, Selection(keep, used=(120.0,)), model="toy:net")
    plan.save(folder / "plan.json")
    save_weights(folder / "dense.safetensors", model.state_dict())
    save_weights(folder / "pruned.safetensors", shrink(model, structure, keep).state_dict())
    report = {
        "schema": 1,
        "model": "toy:net",
        "data": "toy:data",
        "method": "iee",
        "budget": "0.5",
        "backend": "onnxruntime",
        "batch": 1,
        "threads": 1,
        "environment": {"device": "a CPU"},
        "dense_us": 250.0,
        "budget_us": 125.0,
        "predicted_us": 120.0,
        "measured_us": 123.5,
        "promise": {"met": True, "text": "measured 124 µs is 98.8% of the budget of 125 µs"},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture(autouse=True)
def separable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets ``separable:build`` be a MODEL."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def structure() -> halpiee.Structure:
    return halpiee.trace(build_separable().eval(), (torch.zeros(1, 3, 16, 16),))


@pytest.fixture(scope="session")
def profile(structure: halpiee.Structure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of ``separable:build`` as ``write_profile`` makes it."""
    return write_profile(structure, tmp_path_factory.mktemp("profile") / "one.jsonl")
