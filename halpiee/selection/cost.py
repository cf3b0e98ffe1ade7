"""What does the network take, as a function of the units every group keeps? In µs, mJ, MACs, parameters or bytes.

``R(k) = f(Σ_ops T_op(C_in(k), C_out(k)))``: the tables price both sides of every op, so the cost of one group depends
on its neighbours; the width of a side is the sum of the counts of its groups. A latency is measured, and ``f`` is the
calibration that makes the sum of layers agree with networks measured whole; the other quantities are formulas, and
``f`` leaves their sum as it is. ``f`` rises, so ``R(k) <= limit`` is ``Σ <= f⁻¹(limit)``: every solver works on the
sums, whatever the unit and however the calibration bends.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from halpiee.errors import ProfileError, UsageError, unknown
from halpiee.selection.grid import TOLERANCE, FloatArray, IntArray, Side
from halpiee.structure.groups import GroupRef, Structure, TimedOp
from latency.op import CONTRACTIONS

if TYPE_CHECKING:
    from latency.op import Op
    from latency.predict import Calibration
    from latency.profiles import Profile

__all__ = [
    "Also",
    "Cells",
    "Cost",
    "LatencyCost",
    "LatencyTable",
    "OpSide",
    "Priced",
    "TableSource",
    "energy",
    "price",
    "restrict",
    "table_of",
    "thin",
]


STEP = 1e-6
"""A narrower width is a candidate when it is cheaper than every wider one by more than this share."""


@dataclass
class _Axis:
    """One side of a term: the solver's side, the channels of every entry, and which entries can occur."""

    side: Side
    channels: IntArray
    possible: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class Also:
    """A limit beside the budget.

    Attributes:
        name: what it is called in messages: ``macs``, ``profile=gpu.jsonl``.
        cost: what is limited.
        most: the most of it, in its unit.
        share: of the dense network, where ``most`` was asked as one.
        measure: times the dense network and what a keep leaves of it side by side, on the target of the cost: (dense
            µs, pruned µs); ``None``: it is not timed here.
        measured: what the network that was chosen took when it was measured; ``None``: it was not.
    """

    name: str
    cost: Cost
    most: float
    share: float | None = None
    measure: Callable[[Mapping[str, Tensor]], tuple[float, float]] | None = None
    measured: float | None = None

    def holds(self, counts: Mapping[str, int]) -> bool:
        """Whether a network is within the limit, up to rounding."""
        return self.cost.total(counts) <= self.most + TOLERANCE * abs(self.most)


