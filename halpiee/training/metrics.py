"""The figures of every epoch of a run: ``metrics.jsonl``, ``metrics.csv``, and the trackers that were asked for.

Both files hold one line an epoch, of the dense and the pruned training alike, and are written whole: after a resume
they say what the run came to, without the epochs that were trained twice. Nothing is sent anywhere unless a tracker
that does so was asked for.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from halpiee.errors import MissingError
from latency.files import write

LINES, TABLE = "metrics.jsonl", "metrics.csv"

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Trackers, and the package that each needs."""

FIRST = (
    "training", "epoch", "step", "phase", "loss", "test_loss", "accuracy", "lr", "seconds", "images_per_s",
    "latency_us", "budget_us", "density",
)  # fmt: skip
"""The columns that come first."""


class Metrics:
    """The figures of a run.

    The tracker is ``auto`` (TensorBoard where it is installed), ``none``, or a name in ``PACKAGES``.

    Raises:
        MissingError: a tracker that is not installed.
    """

    def __init__(self, folder: Path, tracker: str = "auto") -> None:
        self._folder = folder
        if tracker == "auto":
            tracker = "tensorboard" if find_spec("tensorboard") else "none"
        elif tracker != "none" and not find_spec(PACKAGES[tracker]):
            raise MissingError(f"--track {tracker} was asked; install it: pip install {PACKAGES[tracker]}")
        self._name = tracker
        self._tracker: Any = None

    def write(self, training: str, history: Sequence[Mapping[str, Any]]) -> None:
        """Writes what a training has come to; of other trainings what was written before stays."""
        lines = [line for line in self._lines() if line["training"] != training]
        lines += [{"training": training, **flat(entry)} for entry in history]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write(self._folder / LINES, text, overwrite=True)
        names = dict.fromkeys([*FIRST, *(name for line in lines for name in line)])
        columns = [name for name in names if any(name in line for line in lines)]
        table = io.StringIO()
        rows = csv.DictWriter(table, columns, restval="", lineterminator="\n")
        rows.writeheader()
        rows.writerows(lines)
        write(self._folder / TABLE, table.getvalue(), overwrite=True)
        self._track(training, history[-1])

    def _lines(self) -> list[dict[str, Any]]:
        """Returns the lines that are there; what is none is left out, as the files only repeat what the run knows."""
        path = self._folder / LINES
        found = []
        for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("training"), str):
                found.append(line)
        return found

    def _track(self, training: str, entry: Mapping[str, Any]) -> None:
        """Hands numbers to the tracker, by accelerate's own classes."""
        if self._name == "none":
            return
        if self._tracker is None:
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            kind = LOGGER_TYPE_TO_CLASS[self._name]
            place = {"logging_dir": str(self._folder)} if kind.requires_logging_directory else {}
            self._tracker = kind(self._folder.name, **place)
        numbers = {name: value for name, value in flat(entry).items() if isinstance(value, int | float)}
        self._tracker.log(
            {f"{training}/{name}": value for name, value in numbers.items()}, step=entry["step"]
        )


def flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an entry without what is unknown, and with the names of nested values joined by ``_``."""
    found: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            found |= {f"{name}_{inner}": item for inner, item in flat(value).items()}
        elif value is not None:
            found[name] = value
    return found
