"""The rows that a grid of trainings over seeds leaves: one JSON line a cell, and means over seeds with intervals.

Several processes fill one file. A row is written in one piece under a lock, so a process that is killed leaves at most
the beginning of a line: readers pass over it, and the next writer cuts it off. A cell is claimed by a lock that ends
with the process that holds it: nothing is to be cleaned up after a killed process, and no cell is done twice.
"""

from __future__ import annotations

import fcntl
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from halpiee.errors import OutputInUseError, UsageError, said
from latency.files import FolderLock, misfit
from latency.predict import student

FILE = "rows.jsonl"

WAIT_S = 1.0
"""Between two looks at cells that other processes do."""


class Cell(Protocol):
    """One training to do."""

    @property
    def name(self) -> str:
        """Of the cell, in its row and in the folder."""

    @property
    def after(self) -> str | None:
        """Name of the cell that must be done before; ``None``: none must."""


R = TypeVar("R", bound=msgspec.Struct)
C = TypeVar("C", bound=Cell)


class Sheet(Generic[R]):
    """The rows of a folder.

    The first row makes the folder; the file of rows itself may be given, too. ``name`` returns the name of a row's
    cell; ``what`` the rows are of is for messages: ``a study``.
    """

    def __init__(self, folder: Path, kind: type[R], name: Callable[[R], str], what: str) -> None:
        self.path = folder if folder.is_file() else folder / FILE
        self.folder, self.kind, self.name, self.what = self.path.parent, kind, name, what

    def rows(self) -> list[R]:
        """Returns the rows in the order they were written; none where there is no file.

        Raises:
            UsageError: a line that is no row; the message names the line. A last line that an interruption tore is
                left out.
        """
        if not self.path.is_file():
            return []
        lines = self.path.read_bytes().splitlines(keepends=True)
        return [self._row(line, number) for number, line in enumerate(lines, start=1) if _whole(line)]

    def row(self, cell: str) -> R | None:
        """Returns the last row of a cell; ``None`` where there is none."""
        return next((row for row in reversed(self.rows()) if self.name(row) == cell), None)

    def append(self, row: R) -> None:
        """Writes a row; of several processes one writes at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            written = file.read()
            last = written[written.rfind(b"\n") + 1 :]
            if last and _whole(last):
                file.write(b"\n")
            elif last:
                file.truncate(len(written) - len(last))
            file.write(msgspec.json.encode(row) + b"\n")
            file.flush()
            os.fsync(file.fileno())

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

    def fill(self, cells: Sequence[C], make: Callable[[C], R | None], *, wait: bool) -> None:
        """Does the cells that have no row, each claimed while it is done, and writes their rows.

        A cell that comes after another one of these is done when that one has its row. ``make`` returns the row of a
        cell, ``None`` where it cannot be done now. With ``wait`` cells that other processes do are waited for, and done
        here where such a process dies.
        """
        while True:
            done = {self.name(row) for row in self.rows()}
            left = [cell for cell in cells if cell.name not in done]
            names, moved = {cell.name for cell in left}, False
            for cell in left:
                if cell.after in names:
                    continue
                with self.claimed(cell.name) as mine:
                    row = make(cell) if mine and self.row(cell.name) is None else None
                    if row is not None:
                        self.append(row)
                        names.discard(cell.name)
                        moved = True
            if not left or not (moved or wait):
                return
            if not moved:
                time.sleep(WAIT_S)

    def _row(self, line: bytes, number: int) -> R:
        advice = "delete the line, and its training is done again"
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(
                f"line {number} of {self.path} is no JSON ({said(error, 120)}); {advice}"
            ) from error
        try:
            return msgspec.convert(value, self.kind)
        except msgspec.ValidationError as error:
            raise UsageError(
                f"line {number} of {self.path} is no row of {self.what}: it {misfit(value, error)}; {advice}"
            ) from error


def _whole(line: bytes) -> bool:
    """Whether a line holds something, and was not torn by an interruption."""
    if line.endswith(b"\n"):
        return bool(line.strip())
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def commit() -> str:
    """Returns the commit of the code; empty where it is no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.strip()


@dataclass(frozen=True)
class Mean:
    """A mean over seeds."""

    mean: float  # NaN where there is none
    std: float  # of the sample; NaN for one seed
    n: int  # seeds

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Returns the mean of independent values; those that are not finite are left out."""
        found = [v for v in values if math.isfinite(v)]
        if not found:
            return cls(math.nan, math.nan, 0)
        std = statistics.stdev(found) if len(found) > 1 else math.nan
        return cls(statistics.fmean(found), std, len(found))

    @property
    def half(self) -> float:
        """Half of the 95 % interval of the mean, ``t · s / √n``; NaN for one seed."""
        if self.n < 2:
            return math.nan
        return student(0.95, self.n - 1) * self.std / math.sqrt(self.n)

    def text(self, *, percent: bool = True, digits: int = 1) -> str:
        """Returns mean and standard deviation as text: ``93.6 ± 0.2``."""
        if not self.n:
            return "–"
        factor = 100 if percent else 1
        spread = "" if math.isnan(self.std) else f" ± {factor * self.std:.{digits}f}"
        return f"{factor * self.mean:.{digits}f}{spread}"
