"""Pruning outside of training: score, keep the best within a budget, in one round or many.

One ranking over all layers unless the budget says otherwise. In n rounds the k-th keeps a density of ρ^(k/n) (Tanaka
et al. 2020). Each round scores the survivors again, with what is pruned at zero, and only survivors compete.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from halpiee.errors import UsageError
from halpiee.methods.pools import Pool, bind
from halpiee.methods.unwrap import bare
from halpiee.saliency.criterion import Batches, Criterion, LossFn
from halpiee.saliency.registry import criterion_of
from halpiee.saliency.score import NO_GRADIENT, pairs_of, scores_of, tell, undecided, units_of
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import ERK, NM, Budget, Global, PerLayer, Uniform, as_budget
from halpiee.sparsity.granularity import Units
from halpiee.sparsity.mask import Mask
from halpiee.structure.groups import Structure

__all__ = ["best", "prune_once", "stages"]


def prune_once(
    model: nn.Module,
    criterion: Criterion | str,
    budget: Budget | float | str,
    batches: Batches | None = None,
    *,
    rounds: int = 1,
    seed: int = 0,
    units: Structure | Units | Literal["weights", "filters"] = "weights",
    loss_fn: LossFn = cross_entropy,
    cost: LatencyCost | None = None,
) -> Mask:
    """Returns which units stay. The model is left as it was; ``mask.apply(model)`` writes the zeros.

    A mask of weights names parameters. One of channels is what ``halpiee.shrink`` takes; one of other units is
    applied with them: ``mask.apply(model, units)``. Batches whose scores were not finite are left out and counted in
    ``mask.skipped``. Groups that it cuts into though the scores do not tell their units apart stand in ``mask.flat``
    and are warned of. A parameter of several names is pruned once, under its first.

    Args:
        model: the network; every conv and linear weight is prunable, the first and the last included.
        criterion: a criterion or its name, such as ``synflow`` or ``inverted-snip``.
        budget: how much stays where; a number, or ``"50%"``, is the density over all layers together, and with a
            ``cost`` the share of the dense latency.
        batches: (inputs, targets), for criteria that need data; synflow reads the shape of the first, if any.
        rounds: n; synflow wants 100.
        seed: of random scores.
        units: what is removed.
        loss_fn: (outputs, targets) → scalar.
        cost: latency model, for a latency budget.

    Raises:
        UsageError: no rounds, an N:M budget in rounds, no finite batch.
        StructureError: a weight that is computed from other tensors.
        BudgetError: a budget below what the smallest network needs.

    Warns:
        ScoreWarning: scores that do not tell the units of a group apart.
    """
    budget = as_budget(budget, latency=cost is not None)
    criterion = criterion_of(criterion, seed)
    model = bare(model)
    chosen = units_of(model, units)
    batches = list(pairs_of(() if batches is None else batches))
    alive = Mask.full(chosen.sizes)
    for k, (pool, level) in enumerate(stages(budget, chosen, cost, rounds)):
        with _masked(model, chosen, alive) if k else nullcontext():
            alive = best(model, criterion, pool, chosen, batches, among=alive, level=level, loss_fn=loss_fn)
    tell(alive.flat, criterion)
    return alive


def stages(
    budget: Budget, units: Units, cost: LatencyCost | None, rounds: int
) -> Iterator[tuple[Pool, float]]:
    """Yields each round's pool and the share of it to fill: densities ρ^(k/n), latencies D·(Ψ/D)^(k/n).

    Raises:
        UsageError: no rounds, or an N:M budget in several.
        BudgetError: a budget below what the smallest network needs.
    """
    if rounds < 1:
        raise UsageError(f"rounds={rounds} was asked; give at least 1")
    if isinstance(budget, NM) and rounds > 1:
        raise UsageError(
            f"{budget.n}:{budget.m} was asked in {rounds} rounds, a run of {budget.m} is filled in one; "
            "leave out rounds"
        )
    last = bind(budget, units, cost)
    for k in range(1, rounds):
        if isinstance(budget, Uniform | ERK | Global):
            yield bind(replace(budget, density=budget.density ** (k / rounds)), units, cost), 1.0
        elif isinstance(budget, PerLayer):
            yield bind(PerLayer({n: d ** (k / rounds) for n, d in budget.map.items()}), units, cost), 1.0
        else:
            yield last, (last.used(Mask.full(units.sizes)) / last.total) ** (1 - k / rounds)
    yield last, 1.0


def best(
    model: nn.Module,
    criterion: Criterion,
    pool: Pool,
    units: Units,
    batches: Batches,
    *,
    among: Mask,
    level: float = 1.0,
    loss_fn: LossFn = cross_entropy,
) -> Mask:
    """Returns the best-scoring units of ``among`` within ``level`` times the pool's budget: one round."""
    scores = scores_of(model, batches, criterion, units=units, loss_fn=loss_fn)
    alive = pool.choose(scores, must=Mask.full(units.sizes, False), may=among, level=level).alive
    why = {
        n: NO_GRADIENT if scores.flat.get(n) == NO_GRADIENT else w
        for n, w in undecided(scores, among, alive).items()
    }
    return replace(alive, skipped=among.skipped + scores.skipped, flat={**among.flat, **why})


@contextmanager
def _masked(model: nn.Module, units: Units, alive: Mask) -> Iterator[None]:
    """Inside, what is pruned is zero; afterwards every value is what it was, bit for bit."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    held = {name: tensors[name].detach().clone() for name in units.tensors}
    try:
        alive.apply(model, units)
        yield
    finally:
        with torch.no_grad():
            for name, value in held.items():
                tensors[name].copy_(value)
