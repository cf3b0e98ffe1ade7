"""Two processes train as one does, write one folder, and end together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from halpiee.training.checkpoint import load_weights

from .test_run import write_profile

HERE = Path(__file__).parent

# One thread, measurements by formula: what is left are the masks, the weights and the files.
START = f"""
import sys, os, signal
sys.path[:0] = [{str(HERE)!r}]
import torch
torch.set_num_threads(1)
from latency.timing.benchmark import Comparison
from latency.predict import Calibration
from halpiee.deploy import target
from halpiee.deploy.calibrate import Round
from halpiee.training import price, stage
stage.pick_threads = lambda step: 1
price.calibrate = lambda *_, **__: Calibration()
stage.close_loop = lambda model, cost, example, candidate, *, budget_us, **_: (
    cost, [Round(1, cost.total_us(candidate.counts), budget_us, 0.9 * budget_us, 1.02 * budget_us, 1.0)]
)
"""
TRAIN = START + "from halpiee.cli import main\nmain(sys.argv[1:])\n"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        return write_profile(tmp_path_factory.mktemp("profile") / "profile.jsonl", "toy:plain")


@dataclass
class Ended:
    """What the processes of a training came to."""

    codes: list[int]
    said: list[str]


def begin(arguments: Sequence[str], ranks: int, program: str = TRAIN) -> list[subprocess.Popen[str]]:
    """Starts the processes as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]


def end(processes: Sequence[subprocess.Popen[str]]) -> Ended:
    said = [process.communicate(timeout=500)[1] for process in processes]
    return Ended([process.returncode for process in processes], said)


def train(*arguments: str, ranks: int) -> Ended:
    return end(begin(arguments, ranks))


def options(profile: Path, out: Path, **more: Any) -> list[str]:
    given = {"data": "toy:data", "epochs": 2, "batch-size": 12, "out": out, "cycles": 2, "seed": 3, **more}
    if "sparsity" not in given:
        given = {"budget": 0.5, "profile": profile, **given}
    return ["train", "toy:plain", "--no-baseline", *(f"--{key}={value}" for key, value in given.items())]


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "pruned.json").read_text())
    return found


CASES: dict[str, dict[str, Any]] = {
    "iee": {},
    "rigl": {"method": "rigl", "sparsity": 0.5, "interval": 3},
    "granet": {"method": "granet", "sparsity": 0.6, "interval": 3},
    "filter": {"method": "filter", "sparsity": 0.5, "criterion": "taylor", "rounds": 2},
}


@pytest.mark.slow  # three processes that each load torch
@pytest.mark.parametrize("name", list(CASES))
def test_two_ranks_choose_what_one_process_with_their_batches_together_chooses(
    name: str, profile: Path, tmp_path: Path
) -> None:
    for ranks in (1, 2):
        ended = train(*options(profile, tmp_path / str(ranks), **CASES[name]), ranks=ranks)
        assert set(ended.codes) <= {0, 4}, ended.said  # 4: the clock of a toy keeps no promise
    one, two = (result(tmp_path / str(ranks)) for ranks in (1, 2))
    assert [e["event"] for e in two["events"]] == [e["event"] for e in one["events"]]
    assert len(one["events"]) > 2
    for first, second in zip(one["events"], two["events"], strict=True):
        assert (first["step"], first["counts"]) == (second["step"], second["counts"])
        assert second["iou"] == pytest.approx(first["iou"])
    alone, both = (load_weights(tmp_path / str(ranks) / "pruned.safetensors") for ranks in (1, 2))
    for key, value in alone.items():
        torch.testing.assert_close(both[key], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(both[key] == 0, value == 0), key
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert theirs["accuracy"] == mine["accuracy"]
