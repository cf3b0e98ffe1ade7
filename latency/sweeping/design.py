"""Which few cells determine a table? Edges of the steps, a cross of rows and columns, and a hold-out.

Between edges nothing changes, so only edges are measured. Along a long axis a few edges are enough, at the ends of
periods, narrow ones closer together. Of the grid of two axes three full rows and three full columns are measured;
the table fills the rest (`latency.table.gordon`), and a few random cells that are measured but not used say how
well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latency.op import Op
from latency.profiles import Profile
from latency.sweeping.cold_weights import ColdWeights
from latency.sweeping.steps import Steps

DENSE_AXIS = 4
"""Axes with at most so many edges are measured at all of them."""

LONG_AXIS = 6
"""Ends of periods that are measured along a longer axis."""

IRREGULAR_AXIS = 16
"""Axes with at most so many edges are measured at all of them where steps are irregular."""

WHOLE_GRID = 16
"""Grids with at most so many cells are measured whole."""


@dataclass(frozen=True)
class Spec:
    """What a table must cover."""

    op: Op  # the op at its widest
    ins: tuple[int, ...]  # widths of C_in at which networks were built
    outs: tuple[int, ...]  # likewise of C_out
    fixed_in: bool = False  # whether C_in takes no other width
    fixed_out: bool = False  # whether C_out takes no other width


@dataclass(frozen=True)
class Design:
    """The cells of one table, as widths (C_in, C_out)."""

    sweep: tuple[tuple[int, int], ...]  # cells that the table is made of
    holdout: tuple[tuple[int, int], ...]  # cells that only judge it
    candidates: int  # number of cells at the crossings of all edges


@dataclass(frozen=True)
class Estimate:
    """What a sweep would do."""

    ops: int  # ops that were named
    tables: int  # unique tables among them
    cells: int  # cells that would be measured
    holdout: int  # of these, cells that only judge the tables
    candidates: int  # cells at the crossings of all edges, which the tables will answer for
    seconds: float  # roughly how long it takes on one uncontended core

    @classmethod
    def of(
        cls,
        wanted: Sequence[Spec],
        designs: Sequence[Design],
        memory: ColdWeights | None,
        *,
        ops: int,
        refines: bool,
    ) -> Estimate:
        """Estimates the time of some cells."""
        seconds = 5.0  # the anchor, and the steps
        for spec, cells in zip(wanted, designs, strict=True):
            for c_in, c_out in (*cells.sweep, *cells.holdout):
                op = spec.op.with_channels(c_in, c_out)
                once = op.macs / 2e10
                # Builds of two graphs, and fifty rounds of three times the op as far as a quarter of a second goes,
                # a few of each build in any case; where its weights come from memory, what drives them there.
                seconds += 0.05 + max(min(0.25, 150.0 * once), 45.0 * once)
                seconds += 0.2 if memory is not None and memory.has(op) else 0.0
        return cls(
            ops=ops,
            tables=len(wanted),
            cells=sum(len(d.sweep) + len(d.holdout) for d in designs),
            holdout=sum(len(d.holdout) for d in designs),
            candidates=sum(d.candidates for d in designs),
            seconds=seconds
            * (1.4 if refines else 1.0),  # cells that refinement adds, and that are measured again
        )

    def __str__(self) -> str:
        return (
            f"{self.ops} ops, {self.tables} tables: {self.cells} cells ({self.holdout} held out) of "
            f"{self.candidates}, about {self.seconds:.0f} s"
        )


def specs(ops: Iterable[Op], fixed: Mapping[Op, tuple[bool, bool]] | None = None) -> list[Spec]:
    """Returns the unique tables of some ops, in order of appearance; ``fixed``: whose C_in and C_out never change."""
    fixed = fixed or {}
    found: dict[str, list[Op]] = {}
    for op in ops:
        found.setdefault(op.table_key(), []).append(op)
    result = []
    for members in found.values():
        widest_in, widest_out = max(o.c_in for o in members), max(o.c_out for o in members)
        result.append(
            Spec(
                op=members[0].with_channels(widest_in, widest_out),
                ins=tuple(sorted({o.c_in for o in members})),
                outs=tuple(sorted({o.c_out for o in members})),
                fixed_in=all(o.reads_image or fixed.get(o, (False, False))[0] for o in members),
                fixed_out=all(fixed.get(o, (False, False))[1] for o in members),
            )
        )
    return result


def edges(built: tuple[int, ...], step: int, unit: int = 1) -> list[int]:
    """Returns the built widths, and all multiples of step and unit (channels that go together) up to the widest."""
    whole = step if step % unit == 0 else step * unit // int(np.gcd(step, unit))
    return sorted({*range(whole, built[-1] + 1, whole), *built})


def sampled(all_edges: list[int], period: int, keep: tuple[int, ...], irregular: bool) -> list[int]:
    """Returns some of the edges: all of a short axis; else the first, and ends of periods with growing distance."""
    if len(all_edges) <= (IRREGULAR_AXIS if irregular else DENSE_AXIS):
        return all_edges
    ends = [e for e in all_edges if e % period == 0] or all_edges
    index = np.unique(np.round(np.geomspace(1, len(ends), min(LONG_AXIS, len(ends)))).astype(int)) - 1
    return sorted({all_edges[0], *(ends[i] for i in index), *keep})


def design(spec: Spec, found: Steps, *, holdout: int, seed: int) -> Design:
    """Returns the cells of one table, at most a twentieth of them held out."""
    rng = np.random.default_rng([seed, *spec.op.table_key().encode()])
    periods = [step * len(shape or (1,)) for step, shape in zip(found.steps, found.pattern, strict=True)]
    every = crossings(spec, found)
    ins, outs = (sorted({pair[axis] for pair in every}) for axis in (0, 1))
    if spec.op.diagonal:
        rows = sampled(ins, max(periods), spec.ins, found.irregular[0])
        used, share = {(i, o) for i, o in every if i in rows}, 10
    else:
        rows = sampled(ins, periods[0], spec.ins, found.irregular[0])
        columns = sampled(outs, periods[1], spec.outs, found.irregular[1])
        used, share = {(i, o) for i in rows for o in columns}, 20
        if len(used) > WHOLE_GRID:
            full_rows, full_columns = _three(rows), _three(columns)
            used = {(i, o) for i, o in used if i in full_rows or o in full_columns}
            if len(spec.ins) * len(spec.outs) <= WHOLE_GRID:
                used |= {(i, o) for i in spec.ins for o in spec.outs}
    rest = sorted(set(every) - used)
    count = min(holdout, len(every) // share, len(rest))
    held_out = tuple(rest[k] for k in rng.permutation(len(rest))[:count])
    return Design(tuple(sorted(used)), held_out, len(every))


def refined(
    spec: Spec, found: Steps, profile: Profile, least_us: float, *, seed: int, wrong_share: float = 0.04
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns further cells, and cells to hold out, of a table that held-out cells contradict: whole rows and columns.

    A held-out cell that becomes part of the table can no longer judge it; for each another one is drawn. One that
    found no quiet moment shows how contended the machine was, not where the table lacks cells: beside other jobs such
    cells made a sweep of ResNet-50 a fifth longer and no better.
    """
    holdouts = [c for c in profile.cells if _is_of(c, spec, "holdout")]
    if not holdouts or not profile.has_table(spec.op):
        return [], []
    table = profile.table(spec.op)
    line = spec.op.diagonal or spec.fixed_in or spec.fixed_out
    wrong = []
    for cell in holdouts:
        if bool(table.measured(cell["c_in"], cell["c_out"])) or "disturbed" in str(cell.get("method", "")):
            continue
        error = abs(float(table.lookup(cell["c_in"], cell["c_out"])) - cell["us"])
        noise = cell.get("ci_hi", cell["us"]) - cell.get("ci_lo", cell["us"])
        if error > max(wrong_share * cell["us"], noise, 0.0 if line else least_us):
            wrong.append((cell["c_in"], cell["c_out"]))
    if not wrong:
        return [], []
    measured = {(c["c_in"], c["c_out"]) for c in profile.cells if _is_of(c, spec)}
    rows, columns = {i for i, _ in measured}, {o for _, o in measured}
    more: set[tuple[int, int]] = set(wrong)
    if not spec.op.diagonal:
        for i, o in wrong:
            more |= {(i, b) for b in columns} | {(a, o) for a in rows}
    more -= measured
    taken = measured | more | {(c["c_in"], c["c_out"]) for c in holdouts}
    rest = sorted(set(crossings(spec, found)) - taken)
    rng = np.random.default_rng([seed, len(measured), *spec.op.table_key().encode()])
    return sorted(more), [rest[k] for k in rng.permutation(len(rest))[: len(wrong)]]


