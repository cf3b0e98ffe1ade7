"""How long does the network take, as a function of the units every group keeps? In µs, from measured tables.

``R(k) = a + b · Σ_ops T_op(C_in(k), C_out(k))``: the tables price both sides of every op; ``a`` and ``b`` are
the calibration that makes the sum of layers agree with networks measured whole. The width of a side is the
sum of the counts of its groups, so the cost of one group depends on its neighbours.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from halpiee.errors import ProfileError, UsageError
from halpiee.selection.candidates import restrict, thin
from halpiee.selection.cells import Cells, LatencyTable, TableSource, table_of
from halpiee.selection.terms import FloatArray, IntArray, Side
from halpiee.structure.groups import GroupRef, Structure, TimedOp

if TYPE_CHECKING:
    from latency.predict import Calibration

__all__ = ["LatencyCost", "LatencyTable", "TableSource"]

CONTRACTIONS = ("conv", "conv_transpose", "linear")
"""Ops that a cost must never leave out."""

STEP = 1e-6
"""A narrower width is a candidate when it is cheaper than every wider one by more than this share."""


@dataclass(frozen=True)
class _Side:
    """One side of an op: channels per unit of each prunable group, and the channels that never change."""

    units: tuple[tuple[str, int], ...]
    fixed: int

    def channels(self, counts: Mapping[str, int], sizes: Mapping[str, int]) -> int:
        return self.fixed + sum(mult * counts.get(name, sizes[name]) for name, mult in self.units)


@dataclass(frozen=True)
class _Priced:
    """An op with its cells."""

    name: str
    cells: Cells
    ins: _Side
    outs: _Side


@dataclass
class _Axis:
    """One side of a term: the solver's side, the channels of every entry, and which entries can occur."""

    side: Side
    channels: IntArray
    possible: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


