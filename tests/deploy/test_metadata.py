"""A file from one's own loop says what a run's file says: plan, budget, prediction, measurement, device."""

from pathlib import Path

import torch
from torch import nn

import halpiee
from halpiee.deploy import export_onnx, metadata_of, stamp
from halpiee.structure.plan import Selection
from latency import Profile
from latency.backends.onnxruntime.model import read_metadata


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def test_plan_budget_prediction_and_measurement_stand_in_the_file(tmp_path: Path) -> None:
    example = (torch.zeros(1, 3, 8, 8),)
    structure = halpiee.trace(net(), example)
    first, last = (timed.op for timed in structure.ops)
    cells = [
        {**op.key(), "c_in": i, "c_out": o, "us": 2.0 * i * o, "role": "sweep"}
        for op, ins, outs in ((first, (3,), (4, 8)), (last, (4, 8), (4,)))
        for i in ins
        for o in outs
    ]
    facts = {"device": "a CPU", "backend": "onnxruntime", "dtype": "float32", "threads": 1}
    cost = halpiee.LatencyCost(structure, Profile(facts, cells))
    keep = {group.name: torch.arange(group.size) < 4 for group in structure.prunable}
    plan = halpiee.Plan.from_selection(structure, Selection(keep), budget_us=60.0)
    plan.save(tmp_path / "plan.json")

    said = metadata_of(plan, cost)
    import hashlib

    assert said == {
        "budget_us": "60",
        "plan_sha256": hashlib.sha256((tmp_path / "plan.json").read_bytes()).hexdigest(),
        "device": "a CPU",
        "backend": "onnxruntime",
        "batch": "1",
        "threads": "1",
        "predicted_us": "56",  # 2·3·4 + 2·4·4
        "dense_us": "112",  # 2·3·8 + 2·8·4
    }
    assert "predicted_us" not in metadata_of(plan, cost, measured_us=57.0, precision="int8")
    path = export_onnx(plan.apply(net()), example, tmp_path / "small.onnx", metadata=said).path
    stamp(path, {"measured_us": 57.25})
    assert read_metadata(path).items() >= {**said, "measured_us": "57.25"}.items()
