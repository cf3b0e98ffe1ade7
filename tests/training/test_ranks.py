"""Two processes train as one does, write one folder, and end together."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from halpiee.errors import UsageError
from halpiee.shared_options import Cycle
from halpiee.training.checkpoint import load_weights
from halpiee.training.config import Masks, Settings
from halpiee.training.preflight import check_ranks
from halpiee.training.ranks import ALONE, Ranks
from tests.forked import begin, end

from .test_run import write_profile

HERE = Path(__file__).parent


# One thread, measurements by formula: what is left are the masks, the weights and the files.
START = f"""
import json, os, signal, sys
from pathlib import Path
sys.path[:0] = [{str(HERE)!r}]
import torch
torch.set_num_threads(1)
from latency.predict import Calibration
from halpiee.deploy.calibrate import Round
from halpiee.training import pipeline as price, stage
from halpiee.training.config import Settings
from halpiee.training.ranks import joined
stage.pick_threads = lambda step: 1
price.calibrate = lambda *_, **__: Calibration()
stage.close_loop = lambda model, cost, example, candidate, *, budget_us, **_: (
    cost, [Round(1, cost.total_us(candidate.counts), budget_us, 0.9 * budget_us, 1.02 * budget_us, 1.0)]
)
"""

COMMAND = START + "from halpiee.cli import main\nmain(sys.argv[1:])\n"
"""The command line, on a toy."""

SEVERAL = (
    START
    + """
from halpiee.training.job import Silent
from halpiee.training.pipeline import trained
from halpiee.training.preflight import open_run
ranks = joined("cpu")
for values, folder in json.loads(sys.argv[1]):
    trained(open_run(Settings.from_dict(values), Path(folder), Silent(), ranks=ranks))
ranks.leave()
"""
)
"""Several runs, one after the other."""


def outcome(program: str, *arguments: str, said: Path, ranks: int = 2) -> list[tuple[int, str]]:
    """Returns exit code and words of every rank of a program."""
    said.mkdir()
    return end(begin(program, *arguments, said=said, ranks=ranks), said)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        return write_profile(tmp_path_factory.mktemp("profile") / "profile.jsonl", "toy:plain")


def given(**more: Any) -> Settings:
    values: dict[str, Any] = {
        "model": "toy:plain",
        "data": "toy:data",
        "epochs": 2,
        "batch_size": 12,
        "seed": 3,
    }
    return Settings(**{**values, "baseline": False, "cycle": Cycle(cycles=2, end=0.75), "rounds": 3, **more})


CASES = ("iee", "rigl", "granet", "filter", "digits")


def settings(name: str, profile: Path) -> Settings:
    """Returns the settings of a case: IEE on channels, two masks of weights, one of filters."""
    if name == "iee":
        return given(method="iee", budget="0.5", profile=str(profile))
    if name == "digits":  # whose check before training makes the method, too
        masks = Masks(sparsity=0.6, interval=3)
        return given(data="digits", size=8, epochs=1, batch_size=120, method="rigl", masks=masks)
    if name == "filter":
        return given(method="filter", masks=Masks(sparsity=0.5, criterion="taylor", rounds=2))
    return given(method=name, masks=Masks(sparsity=0.6, interval=3))


@pytest.fixture(scope="module")
def both(profile: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Number of processes → the folder of what they trained, one run for each case."""
    places = {ranks: tmp_path_factory.mktemp(f"of{ranks}") for ranks in (1, 2)}
    for ranks, place in places.items():
        runs = [[settings(name, profile).as_dict(), str(place / name)] for name in CASES]
        for code, said in outcome(SEVERAL, json.dumps(runs), said=place / "said", ranks=ranks):
            assert code == 0, said
    return places


@pytest.mark.slow  # trains ten small networks
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_choose_what_one_process_with_their_batches_together_chooses(
    name: str, both: dict[int, Path]
) -> None:
    one, two = (json.loads((both[ranks] / name / "pruned.json").read_text()) for ranks in (1, 2))
    assert [e["event"] for e in two["events"]] == [e["event"] for e in one["events"]]
    assert len(one["events"]) > 2
    for first, second in zip(one["events"], two["events"], strict=True):
        assert (first["step"], first["counts"]) == (second["step"], second["counts"])
        assert second["iou"] == pytest.approx(first["iou"])
    alone, shared = (load_weights(both[ranks] / name / "pruned.safetensors") for ranks in (1, 2))
    for key, value in alone.items():
        torch.testing.assert_close(shared[key], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(shared[key] == 0, value == 0), key
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert theirs["accuracy"] == mine["accuracy"]


KILLED = (
    START
    + """
from halpiee.cli import main
from halpiee.training.loop import Trainer
one = Trainer._one
def until(self, parts):
    if self.step == 11 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    one(self, parts)
Trainer._one = until
main(sys.argv[1:])
"""
)


def typed(profile: Path, out: Path, *more: str) -> list[str]:
    names = {
        "data": "toy:data",
        "epochs": 2,
        "batch-size": 12,
        "cycles": 2,
        "end": 0.75,
        "seed": 3,
        "method": "iee",
        "budget": 0.5,
    }
    rest = (f"--{name}={value}" for name, value in {**names, "profile": profile}.items())
    return ["train", "toy:plain", "--no-baseline", *rest, f"--out={out}", *more]


@pytest.mark.slow  # trains two small networks
def test_a_rank_that_dies_ends_the_others_in_a_sentence_and_one_process_goes_on(
    profile: Path, tmp_path: Path, both: dict[int, Path]
) -> None:
    out = tmp_path / "run"
    (first, said), (second, _) = outcome(KILLED, *typed(profile, out), said=tmp_path / "said")
    assert second == -signal.SIGKILL
    assert first == 3
    assert "halpiee: rank 0 of 2 ends: another rank of this training is gone" in said
    assert "--resume goes on from the last checkpoint" in said
    assert "Traceback" not in said
    assert torch.load(out / "pruned.state", weights_only=True)["step"] == 10
    again = ("train", "--resume", f"--out={out}")
    ((code, said),) = outcome(COMMAND, *again, said=tmp_path / "again", ranks=1)
    assert code in (0, 4), said  # 4: a toy on a busy machine keeps no promise
    assert "pruned was saved by 2 processes and goes on with 1" in said
    whole, resumed = (json.loads((f / "pruned.json").read_text()) for f in (both[2] / "iee", out))
    assert resumed["counts"] == whole["counts"]
    alone, shared = (load_weights(f / "pruned.safetensors") for f in (both[2] / "iee", out))
    for key, value in alone.items():
        torch.testing.assert_close(shared[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # one start of torch
def test_ranks_of_other_settings_end_before_training_and_leave_no_folder(
    profile: Path, tmp_path: Path
) -> None:
    other = COMMAND.replace(
        "main(sys.argv[1:])", "main([*sys.argv[1:], f\"--lr=0.{1 + int(os.environ['RANK'])}\"])"
    )
    for code, said in outcome(other, *typed(profile, tmp_path / "run"), said=tmp_path / "said"):
        assert code == 2
        assert "rank 1 of 2 trains with other settings than rank 0; start every process with the same" in said
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_among_ranks_is_refused_with_one_that_does() -> None:
    with pytest.raises(
        UsageError, match=r"--batch-size 12 was asked of 5 processes and 2 parts .* such as 20"
    ):
        check_ranks(given(budget="0.5", accumulate=2), Ranks(0, 5))


def test_what_only_the_first_rank_may_do_is_done_by_one_process_at_once() -> None:
    assert ALONE.once(lambda: 3) == 3
    assert ALONE.every("a") == ["a"]
    assert ALONE.first
