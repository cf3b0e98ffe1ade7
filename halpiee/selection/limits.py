"""Several limits at once (two devices, two batch sizes, MACs, parameters, memory), and many budgets at once.

Any non-negative mix of the limits is one limit that every legal choice also keeps (a surrogate relaxation),
so the joint solver gives a bound and a choice for each mix; mixes lean towards what the last choice exceeded.
The best choice, brought within all limits by single changes, is CP-SAT's hint where the gap is still open.

MACs, parameters and bytes are tables per op, by formula instead of measured, so that the same cost model turns them
into limits beside a latency. Units: MACs of one input, parameters of conv and linear weights, bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from halpiee.errors import BudgetError, ProfileError, UsageError
from halpiee.selection import cpsat
from halpiee.selection.cost import Also, Cost
from halpiee.selection.cpsat import DEFAULT_TIME_LIMIT_S
from halpiee.selection.frontier import Dual
from halpiee.selection.grid import (
    TOLERANCE,
    FloatArray,
    Grid,
    IntArray,
    Search,
    Searching,
    Term,
    normalise,
    relative_gap,
)
from halpiee.selection.lagrangian import fill, repair, solve_dual
from halpiee.selection.options import Offers, offer
from halpiee.structure.groups import Structure
from halpiee.structure.plan import Selection
from latency.op import CONTRACTIONS, Op

if TYPE_CHECKING:
    from latency.profiles import Profile

ROUNDS = 12
"""Mixes that are tried; each is one joint solve."""


class _LimitError(BudgetError):
    """A limit below the smallest choice; ``number`` is its place among the limits."""

    def __init__(self, number: int, asked: float, minimum: float) -> None:
        super().__init__(
            f"limit {number}: at most {asked:.6g} was asked; the smallest choice takes {minimum:.6g}; ask for at least "
            f"{minimum:.6g}",
            minimum=minimum,
        )
        self.number = number


def solve_within(offers: Offers, limits: Sequence[Also], **searching: Unpack[Searching]) -> Selection:
    """Returns the best choice of widths within all limits; the first limit is the budget.

    Raises:
        UsageError: the solver ``linear``, which knows one limit.
        BudgetError: limits that no network keeps; ``.minimum`` where one alone is too small.
    """
    search = Search(**searching)
    if search.solver == "linear":
        raise UsageError(
            f"solver='linear' was asked under {len(limits)} limits, and it knows one; choose 'joint' or 'cpsat'"
        )
    whole = {name: np.array([int(mask.sum())]) for name, mask in offers.whole.items()}
    counts = {**dict(zip(offers.free, offers.counts, strict=True)), **whole}
    grids = []
    for n, one in enumerate(limits):
        terms = one.cost.grid(counts) if n else offers.terms  # those of the first keep blocks together
        grid = normalise(offers.values, [Term(*term) for term in terms], offers.counts)
        grids.append((grid, one.cost.to_raw(float(one.most))))
    try:
        choice, upper_bound, path = solve_limits(grids, search)
    except _LimitError as error:
        one = limits[error.number]
        least = one.cost.from_raw(error.minimum)
        raise BudgetError(
            f"{one.name}: at most {one.most:.6g} was asked; the smallest network allowed takes {least:.6g} "
            f"{one.cost.unit}; ask for at least {least:.6g}",
            minimum=least,
        ) from None
    pairs = [(one.cost, one.most) for one in limits]
    value = grids[0][0].value(choice)
    return offers.selection(pairs, choice, value=value, upper_bound=upper_bound, path=path)


def solve_limits(limits: Sequence[tuple[Grid, float]], search: Search) -> tuple[IntArray, float, str]:
    """Solves grids over the same groups and values, each within its budget; returns choice, upper bound and path.

    Raises:
        _LimitError: one limit that no choice keeps; a BudgetError whose ``.minimum`` is NaN: limits that none keeps
            together.
    """
    gap, limit_s = search.gap, search.time_limit_s
    until = time.monotonic() + (DEFAULT_TIME_LIMIT_S if limit_s is None else limit_s)
    grids = [grid for grid, _ in limits]
    rooms = [budget + TOLERANCE * abs(budget) for _, budget in limits]
    best, upper_bound = _surrogate(grids, rooms, gap=gap, until=until)
    value = -math.inf if best is None else grids[0].value(best)
    if best is not None and relative_gap(value, upper_bound) <= gap:
        return best, max(upper_bound, value), "surrogate"
    left = replace(search, time_limit_s=max(1.0, until - time.monotonic()))
    chosen, least_bound = cpsat.search(limits, left, hint=best, upper_bound=upper_bound)
    path = "surrogate"
    within = None if chosen is None else repair(grids, chosen, rooms)
    if within is not None:
        within = fill(grids, within, rooms)
        if grids[0].value(within) > value:
            best, value, path = within, grids[0].value(within), "cpsat"
    if best is None:
        none = least_bound == -math.inf
        reason = "no choice keeps them all" if none else "none was found in the time allowed"
        raise _incompatible(len(limits), reason)
    upper_bound = max(value, least_bound)
    return best, upper_bound, path if relative_gap(value, upper_bound) <= gap else f"{path}+time"


def _incompatible(n: int, reason: str) -> BudgetError:
    return BudgetError(
        f"{n} limits were asked at once; each can be kept alone, but {reason}; relax one of them"
    )


def _surrogate(
    grids: Sequence[Grid], rooms: Sequence[float], *, gap: float, until: float
) -> tuple[IntArray | None, float]:
    """Returns the best choice within all limits that a mix of limits leads to, and the least bound of all mixes."""
    spread = np.array([sum(float(np.ptp(f.table)) for f in grid.factors) or 1.0 for grid in grids])
    mix = np.ones(len(grids)) / len(grids)
    best, value, upper_bound = None, -math.inf, math.inf
    for turn in range(-len(grids), ROUNDS):
        # First every limit by itself, then mixes of all.
        mixed, room = (grids[turn], rooms[turn]) if turn < 0 else _mix(grids, rooms, mix / spread)
        try:
            found = solve_dual(mixed, room, Search(gap=max(gap, 1e-4)))
        except BudgetError as error:
            if turn < 0:
                raise _LimitError(turn % len(grids), rooms[turn], error.minimum) from None
            raise _incompatible(len(grids), "no choice keeps them all") from error
        upper_bound = min(upper_bound, found.upper_bound)
        within = repair(grids, found.choice, rooms)
        if within is not None:
            within = fill(grids, within, rooms)
            if grids[0].value(within) > value:
                best, value = within, grids[0].value(within)
        if (best is not None and relative_gap(value, upper_bound) <= gap) or time.monotonic() > until:
            break
        if turn >= 0:
            excess = np.array(
                [(g.cost(found.choice) - r) / s for g, r, s in zip(grids, rooms, spread, strict=True)]
            )
            mix = mix * np.exp(2.0 / (1 + turn) * excess / (np.abs(excess).max() or 1.0))
            mix /= mix.sum()
    return best, upper_bound


def _mix(grids: Sequence[Grid], rooms: Sequence[float], weights: FloatArray) -> tuple[Grid, float]:
    """Returns the weighted sum of limits as one limit."""
    terms = [
        Term(ins, outs, weight * cost)
        for grid, weight in zip(grids, weights, strict=True)
        for ins, outs, cost in grid.terms
        if weight
    ]
    return normalise(grids[0].values, terms, grids[0].widths), float(np.dot(weights, rooms))


def pareto(
    scores: Mapping[str, Tensor],
    cost: Cost,
    budgets: Sequence[float],
    *,
    gap: float = 1e-3,
    protect: Collection[str] = (),
) -> list[Selection]:
    """Returns one selection per budget, in the order given, without those below the narrowest network.

    Budgets are in the unit of the cost; the other arguments are those of ``choose``.
    """
    offers = offer(scores, cost, protect=protect)
    grid = normalise(offers.values, [Term(*term) for term in offers.terms], offers.counts)
    dual = Dual(grid)
    points = []
    for most in map(float, budgets):
        with suppress(BudgetError):
            if cost.also:
                points.append(solve_within(offers, [Also("the budget", cost, most), *cost.also], gap=gap))
                continue
            found = solve_dual(grid, cost.to_raw(most), Search(gap=gap), dual=dual)
            bound = {"value": found.value, "upper_bound": found.upper_bound}
            points.append(offers.selection([(cost, most)], found.choice, path=found.path, **bound))
    return points


Quantity = Literal["macs", "params", "peak_bytes"]

UNITS: Mapping[Quantity, str] = {"macs": "MACs", "params": "parameters", "peak_bytes": "bytes"}

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


def resource(structure: Structure, quantity: Quantity, *, above: float = 0.0) -> Cost:
    """Returns the cost of a quantity that is counted, not measured.

    Quantities are ``macs`` and ``params`` of conv and linear layers, and ``peak_bytes``: how far the input and output
    of each op together exceed ``above`` bytes, added over ops. Limit it to 0 to keep every op within ``above``;
    tensors of a skip connection beside the op are not counted.
    """
    return Cost(structure, _Formulas(quantity, above, structure.batch), unit=UNITS[quantity])


def peak_bytes(structure: Structure, counts: Mapping[str, int] | None = None) -> float:
    """Returns the bytes of the input and output of the largest op; a group missing from ``counts`` is whole."""
    formulas = _Formulas("peak_bytes", 0.0, structure.batch)
    sides = ((timed.op, *structure.sides(timed, counts or {})) for timed in structure.ops)
    return max(
        (float(formulas.table(op).lookup(np.array(i), np.array(o))) for op, i, o in sides), default=0.0
    )


@dataclass(frozen=True)
class _Formulas:
    """Tables by formula."""

    quantity: Quantity
    above: float
    batch: int  # inputs in the batch that was traced

    def table(self, op: Op) -> _Formula:
        return _Formula(self, op)


@dataclass(frozen=True)
class _Formula:
    """One op's quantity as a function of its channels."""

    of: _Formulas
    op: Op

    def lookup(self, c_in: IntArray, c_out: IntArray) -> FloatArray:
        """Returns the quantity; the arguments broadcast."""
        op, quantity = self.op, self.of.quantity
        ins, outs = op.d * op.h * op.w, math.prod(_output_size(op))  # positions
        c_in, c_out = np.broadcast_arrays(np.asarray(c_in), np.asarray(c_out))
        if quantity == "peak_bytes":
            size = BYTES[op.dtype] * op.batch * (c_in * ins + c_out * outs)
            return np.asarray(np.maximum(0.0, size - self.of.above))
        if op.kind not in CONTRACTIONS:
            return np.zeros(c_in.shape)
        weights = c_out * (c_in if op.groups == 1 else op.c_in // op.groups) * math.prod(op.kernel)
        if quantity == "params":
            return np.asarray(weights, dtype=np.float64)
        positions = ins if op.kind == "conv_transpose" else outs
        return np.asarray(weights * (positions * op.batch) // self.of.batch, dtype=np.float64)

    def measured(self, c_in: IntArray, c_out: IntArray) -> NDArray[np.bool_]:
        """Returns True everywhere: formulas interpolate nothing."""
        return np.ones(np.broadcast_shapes(np.shape(c_in), np.shape(c_out)), dtype=np.bool_)


def _output_size(op: Op) -> tuple[int, ...]:
    """Returns the output's spatial size."""
    if op.kind == "global_avg_pool":
        return (1,)
    if not op.kernel:
        return (op.d, op.h, op.w)
    size = op.spatial
    none, one = (0,) * len(size), (1,) * len(size)
    sides = zip(size, op.kernel, op.stride or one, op.padding or none, op.dilation or one, strict=False)
    if op.kind == "conv_transpose":
        return tuple((n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in sides)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)


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
