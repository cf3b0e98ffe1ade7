"""What the tests of a run are told by it."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch

from halpiee.training.job import Run
from halpiee.training.pipeline import Dense, pruning_of
from halpiee.training.pipeline import trained as trainings
from halpiee.training.stage import do
from halpiee.training.to_sparsity import retrain_of


class Quiet:
    """Prints nothing and keeps the notes; interrupts a training at a step when told."""

    def __init__(self, at: tuple[str, int] | None = None) -> None:
        self.at, self.notes = at, list[str]()
        self.figures: set[str] = set()

    def stage(self, text: str) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def sweeping(self, done: int, total: int) -> None: ...

    def training(self, label: str, step: int, total: int, entry: dict[str, Any] | None, pace: str) -> None:
        if self.at == (label, step) and entry is None:
            os.kill(os.getpid(), signal.SIGINT)
        if entry is not None:
            self.figures.add(entry["figure"])


def one_thread(step: object) -> int:
    """Takes one thread without timing any: sums depend on how many threads share them."""
    torch.set_num_threads(1)
    return 1


def trained(run: Run) -> dict[str, Any]:
    """Returns the results of the training stages of a run to a sparsity, without export and measurement."""
    again = retrain_of(run.settings, run.total_steps)
    if again is not None:
        do(Dense(again), run)
    stage = pruning_of(run, None)
    do(stage, run)
    return stage.result(run)


def ended(run: Run) -> dict[str, Any]:
    """Returns the results of both trainings of a run, as they lie in its folder; nothing is exported or timed."""
    dense, pruned = trainings(run)
    return {"dense": None if dense is None else dense.result(run), "pruned": pruned.result(run)}


def unclocked(result: dict[str, Any]) -> dict[str, Any]:
    """Returns what of the results of a training no clock has a part in."""
    clocked = ("seconds", "images_per_s", "waiting")
    entries = [
        {key: value for key, value in entry.items() if key not in clocked} for entry in result["history"]
    ]
    return {**{key: value for key, value in result.items() if key != "seconds"}, "history": entries}
