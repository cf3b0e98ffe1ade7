"""A profile as a file: written cell by cell, and compared with another one.

``Journal`` puts every measurement on the disk before the next one begins. ``conflicts`` names cells that two profiles
of one device measured differently, before they are joined.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latency.device import differences, environment_id
from latency.errors import OutputInUseError, ProfileError, UsageError
from latency.files import lock
from latency.op import Op, in_words
from latency.profiles import ENVIRONMENT, LEFT_OUT, Profile, cell_key, header_line, read_lines


class Journal:
    """Appends cells to a profile file; without a path it keeps them in memory.

    A file that is there is resumed: its cells are read, a torn last line is cut off. Only one sweep may write a
    file at a time.

    Attributes:
        cells: the cells of the file, then those appended.

    Raises:
        OutputInUseError: the file is there and not to be resumed, or another sweep writes it.
        ProfileError: it belongs to another environment, or is no profile.
    """

    def __init__(self, path: Path | None, environment: Mapping[str, Any], *, resume: bool = True) -> None:
        self.path = path
        self.environment = dict(environment)
        self._first = dict(environment)
        self.cells: list[dict[str, Any]] = []
        self._fd: int | None = None
        if path is None:
            return
        if path.exists() and not resume:
            raise OutputInUseError(
                f"{path} exists already and was left alone; name another file, or let the sweep resume it"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UsageError(
                f"a profile was to be written to {path}, which cannot be opened: {error.strerror}; name another file"
            ) from None
        try:
            if lock(self._fd) is False:
                raise OutputInUseError(
                    f"{path} is being written by another sweep; wait for it, or name another file"
                )
            self._begin()
        except BaseException:
            self.close()
            raise

    def append(self, cell: Mapping[str, Any]) -> None:
        """Writes one cell and waits until it is on the disk.

        Raises:
            UsageError: the disk is full; the file holds all cells before this one.
        """
        if self._fd is not None:
            self._write(json.dumps(cell, separators=(",", ":")))
        self.cells.append(dict(cell))

    def leave_out(self, op: str) -> None:
        """Writes why an op has no cell."""
        left_out = self.environment.setdefault(LEFT_OUT, [])
        if op not in left_out:
            left_out.append(op)
            if self._fd is not None:
                self._write(json.dumps({LEFT_OUT: op}, separators=(",", ":")))

    def state(self, facts: Mapping[str, Any]) -> None:
        """Writes more fields of the environment."""
        self.environment.update(facts)
        if self._fd is not None:
            self._write(json.dumps({ENVIRONMENT: dict(facts)}, separators=(",", ":")))

    def forget(self) -> None:
        """Drops the cells and all fields of the environment that were written after the first line."""
        self.cells.clear()
        self.environment = dict(self._first)
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            self._write(header_line(self.environment))

    def close(self) -> None:
        """Closes the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self) -> None:
        assert self.path is not None
        assert self._fd is not None
        size = os.fstat(self._fd).st_size
        if size and b"\n" in self.path.read_bytes():
            environment, self.cells, whole = read_lines(self.path)
            other = differences(environment, self.environment)
            if other:
                stated = "; ".join(f"{k} is {a!r} in the file, {b!r} here" for k, (a, b) in other.items())
                raise ProfileError(
                    f"{self.path} was to be resumed; it belongs to another environment: {stated}; "
                    "name another file with --out"
                )
            if whole < size:
                os.ftruncate(self._fd, whole)
            self.environment = environment
        else:
            os.ftruncate(self._fd, 0)  # nothing, or a header that was torn
            self.environment.setdefault("id", environment_id(self.environment))
            self._first = dict(self.environment)
            self._write(header_line(self.environment))

    def _write(self, line: str) -> None:
        assert self._fd is not None
        data = (line + "\n").encode()
        start = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError(28, "no space left")
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, start)
            raise UsageError(
                f"a cell was to be written to {self.path} and could not: {error.strerror}; free some space and "
                "start the same command again, it resumes"
            ) from error


APART = 0.05
"""Times of one cell that differ by more than this share of the faster conflict."""


@dataclass(frozen=True)
class Conflict:
    """One cell that was measured several times with different results, ``us`` in the order of the profiles."""

    op: str
    c_in: int
    c_out: int
    us: tuple[float, ...]

    def __str__(self) -> str:
        times = " and ".join(f"{us:.1f}" for us in self.us)
        return f"{self.op} {self.c_in}→{self.c_out}: {times} µs"


def conflicts(profiles: Iterable[Profile]) -> list[Conflict]:
    """Returns the cells of the tables that profiles do not agree on, the furthest apart first."""
    times: dict[str, list[float]] = {}
    cells = {}
    for profile in profiles:
        for cell in profile.cells:
            if cell.get("role", "sweep") == "sweep":
                times.setdefault(cell_key(cell), []).append(float(cell["us"]))
                cells[cell_key(cell)] = cell
    found = []
    for key, us in times.items():
        if len(us) > 1 and max(us) > (1 + APART) * min(us):
            op = Op.from_key(cells[key])
            found.append(Conflict(in_words(op), op.c_in, op.c_out, tuple(us)))
    return sorted(found, key=lambda one: -max(one.us) / max(min(one.us), 1e-9))
