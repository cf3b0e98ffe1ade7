"""Pruning in one shot: outside of training (``prune_once``), or at a step of it, which may be the first (``AtInit``).

Score over some batches, keep the best within a budget, in one round or many; train the rest. SNIP keeps the largest
``|w·g|`` (Lee et al. 2019), GraSP the largest ``w·(Hg)`` (Wang et al. 2020), SynFlow the largest ``|w·∂R/∂w|`` of a
data-free flow in a hundred rounds (Tanaka et al. 2020); magnitude and random are their baselines ("Pruning Neural
Networks at Initialization: Why Are We Missing the Mark?", arXiv 2009.08576). In n rounds the k-th keeps a density of
ρ^(k/n): each scores the survivors again, with what is pruned at zero, and only survivors compete. That paper's
"sparsity s^(n/N)" would remove almost everything in the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from halpiee.errors import UsageError
from halpiee.methods.allocator import Pool, bind
from halpiee.methods.design import Asked, Design, Setup, at_density
from halpiee.methods.method import Method
from halpiee.methods.phases import Phase, Recipe, Redraw, Resize, Shuffle, Train
from halpiee.methods.registry import method
from halpiee.methods.wrappers import bare
from halpiee.options import option
from halpiee.saliency.criterion import Batches, Criterion, LossFn
from halpiee.saliency.registry import criterion_of
from halpiee.saliency.score import NO_GRADIENT, pairs_of, scores_of, tell, undecided, units_of
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import ERK, NM, Budget, Global, PerLayer, Uniform, as_budget
from halpiee.sparsity.granularity import Units
from halpiee.sparsity.mask import Mask
from halpiee.structure.groups import Structure

__all__ = ["SNIP", "AtInit", "GraSP", "SynFlow", "best", "prune_once", "recipe", "stages"]


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


def recipe(
    budget: Budget,
    *,
    rounds: int = 1,
    at: int = 0,
    spacing: Literal["exponential", "linear"] = "exponential",
    ablations: tuple[Phase, ...] = (),
) -> Recipe:
    """Returns one-shot pruning as phases.

    Args:
        budget: what is left.
        rounds: N; every round scores the survivors again. More than one needs a budget with a density.
        at: training steps before the first.
        spacing: densities ρ^(k/N), or 1 − k·(1 − ρ)/N.
        ablations: what is done with the mask right after.

    Raises:
        UsageError: no round, or rounds of a budget without a density.
    """
    if rounds < 1 or at < 0:
        raise UsageError(f"{rounds} rounds after {at} steps were asked; give at least 1 round and 0 steps")
    phases: list[Phase] = [Train(at)] if at else []
    for k in range(1, rounds + 1):
        this = budget
        if k < rounds:
            at_density(budget, 1.0)
            assert isinstance(budget, Uniform | ERK | Global)
            rho = budget.density
            this = at_density(
                budget, rho ** (k / rounds) if spacing == "exponential" else 1 - k * (1 - rho) / rounds
            )
        phases.append(Resize(budget=this, batches=True, event="prune" if at else "init"))
    return (*phases, *ablations)


@dataclass(frozen=True)
class Options:
    """The options of pruning at a step."""

    criterion: Criterion | str = option("magnitude", "A criterion or its name.")
    at: int = option(0, "Training steps before the pruning.")
    rounds: int = option(1, "Rounds in which survivors are scored again.")
    shuffle: bool = option(False, "Shuffle the mask within each layer: an ablation.")
    redraw: Callable[[nn.Module, int], object] | None = option(
        None, "(model, seed) draws the weights anew under the mask: an ablation."
    )


@dataclass(frozen=True)
class _SNIPOptions(Options):
    criterion: Criterion | str = option("snip", "A criterion or its name.")


@dataclass(frozen=True)
class _GraSPOptions(Options):
    criterion: Criterion | str = option("grasp", "A criterion or its name.")


@dataclass(frozen=True)
class _SynFlowOptions(Options):
    criterion: Criterion | str = option("synflow", "A criterion or its name.")
    rounds: int = option(100, "Rounds in which survivors are scored again.")


@method(
    "magnitude",
    paper="Frankle et al. 2021, arXiv 2009.08576",
    units=("weights", "N:M"),
    budgets=("global", "uniform", "erk", "nm"),
    kind="once",
    options=Options,
    preset={"criterion": "magnitude"},
    summary="keeps the largest weights, once",
)
@method(
    "random",
    paper="Frankle et al. 2021, arXiv 2009.08576",
    units=("weights", "N:M"),
    budgets=("global", "uniform", "erk", "nm"),
    kind="once",
    options=Options,
    preset={"criterion": "random"},
    summary="keeps random weights, once, by one ranking",
)
class AtInit(Method):
    """Prunes by any criterion at a step, once or in rounds.

    Args: see ``Method``, and ``Options`` for its own. The budget is ``Global`` (one ranking over all layers) as in the
    papers, or any other but a latency; ``batches`` are ten examples a class, say, and not read by data-free criteria.

    Raises:
        UsageError: an unknown criterion, or none of the batches gave finite scores.
    """

    no_batches = ()
    """Criteria that read no data are scored all the same."""

    def design(self, given: Setup, options: Options) -> Design:
        """Returns the rounds, and what is done with the mask after the last."""
        ablations: list[Phase] = [Shuffle(given.seed)] if options.shuffle else []
        if options.redraw is not None:
            ablations.append(Redraw(options.redraw, given.seed))
        units, criterion = given.units, criterion_of(options.criterion, given.seed)
        phases = recipe(given.limit, rounds=options.rounds, at=options.at, ablations=tuple(ablations))
        return given.design(phases, criterion, units=units)

    @classmethod
    def arguments(cls, asked: Asked) -> dict[str, Any]:
        """Returns the options that were typed, and examples of each class to score on."""
        return {**super().arguments(asked), "batches": asked.examples()}


@method(
    "snip",
    paper="Lee et al. 2019, arXiv 1810.02340",
    units=("weights", "N:M"),
    budgets=("global", "uniform", "erk", "nm"),
    kind="once",
    options=_SNIPOptions,
)
class SNIP(AtInit):
    """Keeps the weights of the largest ``|w·g|``, once (Lee et al. 2019)."""


@method(
    "grasp",
    paper="Wang et al. 2020, arXiv 2002.07376",
    units=("weights", "N:M"),
    budgets=("global", "uniform", "erk", "nm"),
    kind="once",
    options=_GraSPOptions,
)
class GraSP(AtInit):
    """Keeps the weights of the largest ``w·(Hg)``, once (Wang et al. 2020)."""


@method(
    "synflow",
    paper="Tanaka et al. 2020, arXiv 2006.05467",
    units=("weights",),
    budgets=("global", "uniform", "erk"),
    kind="once",
    options=_SynFlowOptions,
)
class SynFlow(AtInit):
    """Keeps the weights of the largest synaptic flow, in a hundred rounds without data (Tanaka et al. 2020)."""
