"""Real runs of two ranks are killed and end as if they had not been; torchrun begins one as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests import forked
from tests.training.kill_runs import CHAINS, Kill, Torchrun, chain, equal, one, standing, typed


class Forked:
    """Two ranks without a launcher, that find torch loaded."""

    def __init__(self, module: str, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        said = log.with_suffix(".said")
        said.mkdir(exist_ok=True)
        program = f"import sys, {module}.cli as m" if module == "halpiee" else f"import sys, {module} as m"
        self._processes = forked.begin(
            f"{program}\nsys.exit(m.main(sys.argv[1:]))", *words, said=said, environment=environment
        )

    def poll(self) -> int | None:
        codes = [process.exitcode for process in self._processes]
        return None if None in codes else max(abs(code or 0) for code in codes)

    def wait(self, seconds: float) -> int:
        for process in self._processes:
            process.join(seconds)
        code = self.poll()
        assert code is not None
        return code

    def kill(self) -> None:
        for process in self._processes:
            process.kill()


@pytest.mark.slow  # trains a small network of two ranks twice
def test_a_run_of_two_ranks_killed_three_times_ends_bit_equal(tmp_path: Path) -> None:
    """In a step, one rank; while the state is half written, the other; both from outside."""
    chosen = [Kill("in", "pruned 15", 1), Kill("half", "pruned.state"), Kill("outside", "2")]
    rows, same = chain("filter", tmp_path, chosen=chosen, begin=Forked)
    assert [row["goes on at"].partition(" ")[0] for row in rows[:2]] == ["pruned"] * 2
    assert (
        rows[2]["goes on at"] != "the end"
    )  # a kill from outside may fall after the last epoch, before the export
    assert [row["half-written"] for row in rows[:2]] == [0, 1]
    assert all(row["exit"] not in (0, 4) for row in rows)
    assert same


@pytest.mark.slow  # torchrun starts two ranks
def test_torchrun_trains_one_run_in_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*typed("iee", out), "--no-baseline", "--epochs=1", "--cycles=1"]
    assert one(Torchrun, "halpiee", words, out) in (0, 1)  # 1: torchrun's, where a rank ended with 4
    said = (tmp_path / "run.log").read_text()
    assert said.count("Train: 60% of weights removed") == 1
    assert standing(out) == "the end"


def test_runs_that_differ_in_one_weight_are_not_equal(tmp_path: Path) -> None:
    import json

    import torch
    from safetensors.torch import save_file

    for name, value in (("a", 1.0), ("b", 1.0), ("c", 1.0 + 1e-7)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.tensor([value, 2.0])}, tmp_path / name / "pruned.safetensors")
        history = [{"step": 1, "loss": 0.5, "accuracy": 0.5}]
        (tmp_path / name / "pruned.json").write_text(json.dumps({"history": history, "counts": {}}))
    assert equal(tmp_path / "a", tmp_path / "b")
    assert not equal(tmp_path / "a", tmp_path / "c")
    (tmp_path / "b/.pruned.json.12.1.part").write_text("")
    assert not equal(tmp_path / "a", tmp_path / "b")
    assert set(CHAINS) == {"iee", "filter"}