class Cost:
    """A quantity of a network as a function of the counts of its groups.

    Args:
        structure: ops and groups of the network.
        tables: per op a table of the quantity over its channels.
        unit: what the quantity is counted in, for messages.

    Attributes:
        covered: ops that are priced, as ``layer (kind)``.
        not_covered: ops that take time and that the cost leaves out, as ``layer (kind)``: those without a table, and
            those of kinds that no profile has.
        also: limits that every selection keeps beside its budget; see ``limited``.

    Raises:
        ProfileError: a conv or linear op without a table.
    """

    also: tuple[Also, ...] = ()

    def __init__(self, structure: Structure, tables: TableSource, *, unit: str) -> None:
        self.structure, self.profile, self.unit = structure, tables, unit
        self._sizes = {g.name: g.size for g in structure.prunable}
        self._ops, self.not_covered = price(structure, tables)
        self.covered = tuple(f"{op.name} ({op.kind})" for op in self._ops)
        self._ops_of: dict[str, list[Priced]] = {name: [] for name in self._sizes}
        for op in self._ops:
            for name in {name for side in (op.ins, op.outs) for name, _ in side.units}:
                self._ops_of[name].append(op)

    def from_raw(self, raw: float) -> float:
        """Returns the cost of a network whose ops add up to ``raw``."""
        return raw

    def to_raw(self, limit: float) -> float:
        """Returns the largest sum of ops whose cost is within a limit; below 0 where none is."""
        return limit

    def raw(self, counts: Mapping[str, int]) -> float:
        """Returns the sum of the ops; groups that ``counts`` does not name are whole."""
        full = self._full(counts)
        return sum(op.cells.at(op.ins.channels(full), op.outs.channels(full)) for op in self._ops)

    def total(self, counts: Mapping[str, int]) -> float:
        """Returns the cost.

        Args:
            counts: group name → units kept, for any subset of the prunable groups; the others are whole.
        """
        return self.from_raw(self.raw(counts))

    @cached_property
    def dense(self) -> float:
        """The cost of the whole network."""
        return self.total({})

    def step(self, counts: Mapping[str, int], name: str, count: int) -> float:
        """Returns the cost added by changing one group of ``counts`` to another count."""
        return self._steps(counts)(name, count)

    def next_step(self, counts: Mapping[str, int], options: Mapping[str, Sequence[int] | IntArray]) -> float:
        """Returns the smallest cost added by any group's next wider option; NaN where nothing can grow."""
        extra, step = math.nan, self._steps(counts)
        for name, allowed in options.items():
            wider = [int(k) for k in allowed if k > counts[name]]
            if wider:
                one = step(name, min(wider))
                extra = one if math.isnan(extra) else min(extra, one)
        return extra

    def restricted(
        self,
        *,
        multiple: int = 1,
        least: float = 0.0,
        most: float = 1.0,
        vanish: bool = True,
        between: Mapping[str, tuple[int, int]] | None = None,
    ) -> Self:
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

    def limited(self, *limits: Also) -> Self:
        """Returns the same cost under these limits, and no others, beside the budget.

        ``select``, ``choose``, ``uniform``, ``pareto`` and every method that is given the cost keep them all.

        Raises:
            UsageError: a cost of another network.
        """
        for one in limits:
            other = {g.name: g.size for g in one.cost.structure.prunable}
            for name in (*self._sizes, *other):
                if self._sizes.get(name) != other.get(name):
                    raise UsageError(
                        f"{1 + len(limits)} limits were asked of one network; {one.name} has "
                        f"{other.get(name, 'no')} units of {name!r}, the budget has {self._sizes.get(name, 'none')}; "
                        "trace the same network for all of them"
                    )
        found = copy.copy(self)
        found.also = limits
        return found

    def interpolated(self, counts: Mapping[str, int]) -> tuple[str, ...]:
        """Returns the layers whose cell at these counts was not measured itself."""
        full = self._full(counts)
        names = []
        for op in self._ops:
            c_in, c_out = op.ins.channels(full), op.outs.channels(full)
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

    def grid(self, options: Mapping[str, Sequence[int] | IntArray]) -> list[tuple[Side, Side, FloatArray]]:
        """Returns the terms of ``solve_grid``, which add up to the sum of the ops.

        What does not depend on the choice is a term with two fixed sides. The budget of these terms is
        ``to_raw(limit)``.

        Args:
            options: group name → ascending counts to choose from; groups are numbered in this order. Groups
                with one option and groups that are not named do not vary. ``widths`` of the grid are these
                counts.
        """
        counts = {name: np.asarray(k, dtype=np.int64) for name, k in options.items()}
        whole = self._full({name: int(k[-1]) for name, k in counts.items()})
        number = {name: i for i, name in enumerate(counts)}
        free = {name: k for name, k in counts.items() if len(k) > 1}
        constant = 0.0
        axes: dict[OpSide, _Axis] = {}
        terms: dict[tuple[Side, Side], FloatArray] = {}
        for op in self._ops:
            for side in (op.ins, op.outs):
                if side not in axes:
                    axes[side] = _axis(side, free, number, whole)
            ins, outs = axes[op.ins], axes[op.outs]
            if ins.side is None and outs.side is None:
                constant += op.cells.at(int(ins.channels[0]), int(outs.channels[0]))
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
        varying = [(ins_, outs_, table) for (ins_, outs_), table in terms.items()]
        return [*varying, (None, None, np.array([[constant]]))]

    def _full(self, counts: Mapping[str, int]) -> dict[str, int]:
        full = dict(self._sizes)
        for name, k in counts.items():
            if name not in full:
                known = self.structure.by_name.get(name)
                if known is None:
                    hint = unknown(name, self.structure.by_name, before="; ")
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

    def _curve(self, name: str, counts: IntArray) -> FloatArray:
        """Returns the cost of the ops a group is part of, over its counts, with the other groups dense."""
        total = np.zeros(len(counts))
        for op in self._ops_of[name]:
            c_in, c_out = (
                side.channels(self._sizes) + dict(side.units).get(name, 0) * (counts - self._sizes[name])
                for side in (op.ins, op.outs)
            )
            total += op.cells.pairs(c_in, c_out)
        return total

    def _steps(self, counts: Mapping[str, int]) -> Callable[[str, int], float]:
        """Returns what changing one group of ``counts`` adds, of a name and a count."""
        full = self._full(counts)
        before = self.raw(full)

        def step(name: str, count: int) -> float:
            other = {**full, name: count}
            extra = sum(
                op.cells.at(op.ins.channels(other), op.outs.channels(other))
                - op.cells.at(op.ins.channels(full), op.outs.channels(full))
                for op in self._ops_of[name]
            )
            return self.from_raw(before + extra) - self.from_raw(before)

        return step


