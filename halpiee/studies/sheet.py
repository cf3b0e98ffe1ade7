"""The rows of a study: one JSON line a cell, which several processes write together.

A row is written in one piece under a lock, so a process that is killed leaves at most the beginning of a line: the next
one that writes cuts it off. A cell is claimed by a lock that ends with the process which holds it, so nothing is to be
cleaned up after one that was killed, and no cell is done twice.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from halpiee.errors import OutputInUseError, UsageError
from latency._files import FolderLock

__all__ = ["Row", "Sheet"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one cell left.

    Attributes:
        study: its name.
        version: of the study's file, data and scale.
        cell: its name.
        labels: axis → label.
        seed: of the training.
        values: quantity → number, list of (x, y), or layer → number.
        seconds: wall time.
        date: when it ended, UTC.
        machine: processor and versions, in words.
    """

    study: str
    version: str
    cell: str
    labels: dict[str, str]
    seed: int
    values: dict[str, Any]
    seconds: float
    date: str
    machine: str


class Sheet:
    """The folder of a study with its rows.

    Args:
        folder: made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "rows.jsonl"

    def rows(self) -> list[Row]:
        """Returns the rows, in the order they were written; the beginning of a line that was cut off is left out.

        Raises:
            UsageError: a line that is no row.
        """
        if not self.path.is_file():
            return []
        found = []
        lines = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(
            lines[:-1], start=1
        ):  # behind the last newline stands nothing, or half a row
            try:
                found.append(msgspec.json.decode(line, type=Row))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise UsageError(
                    f"line {number} of {self.path} is no row of a study ({' '.join(str(error).split())[:120]}); "
                    "delete the line, and its cell is done again"
                ) from error
        return found

    def append(self, row: Row) -> None:
        """Writes a row."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            written = file.read()
            whole = written.rfind(b"\n") + 1
            if whole < len(written):
                file.truncate(whole)
            file.write(msgspec.json.encode(row) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def check(self, study: str, version: str) -> None:
        """Refuses a folder of another study, or of another version of this one.

        Raises:
            UsageError: it holds such rows.
        """
        for row in self.rows():
            if (row.study, row.version) != (study, version):
                raise UsageError(
                    f"--out {self.folder} holds rows of {row.study} in version {row.version}, and this is {study} in "
                    f"version {version}: its file, --data, --scale or another option differs; choose another --out"
                )

    @contextmanager
    def claimed(self, cell: str) -> Iterator[bool]:
        """Inside, the cell belongs to this process where the value is True; else to another one."""
        place = self.folder / "claims" / cell
        try:
            lock = FolderLock(place)
        except OutputInUseError:
            yield False
            return
        try:
            yield True
        finally:
            place.rmdir()
            lock.close()
