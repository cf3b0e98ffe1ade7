"""The verb: keep the best-scoring units within a budget. Prune and grow are the same call on complementary sets.

A pool is a budget bound to the units of a model. ``choose`` keeps all of ``must``, adds the best of ``may``, and
fills the pool to ``level`` times the budget: counts are exact, ties go to the lower index, every layer or group
keeps at least one unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from halpiee.errors import BudgetError, UsageError
from halpiee.methods.scores import solved_once
from halpiee.selection.choose import choose as choose_by_latency
from halpiee.selection.choose import uniform
from halpiee.selection.cost import LatencyCost
from halpiee.selection.grid import FloatArray
from halpiee.sparsity.distribution import ERK, NM, Budget, Global, Latency, PerLayer, Uniform
from halpiee.sparsity.granularity import Channels, Units
from halpiee.sparsity.mask import Mask
from halpiee.structure.plan import Selection

Solver = Literal["joint", "linear", "cpsat"]


class Pool(Protocol):
    """A budget bound to units."""

    @property
    def total(self) -> float:
        """The budget Ψ, in the pool's unit."""

    @property
    def floor(self) -> float:
        """The smallest share of Ψ worth exchanging at the end of training."""

    def used(self, alive: Mask) -> float:
        """Returns the resource that the active units use, in the pool's unit."""

    def start(self, generator: torch.Generator) -> Selection:
        """Returns a random choice that fills the budget."""

    def choose(self, scores: Mapping[str, Tensor], *, must: Mask, may: Mask, level: float) -> Selection:
        """Returns all of ``must`` with the best of ``may``, within ``level · Ψ``."""


