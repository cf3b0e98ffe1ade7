"""The cells of a profile that a cost asks for, kept so that later questions are array indexing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from halpiee.errors import ProfileError
from halpiee.selection.terms import FloatArray, IntArray

if TYPE_CHECKING:
    from latency.op import Op

__all__ = ["Cells", "LatencyTable", "TableSource", "table_of"]

MOST_ANSWERS = 64
"""Grids that one table remembers: a training asks for the same few again and again."""


class LatencyTable(Protocol):
    """Latencies of one op over its channels."""

    def lookup(self, c_in: IntArray, c_out: IntArray) -> FloatArray:
        """Returns µs; the arguments broadcast."""
        ...

    def measured(self, c_in: IntArray, c_out: IntArray) -> NDArray[np.bool_]:
        """Returns whether the cell itself was measured; the arguments broadcast."""
        ...


class TableSource(Protocol):
    """Where tables come from: a profile."""

    def table(self, op: Op) -> LatencyTable | None:
        """Returns the table of an op; ``None`` or a ProfileError where there is none."""
        ...


class Cells:
    """The cells of one table that were asked for, kept so that later questions are array indexing.

    Args:
        table: where they come from.
        label: which layer asks, and which groups set its width; for refusals.
    """

    def __init__(self, table: LatencyTable, label: str = "an op") -> None:
        self.table = table
        self.label = label
        self._c_in = np.zeros(0, dtype=np.int64)
        self._c_out = np.zeros(0, dtype=np.int64)
        self._grid: FloatArray = np.zeros((0, 0))
        self._single: dict[tuple[int, int], float] = {}
        self._answers: dict[tuple[bytes, bytes], FloatArray] = {}

    def at(self, c_in: int, c_out: int) -> float:
        """Returns µs of one cell; 0 where a side has vanished."""
        key = (c_in, c_out)
        if key not in self._single:
            self._single[key] = float(self.pairs(np.array([c_in]), np.array([c_out]))[0])
        return self._single[key]

    def pairs(self, c_in: IntArray, c_out: IntArray) -> FloatArray:
        """Returns µs of the cells ``(c_in[i], c_out[i])``; the arguments broadcast.

        Raises:
            ProfileError: a latency that is not finite.
        """
        us = np.asarray(self.table.lookup(c_in, c_out), dtype=np.float64)
        us = np.where((c_in > 0) & (c_out > 0), us, 0.0)
        if not np.isfinite(us).all():
            at = int(np.flatnonzero(~np.isfinite(us))[0])
            i, o = (int(np.broadcast_to(c, us.shape).flat[at]) for c in (c_in, c_out))
            raise ProfileError(
                f"a latency of {self.label} was asked at {i} → {o} channels; the profile says {us.flat[at]} µs; "
                "every latency must be finite: remove that cell's line and resume the sweep with halpiee profile"
            )
        return us

    def grid(self, c_in: IntArray, c_out: IntArray) -> FloatArray:
        """Returns µs ``[len(c_in), len(c_out)]``."""
        question = (c_in.tobytes(), c_out.tobytes())
        if question not in self._answers:
            if len(self._answers) >= MOST_ANSWERS:
                self._answers.clear()
            self._answers[question] = self._grid_of(c_in, c_out)
        return self._answers[question]

    def _grid_of(self, c_in: IntArray, c_out: IntArray) -> FloatArray:
        rows, columns = np.union1d(self._c_in, c_in), np.union1d(self._c_out, c_out)
        if len(rows) > len(self._c_in) or len(columns) > len(self._c_out):
            grid = np.empty((len(rows), len(columns)))
            old_rows = np.searchsorted(rows, self._c_in)
            old_columns = np.searchsorted(columns, self._c_out)
            grid[np.ix_(old_rows, old_columns)] = self._grid
            new_rows = np.setdiff1d(np.arange(len(rows)), old_rows)
            new_columns = np.setdiff1d(np.arange(len(columns)), old_columns)
            if len(new_rows):
                grid[new_rows] = self.pairs(rows[new_rows, None], columns[None])
            if len(new_columns) and len(old_rows):
                new = self.pairs(rows[old_rows, None], columns[None, new_columns])
                grid[np.ix_(old_rows, new_columns)] = new
            self._c_in, self._c_out, self._grid = rows, columns, grid
        return self._grid[np.ix_(np.searchsorted(rows, c_in), np.searchsorted(columns, c_out))]


def table_of(profile: TableSource, op: Op) -> LatencyTable | None:
    """Returns the table of an op, or ``None`` where the profile has none.

    Raises:
        ProfileError: a table that is there and damaged.
    """
    has_table = getattr(profile, "has_table", None)
    if has_table is not None:
        return profile.table(op) if has_table(op) else None
    try:
        return profile.table(op)
    except (ProfileError, KeyError):
        return None