def energy(structure: Structure, profile: Profile) -> Cost:
    """Returns the cost of the energy that a profile holds beside its times: ``energy_mj`` of its cells, in mJ.

    Raises:
        ProfileError: no cell holds one, or a conv or linear op has none.
    """
    from latency.profiles import Profile as Measured

    cells = [
        {**{k: v for k, v in cell.items() if not k.startswith("ci_")}, "us": cell["energy_mj"]}
        for cell in profile.cells
        if "energy_mj" in cell
    ]
    if not cells:
        raise ProfileError(
            f"a limit on energy was asked; none of the {len(profile.cells)} cells of the profile holds energy_mj; "
            "write each cell's energy in mJ beside its us, or limit the latency alone"
        )
    return Cost(structure, Measured(profile.environment, cells), unit="mJ")


class LatencyCost(Cost):
    """Predicted latency of a network in µs.

    Args:
        structure: ops and groups of the network.
        profile: tables of the device, or the path of the profile's file.
        calibration: the latency of a network from the sum of its ops, which never falls; without one the sum stands.

    Attributes:
        covered: ops that are priced, as ``layer (kind)``.
        not_covered: ops that take time and that the cost leaves out, as ``layer (kind)``: those without a table, and
            those of kinds that no profile has.

    Raises:
        ProfileError: a conv or linear op without a table, or a file that is no profile.
        UsageError: something else than a structure and a profile.
    """

    def __init__(
        self, structure: Structure, profile: TableSource | str | Path, calibration: Calibration | None = None
    ) -> None:
        if isinstance(profile, str | Path):
            from latency.profiles import Profile

            profile = Profile.load(profile)
        if not isinstance(structure, Structure) or not callable(getattr(profile, "table", None)):
            raise UsageError(
                f"LatencyCost({type(structure).__name__}, {type(profile).__name__}) was asked; give the structure from "
                "halpiee.trace(model, inputs), and a latency.Profile or the path of its file"
            )
        super().__init__(structure, profile, unit="µs")
        self.calibration = calibration

    def with_calibration(self, calibration: Calibration | None) -> LatencyCost:
        """Returns the same cost under another calibration; tables and candidates are shared."""
        _ = self.candidates
        other = copy.copy(self)
        other.calibration = calibration
        other.__dict__.pop("dense", None)
        return other

    def from_raw(self, raw: float) -> float:
        """Returns the calibrated latency of a network whose ops add up to ``raw``."""
        return raw if self.calibration is None else float(self.calibration.apply(raw))

    def to_raw(self, limit: float) -> float:
        """Returns the largest sum of ops whose calibrated latency is within a limit; below 0 where none is.

        Found by bisection on the calibration itself, to the last bit: no formula of an inverse rounds otherwise. The
        solvers pass a budget by rounding, ``TOLERANCE`` of it; the latency of what they allow passes the limit by as
        little.
        """
        if self.calibration is None or math.isnan(limit):
            return limit
        room = limit + TOLERANCE * abs(limit)
        low, high = 0.0, 1.0
        if self.from_raw(low) > room:
            return -1.0
        while self.from_raw(high) <= room and high < 1e300:
            low, high = high, 2.0 * high
        while low < (middle := low + (high - low) / 2) < high:
            low, high = (middle, high) if self.from_raw(middle) <= room else (low, middle)
        return low / (1 + TOLERANCE)

    @property
    def dense_us(self) -> float:
        """Calibrated latency of the whole network."""
        return self.dense

    def sum_us(self, counts: Mapping[str, int]) -> float:
        """Returns the uncalibrated sum of the ops; groups that ``counts`` does not name are whole."""
        return self.raw(counts)

    def total_us(self, counts: Mapping[str, int]) -> float:
        """Returns the calibrated latency; arguments as for ``total``."""
        return self.total(counts)

    def step_us(self, counts: Mapping[str, int], name: str, count: int) -> float:
        """Returns the calibrated latency added by changing one group of ``counts`` to another count."""
        return self.step(counts, name, count)

    def next_step_us(
        self, counts: Mapping[str, int], options: Mapping[str, Sequence[int] | IntArray]
    ) -> float:
        """Returns the smallest latency added by any group's next wider option; NaN where nothing can grow."""
        return self.next_step(counts, options)