class LatencyPool:
    """One pool for the whole network: predicted latency, both sides of every layer priced.

    The units are channels of the structure that ``cost`` was built from; ``solver`` ``linear`` is HALP's own
    formulation; ``gap`` is the relative gap to certify; for ``values`` see ``selection.choose.choose``.
    """

    def __init__(
        self,
        units: Channels,
        cost: LatencyCost,
        budget_us: float,
        *,
        solver: Solver = "joint",
        gap: float = 1e-3,
        values: Mapping[str, FloatArray] | None = None,
    ) -> None:
        self._values = values
        self.units, self.cost, self.budget_us, self._solver, self._gap = units, cost, budget_us, solver, gap
        sizes = {name: size[0] for name, size in units.sizes.items()}
        self.smallest_us = smallest_us(cost, sizes, budget_us)
        narrowest = {name: cost.candidates[name][0] for name in sizes}
        self._smallest = [one.cost.total(narrowest) for one in cost.also]

    def with_cost(self, cost: LatencyCost, *, jointly: bool = False) -> LatencyPool:
        """Returns the same budget under another latency model; ``jointly`` prices both sides of every layer."""
        solver: Solver = "joint" if jointly and self._solver == "linear" else self._solver
        return LatencyPool(
            self.units, cost, self.budget_us, solver=solver, gap=self._gap, values=self._values
        )

    @property
    def total(self) -> float:
        """The budget Ψ in µs."""
        return self.budget_us

    @property
    def floor(self) -> float:
        """1 % of Ψ, or one step of the coarsest group of the uniform start where that is more."""
        start = self._uniform()
        if start is None:
            return 0.01
        base = self.cost.total_us(start)
        wider = {
            n: next((k for k in self.cost.candidates[n] if k > start[n]), None) for n in self.units.sizes
        }
        steps = (self.cost.total_us({**start, n: k}) - base for n, k in wider.items() if k is not None)
        return max([0.01, *(step / self.budget_us for step in steps)])

    def used(self, alive: Mask) -> float:
        """Returns the predicted latency in µs."""
        return self.cost.total_us(alive.counts)

    def start(self, generator: torch.Generator) -> Selection:
        """Returns the largest uniform width that fits, filled by the solver; which units is random.

        Where only networks without some blocks fit, the solver chooses these, too.
        """
        counts = self._uniform() or dict.fromkeys(self.units.sizes, 0)
        scores = {name: torch.rand(size, generator=generator) for name, size in self.units.sizes.items()}
        must = {}
        for name, score in scores.items():
            must[name] = torch.zeros(len(score), dtype=torch.bool)
            must[name][score.argsort(descending=True, stable=True)[: counts[name]]] = True
        start = Mask(must)
        return self.choose(scores, must=start, may=~start, level=1.0)

    def _uniform(self) -> dict[str, int] | None:
        """Returns the widest uniform network; None where not even the narrowest fits and blocks may go."""
        try:
            return uniform(self.cost, self.budget_us, protect=self.units.left_out)
        except BudgetError:
            if any(self.cost.candidates[name][0] == 0 for name in self.units.sizes):
                return None
            raise

    def choose(self, scores: Mapping[str, Tensor], *, must: Mask, may: Mask, level: float) -> Selection:
        """Returns the solver's selection; after it no group has a next allowed size that still fits.

        ``linear`` keeps its own cost within the capacity, which differs from the true one, and reaches less than half
        of what there is to save: a prune repeats it around what it has kept, until the true cost is within.
        """
        capacity = max(level * self.budget_us, min(self.smallest_us, self.budget_us))
        if self._solver == "linear" and must.density == 0:
            selection = solved_once(lambda: self._step_by_step(scores, may, capacity))
        else:
            selection = solved_once(lambda: self._solve(scores, must, may, capacity, self._solver, level))
        return replace(selection, keep=Mask({name: selection.keep[name] for name in self.units.sizes}))

    def _step_by_step(self, scores: Mapping[str, Tensor], may: Mask, capacity: float) -> Selection:
        """Solves Eq. 5 around the current selection until the true cost is within the capacity.

        Where Eq. 5 cannot reach the capacity, one solve goes a quarter of the way to the least that it can reach, and
        the next starts there. Groups only ever shrink, so it ends; where Eq. 5 sees nothing left to save, the joint
        solver takes over.
        """
        nothing = Mask.full(self.units.sizes, False)
        while True:
            used = self.used(may)
            level = capacity
            try:
                selection = self._solve(scores, nothing, may, level, "linear")
            except BudgetError as error:
                if not error.minimum < used:
                    return self._solve(scores, nothing, may, capacity, "joint")
                level = used - (used - error.minimum) / 4
                selection = self._solve(scores, nothing, may, level, "linear")
            if selection.latency_us <= capacity * (1 + 1e-9):
                return replace(selection, budgets=(capacity,))
            kept = Mask({name: selection.keep[name] for name in self.units.sizes})
            if (may & ~kept).density == 0:
                return self._solve(scores, nothing, may, capacity, "joint")
            may = kept

    def _solve(
        self,
        scores: Mapping[str, Tensor],
        must: Mask,
        may: Mask,
        capacity: float,
        solver: Solver,
        level: float = 1.0,
    ) -> Selection:
        """Returns the solver's selection; the limits beside the latency shrink with it, down to the narrowest."""
        also = [
            replace(one, most=max(level * one.most, min(smallest, one.most)))
            for one, smallest in zip(self.cost.also, self._smallest, strict=True)
        ]
        return choose_by_latency(
            {name: scores[name] for name in self.units.sizes},
            self.cost.limited(*also),
            capacity,
            must=dict(must),
            may=dict(may),
            solver=solver,
            gap=self._gap,
            protect=frozenset(self.units.left_out),
            values=self._values,
        )


def smallest_us(cost: LatencyCost, names: Iterable[str], budget_us: float, *, by: str = "training") -> float:
    """Returns the latency with every given group at its narrowest.

    Raises:
        BudgetError: the budget is below it, or a limit beside it below what that network takes.
    """
    narrowest = {name: cost.candidates[name][0] for name in names}
    for one in cost.also:
        if not one.holds(narrowest):
            least = one.cost.total(narrowest)
            raise BudgetError(
                f"{one.name}: at most {one.most:.6g} {one.cost.unit} were asked; the smallest network that {by} can "
                f"reach takes {least:.6g}; ask for at least that",
                minimum=least,
            )
    smallest = cost.total_us(narrowest)
    if budget_us < smallest:
        share = smallest / cost.dense_us
        raise BudgetError(
            f"a budget of {budget_us:.0f} µs was asked; the smallest network that {by} can reach needs "
            f"{smallest:.0f} µs ({share:.0%} of dense); ask for at least --budget {math.ceil(share * 100) / 100}",
            minimum=smallest,
        )
    return smallest


