"""The ops of a network with their tables: the cost of each at the channels of its two sides, and as terms of a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from halpiee.errors import ProfileError
from halpiee.selection.grid import FloatArray, IntArray, Side
from halpiee.structure.groups import GroupRef, Structure, TimedOp
from latency.op import CONTRACTIONS

if TYPE_CHECKING:
    from latency.op import Op


class Axis(NamedTuple):
    """One side of a term: the solver's side, the channels of every entry, and which entries can occur."""

    side: Side
    channels: IntArray
    possible: IntArray


def axis_of(
    side: OpSide, free: Mapping[str, IntArray], number: Mapping[str, int], whole: Mapping[str, int]
) -> Axis:
    """Returns a side as ``solve_grid`` counts it: fixed, the options of one group, or a sum of counts."""
    varying = [(name, mult) for name, mult in side.units if name in free]
    fixed = side.fixed + sum(mult * whole[name] for name, mult in side.units if name not in free)
    if not varying:
        return Axis(None, np.array([fixed]), np.zeros(1, dtype=np.int64))
    if len(varying) == 1:
        name, mult = varying[0]
        return Axis(number[name], fixed + mult * free[name], np.arange(len(free[name])))
    common = math.gcd(*(mult for _, mult in varying))
    members: list[int] = []
    reached = np.zeros(1, dtype=np.int64)
    for name, mult in varying:
        times = mult // common
        members += [number[name]] * times
        reached = np.unique(reached[:, None] + times * free[name][None])
    return Axis(tuple(members), fixed + common * np.arange(int(reached[-1]) + 1), reached)


@dataclass(frozen=True)
class OpSide:
    """One side of an op: channels per unit of each prunable group, and the channels that never change."""

    units: tuple[tuple[str, int], ...]
    fixed: int

    def channels(self, counts: Mapping[str, int]) -> int:
        """Returns the channels where ``counts`` holds every prunable group."""
        return self.fixed + sum(mult * counts[name] for name, mult in self.units)


@dataclass(frozen=True)
class Priced:
    """An op with its cells."""

    name: str
    kind: str
    cells: Cells
    ins: OpSide
    outs: OpSide


def price(structure: Structure, tables: TableSource) -> tuple[tuple[Priced, ...], tuple[str, ...]]:
    """Returns the ops that have a table, and as ``layer (kind)`` those that take time and have none.

    The latter are timed ops without a table, and ops of a kind that no profile has entries for.

    Raises:
        ProfileError: a conv or linear op without a table.
    """
    priced, missing, refused = [], [], []
    cells: dict[str, Cells | None] = {}
    for timed in structure.ops:
        key = timed.op.table_key()
        if key not in cells:
            table = table_of(tables, timed.op)
            cells[key] = None if table is None else Cells(table, _label(timed))
        found = cells[key]
        name = f"{timed.layer} ({timed.op.kind})"
        if found is not None:
            ins = _side(structure, timed.in_groups, timed.op.c_in)
            outs = _side(structure, timed.out_groups, timed.op.c_out)
            priced.append(Priced(timed.layer, timed.op.kind, found, ins, outs))
        elif timed.op.kind in CONTRACTIONS:
            refused.append(name)
        else:
            missing.append(name)
    if refused:
        shown = ", ".join(refused[:5]) + (f" and {len(refused) - 5} more" if len(refused) > 5 else "")
        raise ProfileError(
            f"a latency was asked for {len(priced) + len(missing) + len(refused)} ops; the profile has "
            f"no table for {shown}; profile this model at this input size, batch and precision: "
            "halpiee profile MODEL"
        )
    missing += [f"{module} ({name})".lstrip() for module, name in structure.details.get("unpriced", ())]
    return tuple(priced), tuple(dict.fromkeys(missing))


def _side(structure: Structure, refs: tuple[GroupRef, ...], channels: int) -> OpSide:
    """Returns a side; channels of no group, or of a group that is not prunable, never change."""
    units: dict[str, int] = {}
    for name, mult in refs:
        if structure.by_name[name].prunable:
            units[name] = units.get(name, 0) + mult
    varying = sum(mult * structure.by_name[name].size for name, mult in units.items())
    return OpSide(tuple(sorted(units.items())), channels - varying)


def _label(timed: TimedOp) -> str:
    """Returns a layer with the groups that set its width."""
    ins, outs = (" + ".join(name for name, _ in refs) for refs in (timed.in_groups, timed.out_groups))
    return f"{timed.layer} (groups {ins} → {outs})"


MOST_GRIDS = 64
"""Grids that one table keeps: a training looks up the same few again and again."""


class LatencyTable(Protocol):
    """Latencies of one op over its channels."""

    def lookup(self, c_in: IntArray, c_out: IntArray) -> FloatArray:
        """Returns µs; the arguments broadcast."""

    def measured(self, c_in: IntArray, c_out: IntArray) -> NDArray[np.bool_]:
        """Returns whether the cell itself was measured; the arguments broadcast."""


class TableSource(Protocol):
    """Where tables come from: a profile."""

    def table(self, op: Op) -> LatencyTable | None:
        """Returns the table of an op; ``None`` or a ProfileError where there is none."""


class Cells:
    """The cells of one table that were looked up, kept so that later look-ups are array indexing.

    ``label`` names the layer, and the groups that set its width, in errors.
    """

    def __init__(self, table: LatencyTable, label: str = "an op") -> None:
        self.table, self.label = table, label
        self._c_in = np.zeros(0, dtype=np.int64)
        self._c_out = np.zeros(0, dtype=np.int64)
        self._grid: FloatArray = np.zeros((0, 0))
        self._single: dict[tuple[int, int], float] = {}
        self._grids: dict[tuple[bytes, bytes], FloatArray] = {}

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
        key = (c_in.tobytes(), c_out.tobytes())
        if key not in self._grids:
            if len(self._grids) >= MOST_GRIDS:
                self._grids.clear()
            self._grids[key] = self._grid_of(c_in, c_out)
        return self._grids[key]

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
                grid[np.ix_(old_rows, new_columns)] = self.pairs(
                    rows[old_rows, None], columns[None, new_columns]
                )
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