def _axis(
    side: OpSide, free: Mapping[str, IntArray], number: Mapping[str, int], whole: Mapping[str, int]
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


MOST_CANDIDATES = 128
"""Candidate widths per group: a smooth table offers every width, and joined tables grow with their square."""


def thin(candidates: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Returns at most MOST_CANDIDATES: multiples of a power of two, the narrowest and the dense width."""
    step = 1
    kept = candidates
    while len(kept) > MOST_CANDIDATES:
        step *= 2
        kept = tuple(k for k in candidates if k % step == 0 or k in (candidates[0], size))
    return kept


def restrict(
    candidates: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    *,
    multiple: int = 1,
    least: float = 0.0,
    most: float = 1.0,
    vanish: bool = True,
    between: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Returns the candidates of every group that keep to what is asked.

    A width that is no multiple becomes the next multiple below: what saves nothing more is never offered. A vanished
    group keeps no share, so ``least`` does not speak of it.

    Args:
        candidates: group name → ascending widths.
        sizes: group name → dense width.
        multiple: widths are multiples of this, the dense width aside.
        least: fewest units that every group keeps: a share of its units where it is below 1, else a number of units;
            a group with fewer stays whole.
        most: share that it keeps at most; a group without so narrow a width keeps its narrowest.
        vanish: whether groups may be emptied where 0 is a candidate.
        between: group name → fewest and most units; 0 as the fewest lets a group vanish that may.

    Raises:
        UsageError: a multiple below 1, shares that leave nothing, an unknown group, a range without a width.
    """
    if multiple < 1 or least < 0 or not 0 < most <= 1 or (least < 1 and least > most):
        raise UsageError(
            f"widths of multiples of {multiple}, at least {least:g} and at most {most:g} of each group were asked; "
            "give a multiple of at least 1, a share below 1 or a number of units as the least, and a share as the most"
        )
    between = between or {}
    for name in between:
        if name not in sizes:
            hint = unknown(name, sizes, "see `halpiee explain` for their names")
            raise UsageError(f"a range was asked for {name!r}, which is no group that can be pruned; {hint}")
    found = {}
    for name, widths in candidates.items():
        size = sizes[name]
        low, high = between.get(name, (0, size))
        fewest = least * size if least < 1 else min(least, size)
        rounded = {k if k == size else k // multiple * multiple for k in widths} - {0}
        fits = {k for k in rounded if (k == size or k >= fewest) and k <= most * size + 1e-9}
        offered = fits or {min(rounded)}
        if 0 in widths and vanish:
            offered = offered | {0}
        kept = tuple(sorted(k for k in offered if low <= k <= high))
        if not kept:
            raise UsageError(
                f"{low} … {high} units of {name!r} were asked; its widths are "
                f"{', '.join(map(str, sorted(offered)))}; give a range that holds one of them"
            )
        found[name] = kept
    return found


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
    """Returns the ops that have a table, and as ``layer (kind)`` what takes time and has none.

    The latter are timed ops whose table is not there, and ops of a kind that no profile has entries for.

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
