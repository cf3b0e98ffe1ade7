"""The curve of other budgets is that of the best selections, found here by trying all of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import halpiee
import latency
from halpiee.structure import Plan
from halpiee.structure.plan import Selection
from halpiee.training.checkpoint import save_json, save_weights
from halpiee.training.config import Settings
from halpiee.training.job import Run
from halpiee.training.results import SHARES, curve
from halpiee.zoo import build


def us(a: int, b: int) -> float:
    """conv1 3→a, conv2 a→b, fc b→6: 4 + 0.25 · c_in · c_out each; the pool 1 + 0.1 · b."""
    return 3 * 4 + 0.25 * (3 * a + a * b + b * 6) + 1 + 0.1 * b


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    torch.manual_seed(0)
    model: Any = build("toy:net", num_classes=6).eval()
    model.bn1.weight.data.uniform_(0.1, 1)
    model.bn2.weight.data.uniform_(0.1, 1)
    structure = halpiee.trace(model, (torch.zeros(1, 3, 6, 6),))
    cells = []
    for timed in structure.ops:
        op = timed.op
        widths = [(i, o) for i in range(1, op.c_in + 1) for o in range(1, op.c_out + 1)]
        if op.kind not in ("conv", "linear"):
            widths = [(c, c) for c in range(1, op.c_out + 1)]
        for i, o in widths:
            cost = 4 + 0.25 * i * o if op.kind in ("conv", "linear") else 1 + 0.1 * o
            cells.append({**op.with_channels(i, o).key(), "us": cost})
    latency.Profile(latency.environment(), cells).save(tmp_path / "profile.jsonl")
    keep = {g.name: torch.arange(g.size) < g.size // 2 for g in structure.prunable}
    Plan.from_selection(structure, Selection(keep, (1.0,))).save(tmp_path / "plan.json")
    save_weights(tmp_path / "dense.safetensors", model.state_dict())
    settings = Settings(
        model="toy:net", data="toy:data", budget="0.5", epochs=4, batch_size=12,
        profile=str(tmp_path / "profile.jsonl"),
    )  # fmt: skip
    return Run(settings, tmp_path, SimpleNamespace(stage=print, note=print)), model


def test_every_point_keeps_the_most_that_its_budget_allows(run: Any) -> None:
    made, model = run
    found = curve(made)
    first = model.bn1.weight.detach().abs().sort(descending=True).values.cumsum(0).double()
    second = model.bn2.weight.detach().abs().sort(descending=True).values.cumsum(0).double()
    total = float(first[-1] + second[-1])
    options = [
        (us(a, b) / us(8, 12), float(first[a - 1] + second[b - 1]) / total)
        for a, b in itertools.product(range(1, 9), range(1, 13))
    ]
    reachable = [share for share in SHARES if share >= us(1, 1) / us(8, 12)]
    assert len(found["points"]) == len(reachable)
    for share, point in zip(reachable, found["points"], strict=True):
        assert point["share"] <= share * (1 + 1e-9)
        best = max(kept for cost, kept in options if cost <= share * (1 + 1e-9))
        assert best * (1 - 1e-3) <= point["kept"] <= best * (1 + 1e-6)
    # The run keeps the first halves: 4 of 8 and 6 of 12.
    kept = float((model.bn1.weight[:4].sum() + model.bn2.weight[:6].sum()).detach()) / total
    assert found["run"]["share"] == pytest.approx(us(4, 6) / us(8, 12))
    assert found["run"]["kept"] == pytest.approx(kept)


def test_the_calibration_of_the_run_moves_the_shares(run: Any) -> None:
    made, _ = run
    save_json(made.folder / "calibration.json", {"a_us": 10.0, "b": 2.0, "points": []})
    assert curve(made)["run"]["share"] == pytest.approx((10 + 2 * us(4, 6)) / (10 + 2 * us(8, 12)))


def test_without_a_trained_dense_network_or_a_profile_the_reason_is_given(run: Any) -> None:
    made, _ = run
    (made.folder / "profile.jsonl").unlink()
    assert "profile.jsonl" in curve(made)["skipped"]
    (made.folder / "dense.safetensors").unlink()
    assert curve(made) == {"skipped": "the run has no trained dense network that channels could be scored on"}
