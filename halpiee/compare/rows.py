"""The rows of a comparison: one JSON line a cell, whole or not there; what tables and pages are made of."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from halpiee.errors import UsageError
from latency.outside import misfit

__all__ = ["FILE", "Row", "append", "read_rows"]

FILE = "rows.jsonl"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one cell has given.

    Attributes:
        key: of the cell: contestant, budget, seed and setting.
        contestant: by name.
        budget: share of the dense latency that was asked.
        seed: of the training.
        accuracy: top-1 on the test images, a share of 1.
        latency_us: measured, on the scale of ``dense_us``.
        dense_us: of the dense network, timed in turns with it.
        setting: hash of what all its contestants share; rows of others are not mixed with these.
        title: the setting in words.
        network: as it was asked.
        epochs: that it trained.
        macs: of one image.
        dense_macs: of one image, in the dense network.
        params: of the network.
        seconds: of training, its own.
        train_macs: multiply-accumulates of its own training.
        start_seconds: of training the dense network that it starts from.
        start_macs: likewise.
        counts: units per group.
        commit: of the code.
        machine: processor or accelerator.
        date: ISO 8601.
        versions: of what it ran on.
    """

    key: str
    contestant: str
    budget: float
    seed: int
    accuracy: float
    latency_us: float
    dense_us: float
    setting: str = ""
    title: str = ""
    network: str = ""
    epochs: float = 0.0
    macs: float | None = None
    dense_macs: float | None = None
    params: int | None = None
    seconds: float | None = None
    train_macs: float | None = None
    start_seconds: float = 0.0
    start_macs: float = 0.0
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    commit: str = ""
    machine: str = ""
    date: str = ""
    versions: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def share(self) -> float:
        """The measured latency over that of the dense network."""
        return self.latency_us / self.dense_us


def read_rows(path: Path) -> list[Row]:
    """Returns the rows of a file; a last line that an interruption tore is left out.

    Args:
        path: of the file, or of the folder that it lies in.

    Raises:
        UsageError: there is none, or a line is no row; the message names the line.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{file} was asked for, and there is no such file; `halpiee compare` writes one")
    lines = file.read_bytes().splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            if number == len(lines) and not line.endswith(b"\n"):
                break
            raise UsageError(f"line {number} of {file} is no JSON ({error}); delete that line") from error
        try:
            rows.append(msgspec.convert(value, Row))
        except msgspec.ValidationError as error:
            found = misfit(value, error)
            raise UsageError(
                f"line {number} of {file} is no row of a comparison: it {found}; delete that line"
            ) from error
    return rows


def append(folder: Path, row: Row | Mapping[str, Any]) -> None:
    """Adds a row to the file of a folder; of several processes one writes at a time.

    Args:
        folder: of the comparison.
        row: of a cell.
    """
    values = msgspec.to_builtins(row) if isinstance(row, Row) else dict(row)
    with (folder / FILE).open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # what an interruption tore
        file.write(json.dumps(values).encode() + b"\n")
