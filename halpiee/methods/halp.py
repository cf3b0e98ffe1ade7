"""HALP: a pretrained network pruned to a latency in a few dozen steps, then trained on (arXiv 2110.10811).

Taylor scores on batch norms are collected over the steps between two prunes; each prune solves a knapsack within the
next target of a geometric curve from the dense latency to Ψ, ``Ψ_k = Ψ_0 · (Ψ/Ψ_0)^(k/K)`` (FORCE's schedule). Removed
channels never return. The knapsack is HALP's own (``linear``: every layer priced with its input width frozen), solved
exactly; with ``solver="joint"`` both sides of every layer are priced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from halpiee.errors import UsageError
from halpiee.methods.allocator import LatencyPool, Pool, bind
from halpiee.methods.design import Asked, Design, Setup, at_density
from halpiee.methods.method import Method
from halpiee.methods.phases import Phase, Recipe, Resize, Train
from halpiee.methods.registry import method
from halpiee.options import option
from halpiee.saliency.criterion import Criterion
from halpiee.saliency.registry import criterion_of
from halpiee.sparsity.distribution import Budget, Latency
from halpiee.sparsity.granularity import Units
from halpiee.sparsity.schedule import Exponential

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


@dataclass(frozen=True)
class Options:
    """The options of HALP."""

    criterion: Criterion | str = option("taylor", "A criterion or its name.")
    prunes: int = option(30, "K, the number of prunes.")
    interval: int = option(40, "Training steps before each prune.")
    solver: Literal["linear", "joint", "cpsat"] = option(
        "linear",
        "The paper's knapsack is linear; a last prune that it leaves over the budget, because its prices "
        "are not the true ones, is solved once more jointly.",
    )
    gap: float = option(0.001, "Relative gap that the solver certifies.")


@method(
    "halp",
    paper="Shen et al. 2022, arXiv 2110.10811",
    units=("channels",),
    budgets=("latency",),
    options=Options,
    pretrained=True,
    summary="a pretrained network pruned to a latency by Taylor scores in a few dozen steps",
)
class HALP(Method):
    """HALP attached to a pretrained model and its optimizer.

    Args: see ``Method``, and ``Options`` for its own. The budget is a ``Latency``, or a density of channels; all prunes
    must fit into ``total_steps``. Units are by default the structure's channels, whatever the budget.

    Raises:
        UsageError: the prunes do not fit into the training.
        BudgetError: a budget below what the smallest network needs.
    """

    def design(self, given: Setup, options: Options) -> Design:
        """Returns the prunes along the geometric curve."""
        prunes, interval = options.prunes, options.interval
        if min(prunes, interval) < 1 or prunes * interval > given.total_steps:
            raise UsageError(
                f"{prunes} prunes every {interval} steps were asked of {given.total_steps} steps; "
                f"ask for at least one each, and for prunes · interval up to {given.total_steps}"
            )
        if given.asked_units is None:  # HALP prunes channels, whatever is limited
            given = replace(given, asked_units=given.structure)
        pool = bind(given.limit, given.units, given.cost, solver=options.solver, gap=options.gap)
        dense = _dense(pool, given.units, given.limit)
        phases = recipe(dense=dense, prunes=prunes, interval=interval)
        return given.design(phases, criterion_of(options.criterion, given.seed), pool=pool)

    @classmethod
    def arguments(cls, asked: Asked) -> dict[str, Any]:
        """Returns the prunes of a run: ``rounds`` of them, which end where IEE's cycles end."""
        o = asked.options
        prunes = o.get("rounds", Options.prunes)
        room = int(asked.cycle.get("end", 0.75) * asked.total_steps) // prunes
        interval = o.get("interval") or max(1, min(Options.interval, room))
        given = {"criterion": o["criterion"]} if "criterion" in o else {}
        return {**given, "prunes": min(prunes, asked.total_steps), "interval": interval}


def _dense(pool: Pool, units: Units, budget: Budget) -> float:
    """Returns the dense network's cost over the budget."""
    if isinstance(pool, LatencyPool):
        return max(1.0, pool.cost.dense_us / pool.total)
    if isinstance(budget, Latency):
        raise UsageError("a latency budget was bound to units without a latency; pass cost=…")
    at_density(budget, 1.0)
    return max(1.0, sum(math.prod(shape) for shape in units.sizes.values()) / pool.total)
