"""What does an op cost at any width? In µs, from the cells that were measured.

Latency is a staircase in the number of channels: between two edges nothing is saved. A table therefore rounds a
width up to the next edge, and where an edge itself was not measured it interpolates between measured edges:
along an axis linearly in u, inside a cross of full rows R and columns C by

``T(i, j) = Σ_r α_r(i)·T(r, j) + Σ_c β_c(j)·T(i, c) − Σ_r Σ_c α_r(i)·β_c(j)·T(r, c)``

(Gordon's transfinite interpolation, α and β hat functions of u), which returns every measured cell unchanged and
is exact wherever rows differ by a linear change along the other axis.

Widths inside a step may even be slower than its edge, by a factor that the sweep measured for each kind of op.

u is the width itself, or, where steps are unequal with a period, the width normalised by that *pattern*: a kernel that
works on four blocks of channels at a time pays 55 % of the four for the first one. ``u(w) = P·(⌊w/P⌋ + φ(w mod P))``
with the period P = step · len(pattern) and φ from the pattern.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency.errors import ProfileError
from latency.op import Op, in_words

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOST_CELLS = 2**24
"""Of one table, measured or between; 4,096 widths on both sides."""

USED = ("sweep",)
"""Roles whose cells are looked up; the others (anchor, repeat, holdout, probe) tell how good the table is."""


class Table:
    """Latencies of one op over (C_in, C_out).

    Args:
        op: the op, at any width.
        cells: its cells: mappings with ``c_in``, ``c_out``, ``us``, and, where the sweep found steps,
            ``steps``: the two widths whose multiples are the edges; ``pattern``: for each axis null or the shares
            of a period's cost at its edges, ascending to 1; ``slow``: for each axis null or ``[align, factor]``,
            what widths that are no multiple of ``align`` take over the edge of their step.

    Attributes:
        op: the op, at the widest measured width.
        steps: edges are the multiples of these widths, for C_in and C_out; 1 where every width counts.

    Raises:
        ProfileError: no cell, or one without a time.
    """

    def __init__(self, op: Op, cells: Iterable[Mapping[str, Any]]) -> None:
        used = [c for c in cells if c.get("role", "sweep") in USED]
        if not used:
            raise ProfileError(
                f"a table was asked for {in_words(op)}; no cell of it was measured; profile this model on this "
                "device: halpiee profile MODEL"
            )
        for cell in used:
            check_time(cell, in_words(op))
        self.diagonal = op.diagonal
        self._ratio = op.c_out / op.c_in
        ins = np.array([c["c_in"] for c in used], dtype=np.int64)
        outs = ins if self.diagonal else np.array([c["c_out"] for c in used], dtype=np.int64)
        us = np.array([c["us"] for c in used], dtype=np.float64)
        self._ins, row = np.unique(ins, return_inverse=True)
        self._outs, column = np.unique(np.ones_like(ins) if self.diagonal else outs, return_inverse=True)
        if len(self._ins) * len(self._outs) > MOST_CELLS:
            raise ProfileError(
                f"a table was asked for {in_words(op)} of {len(self._ins)} by {len(self._outs)} widths; it holds up to "
                f"{MOST_CELLS:,} cells: measure fewer widths"
            )
        grid = np.full((len(self._ins), len(self._outs)), np.nan)
        grid[row, column] = us
        self._present = ~np.isnan(grid)
        stated: Mapping[str, Any] = next((c for c in reversed(used) if c.get("steps")), {})
        self.steps: tuple[int, int] = tuple(stated.get("steps", ())) or (
            _common_step(self._ins),
            _common_step(self._outs),
        )
        shapes = tuple(stated.get("pattern") or (None, None))
        self._axes = tuple(
            _Axis(measured, step, shape, slow)
            for measured, step, shape, slow in zip(
                (self._ins, self._outs), self.steps, shapes, stated.get("slow") or (None, None), strict=True
            )
        )
        self._grid = _filled(grid, *(axis.nodes for axis in self._axes))
        widest = int(self._ins[-1]), int(outs.max())
        self.op = op.with_channels(widest[0], round(widest[0] * self._ratio) if self.diagonal else widest[1])

    def lookup(self, c_in: Any, c_out: Any) -> FloatArray:
        """Returns µs; 0 where a width is 0.

        Args:
            c_in: widths, integers of any shape.
            c_out: widths that broadcast against them.

        Raises:
            ProfileError: a width beyond the measured ones, or off the diagonal of an op that has only that.
        """
        ins, outs = self._checked(c_in, c_out)
        low, high, part, factor = self._axes[0].at(ins)
        if self.diagonal:
            line = self._grid[:, 0]
            us = factor * (line[low] * (1.0 - part) + line[high] * part)
            return np.where(ins > 0, us, 0.0)
        left, right, share, other = self._axes[1].at(outs)
        near = self._grid[low, left] * (1.0 - part) + self._grid[high, left] * part
        far = self._grid[low, right] * (1.0 - part) + self._grid[high, right] * part
        us = factor * other * (near * (1.0 - share) + far * share)
        return np.where((ins > 0) & (outs > 0), us, 0.0)

    def measured(self, c_in: Any, c_out: Any) -> NDArray[np.bool_]:
        """Returns whether the cell itself was measured; arguments as in ``lookup``."""
        ins, outs = self._checked(c_in, c_out)
        row = np.minimum(np.searchsorted(self._ins, ins), len(self._ins) - 1)
        found: NDArray[np.bool_]
        if self.diagonal:
            found = self._ins[row] == ins
            return found
        column = np.minimum(np.searchsorted(self._outs, outs), len(self._outs) - 1)
        found = (self._ins[row] == ins) & (self._outs[column] == outs) & self._present[row, column]
        return found

    def _checked(self, c_in: Any, c_out: Any) -> tuple[IntArray, IntArray]:
        ins, outs = np.asarray(c_in, dtype=np.int64), np.asarray(c_out, dtype=np.int64)
        if self.diagonal:
            apart = (np.abs(outs - ins * self._ratio) > 0.5) & (ins > 0) & (outs > 0)
            if np.any(apart):
                raise ProfileError(
                    f"a latency was asked for {in_words(self.op)} with C_out beside {self._ratio:g}·C_in; both "
                    "sides of this op are the same channels; ask along the diagonal"
                )
            pairs = [("C_in", ins, int(self._ins[-1]))]
            ins, outs = np.broadcast_arrays(ins, outs)
            ins = np.where(outs > 0, ins, 0) if np.any(outs == 0) else ins
        else:
            pairs = [("C_in", ins, int(self._ins[-1])), ("C_out", outs, int(self._outs[-1]))]
        for name, widths, widest in pairs:
            if widths.size and (int(widths.max()) > widest or int(widths.min()) < 0):
                wrong = int(widths.max()) if int(widths.max()) > widest else int(widths.min())
                raise ProfileError(
                    f"a latency was asked for {in_words(self.op)} at {name} = {wrong}; the profile holds "
                    f"0 … {widest}; profile the model at that width: halpiee profile MODEL"
                )
        return ins, outs


class _Axis:
    """For every width of one axis: the two measured widths around its edge, and its position between them."""

    def __init__(
        self,
        measured: IntArray,
        step: int,
        pattern: Sequence[float] | None,
        slow: Sequence[float] | None = None,
    ) -> None:
        widest = int(measured[-1])
        edges = np.union1d(measured, np.arange(step, widest + 1, step))
        edge = np.maximum(edges[np.searchsorted(edges, np.arange(widest + 1))], measured[0])
        self.nodes = normalised_width(measured, step, pattern)
        self.high = np.searchsorted(measured, edge)
        exact = measured[self.high] == edge
        self.low = np.where(exact, self.high, self.high - 1)
        gap = np.where(exact, 1.0, self.nodes[self.high] - self.nodes[self.low])
        self.part = np.where(exact, 0.0, (normalised_width(edge, step, pattern) - self.nodes[self.low]) / gap)

        self.factor = np.ones(widest + 1)
        if slow:
            inside = (np.arange(widest + 1) % int(slow[0]) > 0) & (edge != np.arange(widest + 1))
            self.factor[inside] = slow[1]

    def at(self, widths: IntArray) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
        return self.low[widths], self.high[widths], self.part[widths], self.factor[widths]


def normalised_width(widths: IntArray, step: int, pattern: Sequence[float] | None) -> FloatArray:
    """Returns the normalised width u(c) (formula at the top), linear between the edges of a pattern."""
    if not pattern or len(pattern) < 2:
        return widths.astype(np.float64)
    period = step * len(pattern)
    shape = np.interp(widths % period, np.arange(len(pattern) + 1) * step, [0.0, *pattern])
    found: FloatArray = period * (widths // period + shape)
    return found


def gordon(
    grid: FloatArray, ins: FloatArray, outs: FloatArray, rows: IntArray, columns: IntArray
) -> FloatArray:
    """Fills a grid from full rows and full columns; see the formula at the top.

    Args:
        grid: µs ``[len(ins), len(outs)]``; only the named rows and columns are read.
        ins: ascending u of the rows.
        outs: ascending u of the columns.
        rows: indices of full rows.
        columns: indices of full columns.
    """
    alpha = _hats(ins, rows)
    beta = _hats(outs, columns)
    cross = grid[np.ix_(rows, columns)]
    found: FloatArray = alpha @ grid[rows] + grid[:, columns] @ beta.T - alpha @ cross @ beta.T
    return found


def _hats(u: FloatArray, nodes: IntArray) -> FloatArray:
    """Returns the weight of each node at each place ``[len(u), len(nodes)]``: piecewise linear, flat outside."""
    return np.stack([np.interp(u, u[nodes], unit) for unit in np.eye(len(nodes))], axis=1)


def _filled(grid: FloatArray, ins: FloatArray, outs: FloatArray) -> FloatArray:
    """Returns the grid with every cell that was not measured predicted from those that were."""
    missing = np.isnan(grid)
    if not missing.any():
        return grid
    rows, columns = np.flatnonzero(~missing.any(axis=1)), np.flatnonzero(~missing.any(axis=0))
    if len(rows) and len(columns):
        with np.errstate(invalid="ignore"):
            predicted = gordon(np.nan_to_num(grid), ins, outs, rows, columns)
    elif len(rows) > 1:
        predicted = _hats(ins, rows) @ grid[rows]
    elif len(columns) > 1:
        predicted = grid[:, columns] @ _hats(outs, columns).T
    else:
        predicted = _scattered(grid, ins, outs)
    # Noise at the corners of a cross may carry a prediction below every measured cell; time is never negative.
    return np.where(missing, np.maximum(predicted, 0.5 * max(0.0, float(np.nanmin(grid)))), grid)


def _scattered(grid: FloatArray, ins: FloatArray, outs: FloatArray) -> FloatArray:
    """Predicts from scattered cells: a fit of ``1, i, j, i·j``, times the ratio at nearby cells."""
    x, y = np.meshgrid(ins / ins[-1], outs / outs[-1], indexing="ij")
    known = ~np.isnan(grid)
    basis = np.stack([np.ones_like(x), x, y, x * y], axis=-1)
    times = grid[known]
    weight = 1.0 / np.maximum(np.abs(times), 1e-9)
    coefficients = np.linalg.lstsq(basis[known] * weight[:, None], times * weight, rcond=None)[0]
    fit = np.maximum(basis @ coefficients, 0.05 * float(times.min()) if times.min() > 0 else 0.0)
    ratio = times / np.maximum(fit[known], 1e-9)
    distance = (x[..., None] - x[known]) ** 2 + (y[..., None] - y[known]) ** 2
    near = 1.0 / np.maximum(distance, 1e-6) ** 2
    found: FloatArray = fit * ((near * ratio).sum(axis=-1) / near.sum(axis=-1))
    return found


def _common_step(widths: IntArray) -> int:
    """Returns the step that regular widths tell: their greatest common divisor, the widest one aside."""
    return int(np.gcd.reduce(widths[:-1] if len(widths) > 2 else widths)) if len(widths) > 1 else 1


def check_time(cell: Mapping[str, Any], what: str) -> None:
    """Refuses a cell whose time is not a finite number of µs above 0."""
    us = cell.get("us")
    if isinstance(us, bool) or not isinstance(us, numbers.Real) or not 0 < float(us) < math.inf:
        raise ProfileError(
            f"the cell of {what} at {cell['c_in']} → {cell['c_out']} has the time {us!r} µs; "
            "measure it again: remove its line from the profile and resume the sweep"
        )
