"""Real runs of two ranks are killed and end as if they had not been; torchrun begins one as well."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.training.kill_runs import Forked, Kill, Torchrun, chain, equal, kills, one, standing, typed

# In a step, one rank; while the state is half written, the other; all of them from outside.
THREE = [Kill("in", "pruned 15", 1), Kill("half", "pruned.state"), Kill("outside", "2")]


@pytest.mark.slow  # trains a small network twice
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_three_times_ends_bit_equal(ranks: int, tmp_path: Path) -> None:
    begin, told = partial(Forked, ranks=ranks), list[str]()
    assert one(begin, "halpiee", typed("filter", tmp_path / "whole"), tmp_path / "whole") == "ended"
    chosen = [replace(kill, rank=kill.rank % ranks) for kill in THREE]
    starts = chain("filter", tmp_path / "killed", chosen, begin, told.append)
    # a kill from outside may come too late: behind the last epoch, while the run is exported
    assert starts[:2] + starts[3:] == ["killed", "killed", "ended"]
    assert starts[2] in ("killed", "ended")
    assert "goes on at pruned 10, 0 half-written" in told[0]
    assert "goes on at pruned 10, 1 half-written" in told[1]
    assert equal(tmp_path / "whole", tmp_path / "killed")


def test_kills_come_in_the_order_of_a_run_and_a_process_alone_has_rank_0(tmp_path: Path) -> None:
    events = [{"step": step} for step in (0, 10, 20, 40)]
    (tmp_path / "pruned.json").write_text(json.dumps({"events": events}))
    steps = ["before step pruned 9", "in step pruned 10", "after step pruned 10"]
    steps += ["before step pruned 19", "in step pruned 20", "after step pruned 20"]
    assert [str(kill) for kill in kills(tmp_path)[:7]] == [*steps, "from outside, after 3 epochs"]
    assert {kill.rank for kill in kills(tmp_path)} == {0, 1}
    assert {kill.rank for kill in kills(tmp_path, ranks=1)} == {0}


@pytest.mark.slow  # torchrun starts two ranks
def test_torchrun_trains_one_run_in_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*typed("iee", out), "--no-baseline", "--epochs=1", "--cycles=1"]
    assert one(Torchrun, "halpiee", words, out) == "ended"
    said = (tmp_path / "run.log").read_text()
    assert said.count("Train: 60% of weights removed") == 1
    assert standing(out) == "the end"


def test_runs_that_differ_in_one_weight_are_not_equal(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 1.0 + 1e-7)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.tensor([value, 2.0])}, tmp_path / name / "pruned.safetensors")
        history = [{"step": 1, "loss": 0.5, "accuracy": 0.5}]
        (tmp_path / name / "pruned.json").write_text(json.dumps({"history": history, "counts": {}}))
    assert equal(tmp_path / "a", tmp_path / "b")
    assert not equal(tmp_path / "a", tmp_path / "c")
    (tmp_path / "b/.pruned.json.12.1.part").write_text("")
    assert not equal(tmp_path / "a", tmp_path / "b")
