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
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from halpiee.errors import UsageError
from halpiee.methods.allocator import Pool, bind
from halpiee.methods.attach import bare
from halpiee.methods.method import Method, Request, Setup
from halpiee.methods.phases import (
    Design,
    Phase,
    Recipe,
    Redraw,
    Resize,
    Shuffle,
    Train,
    at_density,
    density_of,
)
from halpiee.methods.registry import method
from halpiee.options import option
from halpiee.saliency.criterion import Batches, Criterion, LossFn
from halpiee.saliency.registry import criterion_of
from halpiee.saliency.score import NO_GRADIENT, pairs_of, scores_of, undecided, units_of, warn_of_ties
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import ERK, NM, Budget, Global, PerLayer, Uniform, as_budget
from halpiee.sparsity.granularity import Units
from halpiee.sparsity.mask import Mask
from halpiee.structure.groups import Structure


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """The settings of a pruning without training between rounds.

    Attributes:
        budget: how much stays where; a number, or ``"50%"``, is the density over all layers together, and with a
            ``cost`` the share of the dense latency.
        criterion: ranks units; a criterion or its name, such as ``synflow`` or ``inverted-snip``.
        batches: (inputs, targets), for criteria that need data; synflow reads the shape of the first, if any.
        rounds: n; synflow wants 100.
        shuffle: whether the last mask is shuffled within each layer, an ablation.
        loss_fn: (outputs, targets) → scalar, for criteria that need data.
        cost: latency model, for a latency budget.
        seed: of random scores and of shuffling.
    """

    budget: Budget | float | str
    criterion: Criterion | str = "magnitude"
    batches: Batches | None = None
    rounds: int = 1
    shuffle: bool = False
    units: Structure | Units | Literal["weights", "filters"] = "weights"
    loss_fn: LossFn = cross_entropy
    cost: LatencyCost | None = None
    seed: int = 0


def prune_once(
    model: nn.Module,
    criterion: Criterion | str,
    budget: Budget | float | str,
    batches: Batches | None = None,
    *,
    rounds: int = 1,
    seed: int = 0,
    **pruning: Any,
) -> Mask:
    """Returns which units stay. The model is left as it was; ``mask.apply(model)`` writes the zeros.

    A mask of weights names parameters. One of channels is what ``halpiee.shrink`` takes; one of other units is
    applied with them: ``mask.apply(model, units)``. Batches whose scores were not finite are left out and counted in
    ``mask.skipped``. ``mask.flat`` names the groups whose units have equal scores and were cut by index; a warning
    names them, too. A parameter of several names is pruned once, under its first.

    Every conv and linear weight is prunable, the first and the last included. All arguments but the model are fields of
    ``Pruning``, as are ``units``, ``loss_fn`` and ``cost``.

    Raises:
        UsageError: no rounds, an N:M budget in rounds, no finite batch.
        StructureError: a weight that is computed from other tensors.
        BudgetError: a budget below what the smallest network needs.

    Warns:
        ScoreWarning: scores that do not tell the units of a group apart.
    """
    model = bare(model)
    given = Pruning(budget=budget, criterion=criterion, batches=batches, rounds=rounds, seed=seed, **pruning)
    how = replace(given, units=units_of(model, given.units))
    assert isinstance(how.units, Units)
    masks = in_rounds(model, how)
    alive = next(masks)
    for _ in range(rounds - 1):
        with _masked(model, how.units, alive):
            alive = next(masks)
    warn_of_ties(alive.flat, criterion_of(criterion, seed))
    return alive


