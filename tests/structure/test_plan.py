"""A plan cuts a fresh model in a new process to the same network; what does not fit is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from halpiee import zoo
from halpiee.errors import OutputInUseError, StructureError
from halpiee.structure import Plan, shrink, trace
from halpiee.structure.plan import runs, spelled

from . import nets

APPLY = """
import sys, torch
from safetensors.torch import load_file, save_file
from halpiee import zoo
from halpiee.structure.plan import Plan
folder = sys.argv[1]
plan = Plan.load(folder + "/plan.json")
model = plan.apply(zoo.build(plan.model, **plan.arguments)).eval()
model.load_state_dict(load_file(folder + "/weights.safetensors"))
with torch.no_grad():
    save_file({"y": model(torch.ones(2, 3, 8, 8))}, folder + "/y.safetensors")
"""


def chosen(keep: dict[str, torch.Tensor]) -> Any:
    return SimpleNamespace(keep=keep, latency_us=120.5, upper_bound=3.25, gap=0.0004)


def test_a_new_process_rebuilds_the_pruned_network_from_plan_and_weights(tmp_path: Path) -> None:
    arguments = {"width": 0.25, "num_classes": 4}
    model = nets.randomise(zoo.build("resnet20", **arguments)).eval()
    structure = trace(model, (torch.zeros(1, 3, 8, 8),))
    keep = nets.random_keep(structure, 5)
    compact = shrink(model, structure, keep)
    plan = Plan.from_selection(structure, chosen(keep), model="resnet20", arguments=arguments, budget_us=130)
    plan.save(tmp_path / "plan.json")
    save_file(compact.state_dict(), tmp_path / "weights.safetensors")
    subprocess.run([sys.executable, "-c", APPLY, str(tmp_path)], check=True, capture_output=True)
    with torch.no_grad():
        assert torch.equal(load_file(tmp_path / "y.safetensors")["y"], compact(torch.ones(2, 3, 8, 8)))


def test_the_file_gives_back_the_plan(tmp_path: Path) -> None:
    structure = trace(nets.Residual(), (torch.zeros(nets.IMAGE),))
    keep = {"stem": torch.tensor([True, False, True, True, False, False, False, True])}
    plan = Plan.from_selection(structure, chosen(keep), model="here:net", budget_us=130)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.counts == {"stem": 4, "conv1": 6}
    assert torch.equal(loaded.keep["stem"], keep["stem"])
    assert (loaded.latency_us, loaded.budget_us, loaded.upper_bound, loaded.gap) == (120.5, 130, 3.25, 0.0004)


def test_the_file_is_json_with_kept_units_and_a_schema(tmp_path: Path) -> None:
    structure = trace(nets.Residual(), (torch.zeros(nets.IMAGE),))
    keep = {"conv1": torch.tensor([False, True, False, False, False, True])}
    Plan.from_selection(structure, chosen(keep)).save(tmp_path / "plan.json")
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["schema"] == 1
    assert {"name": "conv1", "start": 9, "size": 6, "kept": [1, 5]} in record["groups"]
    assert record["shapes"]["conv1.weight"] == [6, 8, 3, 3]


@pytest.mark.parametrize("name", nets.PRUNED)
def test_applying_a_plan_is_shrinking(name: str, tmp_path: Path) -> None:
    builder, shape = nets.PRUNED[name]
    model = nets.randomise(builder()).eval()
    x = torch.ones(shape)
    structure = trace(model, (x,))
    keep = nets.random_keep(structure, 2)
    Plan.from_selection(structure, chosen(keep)).save(tmp_path / "plan.json")
    planned = Plan.load(tmp_path / "plan.json").apply(model).state_dict()
    expected = shrink(model, structure, keep).state_dict()
    assert planned.keys() == expected.keys()
    assert all(torch.equal(planned[key], value) for key, value in expected.items())


def test_another_model_is_refused_by_layer(tmp_path: Path) -> None:
    structure = trace(nets.Residual(), (torch.zeros(nets.IMAGE),))
    plan = Plan.from_selection(structure, chosen({}))
    other = nets.Residual()
    other.conv2 = torch.nn.Conv2d(6, 8, 1)
    with pytest.raises(
        StructureError, match=r"the layer 'conv2' does not fit: .* was \[8, 6, 3, 3\] when traced"
    ):
        plan.apply(other)


def test_a_plan_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    structure = trace(nets.Residual(), (torch.zeros(nets.IMAGE),))
    plan = Plan.from_selection(structure, chosen({}))
    plan.save(tmp_path / "plan.json")
    with pytest.raises(OutputInUseError, match="exists already and was left alone; give another name"):
        plan.save(tmp_path / "plan.json")
    plan.save(tmp_path / "plan.json", overwrite=True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "is not JSON"),
        ("[]", "has schema 'list'"),
        ('{"schema": 7}', "has schema 7, this version reads 1"),
        ('{"schema": 1, "groups": []}', "lacks the field 'n_units'"),
        ('{"schema": 1, "extra": []}', "lacks or adds a field"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(text: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(StructureError, match=found):
        Plan.load(tmp_path / "plan.json")


def test_a_plan_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match=r"nothing\.json cannot be read \(No such file or directory\)"):
        Plan.load(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "values", [[], [4], [3, 4, 5, 6], [2, 2, 2, 5, 5, 5], [0, 0, 0], [-1, -1, 7, 8, 3, 3, 9]]
)
def test_runs_spell_the_array(values: list[int]) -> None:
    import numpy as np

    array = np.array(values, dtype=np.int64)
    assert spelled(runs(array)).tolist() == values


def test_a_plan_says_which_inputs_it_was_made_for_and_older_files_load_without(tmp_path: Path) -> None:
    structure = trace(nets.Residual(), (torch.zeros(2, *nets.IMAGE[1:]),))
    plan = Plan.from_selection(structure, chosen({}))
    assert plan.inputs == [list(nets.IMAGE[1:])]
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").image == tuple(nets.IMAGE[1:])
    record = json.loads((tmp_path / "plan.json").read_text())
    del record["inputs"]
    (tmp_path / "older.json").write_text(json.dumps(record))
    assert Plan.load(tmp_path / "older.json").image is None
