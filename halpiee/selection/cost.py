"""What does the network cost, as a function of the units that every group keeps? µs, mJ, MACs, parameters or bytes.

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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from torch import Tensor

from halpiee.errors import UsageError, need, unknown
from halpiee.selection.candidates import STEP, restrict, thin
from halpiee.selection.grid import TOLERANCE, FloatArray, IntArray, Side
from halpiee.selection.priced import Axis, OpSide, Priced, TableSource, axis_of, price
from halpiee.structure.groups import Structure

if TYPE_CHECKING:
    from latency.predict import Calibration, Interval


@dataclass(frozen=True)
class Also:
    """A limit beside the budget."""

    name: str  # what it is called in messages: ``macs``, ``profile=gpu.jsonl``
    cost: Cost  # what is limited
    most: float  # the most of it, in its unit
    share: float | None = None  # of the dense network, where ``most`` was asked as one
    # times the dense network and what a keep leaves of it side by side, on the target of the cost: (dense µs,
    # pruned µs); ``None``: it is not timed here
    measure: Callable[[Mapping[str, Tensor]], tuple[float, float]] | None = None
    # what the network that was chosen took when it was measured; ``None``: it was not
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
        """Returns the cost; ``counts`` is group name → units kept, of any of the prunable groups; others are whole."""
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
        step = self._steps(counts)
        wider = {name: [int(k) for k in allowed if k > counts[name]] for name, allowed in options.items()}
        return min((step(name, min(widths)) for name, widths in wider.items() if widths), default=math.nan)

    sum_us, step_us, next_step_us = raw, step, next_step  # names for scripts whose unit is µs

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
        sides = ((op, op.ins.channels(full), op.outs.channels(full)) for op in self._ops)
        return tuple(
            op.name
            for op, c_in, c_out in sides
            if c_in > 0 and c_out > 0
            if not op.cells.table.measured(np.array([c_in]), np.array([c_out])).all()
        )

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
        """Returns the terms of ``solve_grid``, which add up to the sum of the ops; their budget is ``to_raw(limit)``.

        ``options`` are the ascending counts, the grid's ``widths``, of groups that are numbered in this order. Groups
        with one option or none do not vary. What does not depend on the choice is a term with two fixed sides.
        """
        counts = {name: np.asarray(k, dtype=np.int64) for name, k in options.items()}
        whole = self._full({name: int(k[-1]) for name, k in counts.items()})
        number = {name: i for i, name in enumerate(counts)}
        free = {name: k for name, k in counts.items() if len(k) > 1}
        constant = 0.0
        axes: dict[OpSide, Axis] = {}
        terms: dict[tuple[Side, Side], FloatArray] = {}
        for op in self._ops:
            for side in (op.ins, op.outs):
                if side not in axes:
                    axes[side] = axis_of(side, free, number, whole)
            ins, outs = axes[op.ins], axes[op.outs]
            if ins.side is None and outs.side is None:
                constant += op.cells.at(int(ins.channels[0]), int(outs.channels[0]))
                continue
            c_in, c_out = ins.channels[ins.possible], outs.channels[outs.possible]
            if ins.side == outs.side:
                # Both widths are the same count: a cost of the output side alone.
                table = np.zeros((1, len(outs.channels)))
                table[0, outs.possible] = op.cells.pairs(c_in, c_out)
                key: tuple[Side, Side] = (None, outs.side)
            else:
                table = np.zeros((len(ins.channels), len(outs.channels)))
                table[np.ix_(ins.possible, outs.possible)] = op.cells.grid(c_in, c_out)
                key = (ins.side, outs.side)
            terms[key] = terms[key] + table if key in terms else table
        return [*((*key, table) for key, table in terms.items()), (None, None, np.array([[constant]]))]

    def _full(self, counts: Mapping[str, int]) -> dict[str, int]:
        need(counts, Mapping, "counts", "give {group name: units that are kept}")
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
        """Returns a function of a group and a count: the cost added by changing that group of ``counts``."""
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


class LatencyCost(Cost):
    """Predicted latency of a network in µs; attributes as of ``Cost``.

    Args:
        structure: ops and groups of the network.
        profile: tables of the device, or the path of the profile's file.
        calibration: the latency of a network from the sum of its ops, which never falls; without one the sum itself.

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
        if calibration is not None:
            from latency.predict import Calibration

            need(calibration, Calibration, "a calibration", "give what latency.predict.fit returns")
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

        Found by bisection on the calibration itself, to the last bit, so that no inverse rounds differently. The
        solvers may exceed a budget by rounding, ``TOLERANCE`` of it, and the latency then exceeds the limit by as
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

    total_us = Cost.total

    def interval(self, counts: Mapping[str, int], share: float = 0.9) -> Interval | None:
        """Returns the range that holds the measured latency in a share of cases; see ``latency.predict.interval``.

        The errors of cells that the sweep held out are assumed independent: those of a network of many ops average
        out. None without held-out cells and without three networks measured whole.
        """
        from latency.predict import interval

        full = self._full(counts)
        ops = [op.cells.at(op.ins.channels(full), op.outs.channels(full)) for op in self._ops]
        errors = self._held_out
        if not errors and (self.calibration is None or len(self.calibration.points) < 3):
            return None
        total = sum(ops)
        spread = None
        if errors:
            off = math.sqrt(sum(e * e for e in errors) / len(errors))
            spread = off * math.sqrt(sum(us * us for us in ops)) / total if total else 0.0
        return interval(self.calibration, total, cells=spread, share=share)

    @cached_property
    def _held_out(self) -> tuple[float, ...]:
        """Relative errors of the tables at the cells that were held out."""
        from latency.inspect import held_out
        from latency.profiles import Profile

        return held_out(self.profile) if isinstance(self.profile, Profile) else ()