def in_rounds(model: nn.Module, how: Pruning) -> Iterator[Mask]:
    """Yields the mask of each round; scores are taken when the mask is requested.

    Round k of n keeps ρ^(k/n), among the survivors of the round before.

    Raises:
        UsageError: no rounds, an N:M budget in rounds, no finite batch.
        BudgetError: a budget below what the smallest network needs.
    """
    units, criterion = units_of(model, how.units), criterion_of(how.criterion, how.seed)
    budget = as_budget(how.budget, latency=how.cost is not None)
    batches = list(pairs_of(() if how.batches is None else how.batches))
    alive = Mask.full(units.sizes)
    for k, (pool, level) in enumerate(list(stages(budget, units, how.cost, how.rounds)), start=1):
        scores = scores_of(model, batches, criterion, units=units, loss_fn=how.loss_fn)
        best = pool.choose(scores, must=Mask.full(units.sizes, False), may=alive, level=level)
        chosen = Mask.of(best.keep)
        why = {
            n: NO_GRADIENT if scores.flat.get(n) == NO_GRADIENT else w
            for n, w in undecided(scores, alive, chosen).items()
        }
        alive = replace(chosen, skipped=alive.skipped + scores.skipped, flat={**alive.flat, **why})
        if how.shuffle and k == how.rounds:
            alive = replace(alive.shuffled(how.seed), skipped=alive.skipped, flat=alive.flat)
        yield alive


def stages(
    budget: Budget, units: Units, cost: LatencyCost | None, rounds: int
) -> Iterator[tuple[Pool, float]]:
    """Yields each round's pool and the share of it to fill: densities ρ^(k/n), latencies D·(Ψ/D)^(k/n).

    Raises:
        UsageError: no rounds, or an N:M budget in several.
        BudgetError: a budget below what the smallest network needs.
    """
    if not hasattr(rounds, "__index__") or rounds < 1:
        raise UsageError(f"rounds={rounds!r} was asked; give a whole number of at least 1")
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


@contextmanager
def _masked(model: nn.Module, units: Units, alive: Mask) -> Iterator[None]:
    """Inside, what is pruned is zero; afterwards every value is what it was, bit for bit."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: tensors[name].detach().clone() for name in units.tensors}
    try:
        alive.apply(model, units)
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                tensors[name].copy_(value)


def recipe(budget: Budget, *, rounds: int = 1, at: int = 0, ablations: tuple[Phase, ...] = ()) -> Recipe:
    """Returns one-shot pruning as phases.

    Round k of N prunes to ρ^(k/N) and scores the survivors again, after ``at`` training steps; the ``ablations``
    follow.

    Raises:
        UsageError: no round, or rounds of a budget without a density.
    """
    if rounds < 1 or at < 0:
        raise UsageError(f"{rounds} rounds after {at} steps were asked; give at least 1 round and 0 steps")
    event: Literal["init", "prune"] = "prune" if at else "init"
    passed = [at_density(budget, density_of(budget) ** (k / rounds)) for k in range(1, rounds)]
    resizes = [Resize(budget=this, batches=True, event=event) for this in (*passed, budget)]
    return (*((Train(at),) if at else ()), *resizes, *ablations)


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


@method(
    "magnitude",
    paper="Frankle et al. 2021, arXiv 2009.08576",
    budgets=("global", "uniform", "erk", "nm"),
    kind="once",
    options=Options,
    summary="keeps the largest weights, once",
)
@method(
    "random",
    paper="Frankle et al. 2021, arXiv 2009.08576",
    budgets=("global", "uniform", "erk", "nm"),
    kind="once",
    options=Options(criterion="random"),
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
    def arguments(cls, request: Request) -> dict[str, Any]:
        """Returns the options that were typed, and examples of each class to score on."""
        return {**super().arguments(request), "batches": request.examples()}


@method(
    "snip",
    paper="Lee et al. 2019, arXiv 1810.02340",
    budgets=("global", "uniform", "erk", "nm"),
    kind="once",
    options=Options(criterion="snip"),
)
class SNIP(AtInit):
    """Keeps the weights of the largest ``|w·g|``, once (Lee et al. 2019)."""


@method(
    "grasp",
    paper="Wang et al. 2020, arXiv 2002.07376",
    budgets=("global", "uniform", "erk", "nm"),
    kind="once",
    options=Options(criterion="grasp"),
)
class GraSP(AtInit):
    """Keeps the weights of the largest ``w·(Hg)``, once (Wang et al. 2020)."""


@method(
    "synflow",
    paper="Tanaka et al. 2020, arXiv 2006.05467",
    units=("weights",),
    budgets=("global", "uniform", "erk"),
    kind="once",
    options=Options(criterion="synflow", rounds=100),
)
class SynFlow(AtInit):
    """Keeps the weights of the largest synaptic flow, in a hundred rounds without data (Tanaka et al. 2020)."""