def crossings(spec: Spec, found: Steps) -> list[tuple[int, int]]:
    """Returns the cells at the crossings of all edges."""
    if spec.op.diagonal:
        ratio = spec.op.c_out / spec.op.c_in
        return [(c, round(c * ratio)) for c in _line(spec, found)]
    ins = _inputs(spec, found.steps[0])
    outs = list(spec.outs) if spec.fixed_out else edges(spec.outs, found.steps[1])
    return [(i, o) for i in ins for o in outs]


def edge_above(op: Op, spec: Spec, found: Steps, c_in: int, c_out: int) -> Op:
    """Returns an op at the right edges above two widths, never beyond the widest that was built."""
    if op.diagonal:
        unit = spec.op.c_in // spec.op.groups if spec.op.groups > 1 else 1
        step = max(found.steps)
        step = step if step % unit == 0 else step * unit
        least = 2 if spec.op.depthwise else 1  # a single channel is no longer told from a dense op
        i = min(max(least, -(-c_in // step) * step), spec.op.c_in)
        return spec.op.with_channels(i, round(i * spec.op.c_out / spec.op.c_in))
    i, o = (
        width if fixed else min(-(-width // step) * step, widest)
        for width, fixed, step, widest in (
            (c_in, spec.fixed_in, found.steps[0], spec.op.c_in),
            (c_out, spec.fixed_out, found.steps[1], spec.op.c_out),
        )
    )
    return spec.op.with_channels(i, o)


def _inputs(spec: Spec, step: int) -> list[int]:
    """Returns the edges of C_in; of a conv of features none so narrow that it would be timed as one of an image."""
    if spec.fixed_in:
        return list(spec.ins)
    return [c for c in edges(spec.ins, step) if not spec.op.with_channels(c, spec.op.c_out).reads_image]


def _line(spec: Spec, found: Steps) -> list[int]:
    """Returns the widths of an op whose sides are the same channels."""
    unit = spec.op.c_in // spec.op.groups if spec.op.groups > 1 else 1
    line = list(spec.ins) if spec.fixed_in else edges(spec.ins, max(found.steps), unit)
    # A single channel is no longer told from a dense op.
    return [c for c in line if c > 1 or not spec.op.depthwise] or line


def _is_of(cell: Mapping[str, Any], spec: Spec, role: str = "sweep") -> bool:
    return cell.get("role", "sweep") == role and Op.from_key(cell).table_key() == spec.op.table_key()


def _three(values: list[int]) -> list[int]:
    """Returns the first, a middle and the last; all of up to three."""
    if len(values) <= 3:
        return values
    middle = min(values[1:-1], key=lambda v: abs(v - 0.4 * values[-1]))
    return [values[0], middle, values[-1]]