class LatencyCost:
    """Predicted latency of a network as a function of the counts of its groups.

    Args:
        structure: ops and groups of the network.
        profile: tables of the device.
        calibration: ``e2e = a_us + b · Σ``; without one the sum of the ops stands.

    Attributes:
        not_covered: ops without a table, which the cost leaves out, as ``layer (kind)``.

    Raises:
        ProfileError: a conv or linear op without a table.
    """

    def __init__(
        self, structure: Structure, profile: TableSource, calibration: Calibration | None = None
    ) -> None:
        self.structure = structure
        self.profile = profile
        self.calibration = calibration
        self._sizes = {g.name: g.size for g in structure.prunable}
        self._ops, self.not_covered = self._price(structure.ops, profile)
        self._ops_of: dict[str, list[_Priced]] = {name: [] for name in self._sizes}
        for op in self._ops:
            for name in {name for side in (op.ins, op.outs) for name, _ in side.units}:
                self._ops_of[name].append(op)

    def with_calibration(self, calibration: Calibration | None) -> LatencyCost:
        """Returns the same cost under another calibration; tables and candidates are shared."""
        _ = self.candidates
        other = copy.copy(self)
        other.calibration = calibration
        other.__dict__.pop("dense_us", None)
        return other

    def restricted(
        self,
        *,
        multiple: int = 1,
        least: float = 0.0,
        most: float = 1.0,
        vanish: bool = True,
        between: Mapping[str, tuple[int, int]] | None = None,
    ) -> LatencyCost:
        """Returns the same cost with fewer candidate widths; arguments as in ``candidates.restrict``."""
        other = copy.copy(self)
        other.__dict__["candidates"] = restrict(
            self.candidates,
            self._sizes,
            multiple=multiple,
            least=least,
            most=most,
            vanish=vanish,
            between=between,
        )
        return other

    def next_step_us(
        self, counts: Mapping[str, int], options: Mapping[str, Sequence[int] | IntArray]
    ) -> float:
        """Returns the smallest latency added by any group's next wider option; NaN where nothing can grow."""
        extra = math.nan
        for name, allowed in options.items():
            wider = [int(k) for k in allowed if k > counts[name]]
            if wider:
                step = self.step_us(counts, name, min(wider))
                extra = step if math.isnan(extra) else min(extra, step)
        return extra

    @cached_property
    def dense_us(self) -> float:
        """Calibrated latency of the whole network."""
        return self.total_us({})

    def sum_us(self, counts: Mapping[str, int]) -> float:
        """Returns the uncalibrated sum of the ops; groups that ``counts`` does not name are whole."""
        full = self._full(counts)
        return sum(cells.at(c_in, c_out) for cells, c_in, c_out in self._at(full))

    def total_us(self, counts: Mapping[str, int]) -> float:
        """Returns the calibrated latency.

        Args:
            counts: group name → units kept, for any subset of the prunable groups; the others are whole.
        """
        return self._calibrated(self.sum_us(counts))

    def step_us(self, counts: Mapping[str, int], name: str, count: int) -> float:
        """Returns the calibrated latency added by changing one group of ``counts`` to another count."""
        full = self._full(counts)
        other = {**full, name: count}
        extra = 0.0
        for op in self._ops_of[name]:
            before, after = (
                op.cells.at(op.ins.channels(c, self._sizes), op.outs.channels(c, self._sizes))
                for c in (full, other)
            )
            extra += after - before
        return self._calibrated(extra) - self._calibrated(0.0)

    def interpolated(self, counts: Mapping[str, int]) -> tuple[str, ...]:
        """Returns the layers whose cell at these counts was not measured itself."""
        full = self._full(counts)
        names = []
        for op in self._ops:
            c_in, c_out = (side.channels(full, self._sizes) for side in (op.ins, op.outs))
            if (
                c_in > 0
                and c_out > 0
                and not bool(np.all(op.cells.table.measured(np.array([c_in]), np.array([c_out]))))
            ):
                names.append(op.name)
        return tuple(names)

    @cached_property
    def candidates(self) -> dict[str, tuple[int, ...]]:
        """Widths worth choosing, per prunable group, ascending: right edges of its own staircase.

        Scanned from the dense width down with the other groups dense: a width is a candidate when it is
        cheaper than every wider candidate by more than 1e-6 of it. 0 only where the group may vanish.
        """
        found = {}
        for group in self.structure.prunable:
            least = 0 if group.may_vanish else 1
            curve = self._curve(group.name, np.arange(least, group.size + 1))
            kept = [group.size]
            lowest = curve[-1]
            for k in range(group.size - 1, least - 1, -1):
                if curve[k - least] < lowest - STEP * abs(lowest):
                    kept.append(k)
                    lowest = curve[k - least]
            found[group.name] = thin(tuple(reversed(kept)), group.size)
        return found

    def grid(
        self, options: Mapping[str, Sequence[int] | IntArray]
    ) -> tuple[list[tuple[Side, Side, FloatArray]], float]:
        """Returns the terms of ``solve_grid`` in calibrated µs, and what does not depend on the choice.

        Args:
            options: group name → ascending counts to choose from; groups are numbered in this order. Groups
                with one option and groups that are not named do not vary. ``widths`` of the grid are these
                counts.

        Returns:
            ``(terms, constant_us)``: cost of a choice = the sum of its terms + ``constant_us``.
        """
        counts = {name: np.asarray(k, dtype=np.int64) for name, k in options.items()}
        whole = self._full({name: int(k[-1]) for name, k in counts.items()})
        number = {name: i for i, name in enumerate(counts)}
        free = {name: k for name, k in counts.items() if len(k) > 1}
        scale, constant = self._calibrated(1.0) - self._calibrated(0.0), self._calibrated(0.0)
        axes: dict[_Side, _Axis] = {}
        terms: dict[tuple[Side, Side], FloatArray] = {}
        for op in self._ops:
            for side in (op.ins, op.outs):
                if side not in axes:
                    axes[side] = _axis(side, free, number, whole)
            ins, outs = axes[op.ins], axes[op.outs]
            if ins.side is None and outs.side is None:
                constant += scale * op.cells.at(int(ins.channels[0]), int(outs.channels[0]))
                continue
            if ins.side == outs.side:
                # Both widths are the same count: a cost of the output side alone.
                table = np.zeros((1, len(outs.channels)))
                table[0, outs.possible] = op.cells.pairs(
                    ins.channels[ins.possible], outs.channels[outs.possible]
                )
                key: tuple[Side, Side] = (None, outs.side)
            else:
                table = np.zeros((len(ins.channels), len(outs.channels)))
                table[np.ix_(ins.possible, outs.possible)] = op.cells.grid(
                    ins.channels[ins.possible], outs.channels[outs.possible]
                )
                key = (ins.side, outs.side)
            terms[key] = terms[key] + table if key in terms else table
        return [(ins_, outs_, scale * table) for (ins_, outs_), table in terms.items()], constant

    def _calibrated(self, sum_us: float) -> float:
        return sum_us if self.calibration is None else float(self.calibration.apply(sum_us))

    def _full(self, counts: Mapping[str, int]) -> dict[str, int]:
        full = dict(self._sizes)
        for name, k in counts.items():
            if name not in full:
                known = self.structure.by_name.get(name)
                if known is None:
                    close = difflib.get_close_matches(name, self.structure.by_name, n=1)
                    hint = f"; did you mean {close[0]!r}?" if close else ""
                    raise UsageError(
                        f"counts names the group {name!r}, which the structure does not have{hint}"
                    )
                if k != known.size:
                    raise UsageError(
                        f"counts asks for {k} of {known.size} units of {name!r}, which is not prunable "
                        f"({known.reason}); leave it out of counts"
                    )
                continue
            if not 0 <= k <= full[name]:
                raise UsageError(
                    f"counts asks for {k} units of {name!r}, which has {full[name]}; give 0 … {full[name]}"
                )
            full[name] = int(k)
        return full

    def _at(self, full: Mapping[str, int]) -> Iterable[tuple[Cells, int, int]]:
        for op in self._ops:
            yield op.cells, op.ins.channels(full, self._sizes), op.outs.channels(full, self._sizes)

    def _curve(self, name: str, counts: IntArray) -> FloatArray:
        """Returns the cost of the ops a group is part of, over its counts, with the other groups dense."""
        total = np.zeros(len(counts))
        for op in self._ops_of[name]:
            c_in, c_out = (
                side.channels(self._sizes, self._sizes)
                + dict(side.units).get(name, 0) * (counts - self._sizes[name])
                for side in (op.ins, op.outs)
            )
            total += op.cells.pairs(c_in, c_out)
        return total

    def _price(
        self, ops: Iterable[TimedOp], profile: TableSource
    ) -> tuple[tuple[_Priced, ...], tuple[str, ...]]:
        priced, missing, refused = [], [], []
        cells: dict[str, Cells | None] = {}
        for timed in ops:
            key = timed.op.table_key()
            if key not in cells:
                table = table_of(profile, timed.op)
                cells[key] = None if table is None else Cells(table, _label(timed))
            found = cells[key]
            name = f"{timed.layer} ({timed.op.kind})"
            if found is not None:
                priced.append(
                    _Priced(timed.layer, found, self._side(timed.in_groups), self._side(timed.out_groups))
                )
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
        return tuple(priced), tuple(dict.fromkeys(missing))

    def _side(self, refs: tuple[GroupRef, ...]) -> _Side:
        units: dict[str, int] = {}
        fixed = 0
        for name, mult in refs:
            if name in self._sizes:
                units[name] = units.get(name, 0) + mult
            else:
                fixed += mult * self.structure.by_name[name].size
        return _Side(tuple(sorted(units.items())), fixed)


