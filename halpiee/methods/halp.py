"""HALP: a pretrained network pruned to a latency in a few dozen steps, then trained on (arXiv 2110.10811).

Taylor scores on batch norms are collected over the steps between two prunes; each prune solves a knapsack within the
next target of a geometric curve from the dense latency to Ψ, ``Ψ_k = Ψ_0 · (Ψ/Ψ_0)^(k/K)`` (FORCE's schedule). Removed
channels never return. The knapsack is HALP's own (``linear``: every layer priced with its input width frozen), solved
exactly; with ``solver="joint"`` both sides of every layer are priced.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.method import BudgetLike, Method, UnitsLike, at_density, cost_of, default_units
from halpiee.methods.phases import Phase, Recipe, Resize, Train
from halpiee.methods.pools import LatencyPool, Pool, bind
from halpiee.methods.unwrap import bare
from halpiee.saliency.criterion import Criterion
from halpiee.saliency.gradient import Taylor
from halpiee.saliency.registry import criterion_of
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import Budget, Latency, as_budget
from halpiee.sparsity.granularity import Units
from halpiee.sparsity.schedule import Exponential
from halpiee.structure.groups import Structure

__all__ = ["HALP", "recipe"]


def recipe(*, dense: float, prunes: int, interval: int) -> Recipe:
    """Returns HALP as phases.

    Args:
        dense: the dense network's cost over Ψ.
        prunes: K, how many prune steps.
        interval: training steps before each.
    """
    phases: list[Phase] = []
    for k in range(1, prunes + 1):
        level = 1.0 if k == prunes else Exponential(dense, 1.0, prunes)(k)
        phases += [Train(interval, collect=True), Resize(level=level)]
    return tuple(phases)


class HALP(Method):
    """HALP attached to a pretrained model and its optimizer.

    Args:
        model: with its trained weights; trained on in place.
        optimizer: over ``model.parameters()``.
        budget: ``Latency``; or a density for channels.
        total_steps: optimizer steps of the whole training, which all prunes must fit into.
        structure: of the model, from ``trace``.
        cost: latency model, or the path of a profile for the structure; needed for a latency budget.
        units: by default the structure's channels.
        criterion: a criterion or its name; by default Taylor on batch norms.
        prunes: K.
        interval: training steps before each prune.
        solver: ``linear`` (the paper's knapsack), ``joint`` or ``cpsat``. A last prune that ``linear`` leaves over
            Ψ, because its prices are not the true ones, is solved once more jointly.
        gap: relative gap the solver certifies.
        protect: groups to leave whole.
        seed: of every random choice.

    Raises:
        UsageError: the prunes do not fit into the training.
        BudgetError: a budget below what the smallest network needs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        budget: BudgetLike,
        total_steps: int,
        structure: Structure | None = None,
        cost: LatencyCost | str | Path | None = None,
        units: UnitsLike | None = None,
        criterion: Criterion | str | None = None,
        prunes: int = 30,
        interval: int = 40,
        solver: Literal["linear", "joint", "cpsat"] = "linear",
        gap: float = 1e-3,
        protect: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        if min(prunes, interval) < 1 or prunes * interval > total_steps:
            raise UsageError(
                f"{prunes} prunes every {interval} steps were asked of {total_steps} steps; "
                f"ask for at least one each, and for prunes · interval up to {total_steps}"
            )
        cost = cost_of(cost, structure)
        budget = as_budget(budget, latency=cost is not None)
        # HALP prunes channels, whatever is limited.
        units = default_units(bare(model), budget, structure, protect, structure if units is None else units)
        pool = bind(budget, units, cost, solver=solver, gap=gap)
        phases = recipe(dense=_dense(pool, units, budget), prunes=prunes, interval=interval)
        super().__init__(
            model,
            optimizer,
            units=units,
            pool=pool,
            recipe=phases,
            criterion=criterion_of(criterion, seed) if criterion is not None else Taylor(),
            structure=structure,
            seed=seed,
        )


def _dense(pool: Pool, units: Units, budget: Budget) -> float:
    """Returns the dense network's cost over the budget."""
    if isinstance(pool, LatencyPool):
        return max(1.0, pool.cost.dense_us / pool.total)
    if isinstance(budget, Latency):
        raise UsageError("a latency budget was bound to units without a latency; pass cost=…")
    at_density(budget, 1.0)
    return max(1.0, sum(math.prod(shape) for shape in units.sizes.values()) / pool.total)