class LayerPools:
    """Pools of equally priced units: one a layer (Uniform, ERK, PerLayer), one for all (Global), one a run (N:M)."""

    def __init__(self, units: Units, budget: Uniform | ERK | PerLayer | Global | NM) -> None:
        self.units, self.budget = units, budget
        sizes = {name: math.prod(shape) for name, shape in units.sizes.items()}
        density: Mapping[str, float] = {}
        if isinstance(budget, NM):
            density = dict.fromkeys(sizes, budget.n / budget.m)
            _check_runs(units, budget)
        elif not isinstance(budget, Global):
            ordered = units.sizes
            if isinstance(budget, Uniform) and (budget.first is not None or budget.last is not None):
                order = getattr(units, "order", tuple(ordered))  # of the forward, not of the modules
                ordered = {name: units.sizes[name] for name in order}
            density = budget.densities(ordered)
        self._counts = {name: max(1, round(share * sizes[name])) for name, share in density.items()}
        n_units = sum(sizes.values())
        self._total = (
            round(budget.density * n_units) if isinstance(budget, Global) else sum(self._counts.values())
        )
        if isinstance(budget, Global | Uniform | ERK) and round(budget.density * n_units) < len(sizes):
            least = len(sizes) / n_units
            raise BudgetError(
                f"a density of {budget.density} was asked, which keeps {budget.density * n_units:.1f} of {n_units} "
                f"units, and each of the {len(sizes)} layers keeps at least one; ask for at least {least:.2g}",
                minimum=least,
            )

    @property
    def total(self) -> float:
        """The number of units to keep."""
        return float(self._total)

    @property
    def floor(self) -> float:
        """1 % of Ψ."""
        return 0.01

    def used(self, alive: Mask) -> float:
        """Returns the number of active units."""
        return float(sum(alive.counts.values()))

    def start(self, generator: torch.Generator) -> Selection:
        """Returns random units: exact counts per pool."""
        scores = {name: torch.rand(size, generator=generator) for name, size in self.units.sizes.items()}
        nothing = Mask.full(self.units.sizes, False)
        return self.choose(scores, must=nothing, may=~nothing, level=1.0)

    def choose(self, scores: Mapping[str, Tensor], *, must: Mask, may: Mask, level: float) -> Selection:
        """Returns the top-k of every pool."""
        if isinstance(self.budget, Global):
            alive = self._choose_global(scores, must, may, round(level * self._total))
        else:
            counts = {name: max(1, round(level * k)) for name, k in self._counts.items()}
            alive = self._choose_layers(scores, must, may, counts)
        return self._exact(alive, level * self._total)

    def choose_counts(
        self, scores: Mapping[str, Tensor], *, must: Mask, may: Mask, counts: Mapping[str, int]
    ) -> Selection:
        """Returns the top-k of every layer, with k given for each; runs of N:M stay within their N."""
        return self._exact(self._choose_layers(scores, must, may, counts), self._total)

    def _exact(self, alive: Mask, capacity: float) -> Selection:
        """Returns units as a selection: top-k is exact, and one more unit is the next step."""
        next_step = 1.0 if alive.density < 1 else math.nan
        return Selection(alive, (self.used(alive),), (capacity,), gap=0.0, next_step=next_step)

    def _choose_layers(
        self, scores: Mapping[str, Tensor], must: Mask, may: Mask, counts: Mapping[str, int]
    ) -> Mask:
        alive = {}
        for name in self.units.sizes:
            free = may[name]
            if isinstance(self.budget, NM):
                free = _within_runs(scores[name], must[name], free, self.budget.n, self.budget.m)
            alive[name] = must[name] | _best(scores[name], free, counts[name] - int(must[name].sum()))
        return Mask(alive)

    def _choose_global(self, scores: Mapping[str, Tensor], must: Mask, may: Mask, count: int) -> Mask:
        """Returns the best units of all layers, one of each at least."""
        first = {
            name: must[name] if bool(must[name].any()) else _best(scores[name], may[name], 1)
            for name in self.units.sizes
        }
        kept = sum(int(mask.sum()) for mask in first.values())
        rest = torch.cat([(may[name] & ~mask).flatten() for name, mask in first.items()])
        added = _best(torch.cat([scores[name].flatten() for name in first]), rest, count - kept)
        parts = torch.split(added, [mask.numel() for mask in first.values()])
        return Mask(
            {n: mask | part.reshape(mask.shape) for (n, mask), part in zip(first.items(), parts, strict=True)}
        )