def _label(timed: TimedOp) -> str:
    """Returns a layer with the groups that set its width."""
    ins, outs = (" + ".join(name for name, _ in refs) for refs in (timed.in_groups, timed.out_groups))
    return f"{timed.layer} (groups {ins} → {outs})"


def _axis(
    side: _Side, free: Mapping[str, IntArray], number: Mapping[str, int], whole: Mapping[str, int]
) -> _Axis:
    """Returns a side as ``solve_grid`` counts it: fixed, the options of one group, or a sum of counts."""
    varying = [(name, mult) for name, mult in side.units if name in free]
    fixed = side.fixed + sum(mult * whole[name] for name, mult in side.units if name not in free)
    if not varying:
        return _Axis(None, np.array([fixed]), np.zeros(1, dtype=np.int64))
    if len(varying) == 1:
        name, mult = varying[0]
        return _Axis(number[name], fixed + mult * free[name], np.arange(len(free[name])))
    common = math.gcd(*(mult for _, mult in varying))
    members: list[int] = []
    reached = np.zeros(1, dtype=np.int64)
    for name, mult in varying:
        times = mult // common
        members += [number[name]] * times
        reached = np.unique(reached[:, None] + times * free[name][None])
    return _Axis(tuple(members), fixed + common * np.arange(int(reached[-1]) + 1), reached)