def _best(score: Tensor, may: Tensor, count: int) -> Tensor:
    """Returns a mask of the ``count`` best of ``may``, of its shape; ties go to the lower index.

    O(n): the count-th largest is selected, not sorted for (15 million weights: 0.1 s instead of 2.6 s).
    """
    chosen = torch.zeros_like(may).flatten()
    candidates = may.flatten().nonzero().flatten()
    if count >= len(candidates):
        return may.clone()
    if count <= 0:
        return chosen.reshape(may.shape)
    values = score.flatten()[candidates].detach()
    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    threshold = float(np.partition(values.numpy(), len(values) - count)[len(values) - count])
    best = values > threshold
    ties = (values == threshold).nonzero().flatten()
    best[ties[: count - int(best.sum())]] = True
    chosen[candidates] = best
    return chosen.reshape(may.shape)


def _check_runs(units: Units, budget: NM) -> None:
    """Refuses units that do not lie in runs of M input weights."""
    for name, shape in units.sizes.items():
        if len(shape) < 2:
            raise UsageError(
                f"{budget.n}:{budget.m} was asked of {name!r}, whose units are whole filters or channels; "
                "N:M is made of single weights: use units of weights, or Uniform"
            )
        if shape[1] % budget.m:
            raise UsageError(
                f"{budget.n}:{budget.m} was asked of {name!r}, whose {shape[1]} input channels do not divide "
                f"by {budget.m}; leave it out with pinned={{{name!r}}}"
            )


def _within_runs(score: Tensor, must: Tensor, may: Tensor, n: int, m: int) -> Tensor:
    """Returns the part of ``may`` that leaves at most ``n`` active in every run of ``m`` input channels."""

    def runs(tensor: Tensor) -> Tensor:
        return tensor.movedim(1, -1).reshape(-1, m)

    must_runs, may_runs = runs(must), runs(may)
    order = runs(score).masked_fill(~may_runs, -math.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(m).expand_as(order).contiguous())
    room = n - must_runs.sum(1, keepdim=True)
    return (may_runs & (rank < room)).reshape(may.movedim(1, -1).shape).movedim(-1, 1)


def bind(
    budget: Budget,
    units: Units,
    cost: LatencyCost | None,
    *,
    solver: Solver = "joint",
    gap: float = 1e-3,
    values: Mapping[str, FloatArray] | None = None,
) -> Pool:
    """Returns the pool of a budget over the units of a model.

    Raises:
        UsageError: a latency without a cost, or without channels to remove.
        BudgetError: a budget below what the smallest network needs.
    """
    if not isinstance(budget, Latency):
        return LayerPools(units, budget)
    if cost is None:
        raise UsageError(
            "a latency budget was given without a cost; pass cost=halpiee.LatencyCost(structure, profile)"
        )
    if not isinstance(units, Channels):
        raise UsageError(
            f"a latency budget was given for {type(units).__name__.lower()}, which have no latency of their own; "
            "use channels (units=structure), or a density such as halpiee.Global(0.5)"
        )
    us = budget.us if budget.us is not None else (budget.fraction or 1.0) * cost.dense_us
    return LatencyPool(units, cost, us, solver=solver, gap=gap, values=values)
