"""Pruning at initialisation, or at any later step: score once over some batches, keep the best, train the rest.

SNIP keeps the largest ``|w·g|`` (Lee et al. 2019), GraSP the largest ``w·(Hg)`` (Wang et al. 2020), SynFlow the largest
``|w·∂R/∂w|`` of a data-free flow in a hundred rounds (Tanaka et al. 2020); magnitude and random are their baselines
("Pruning Neural Networks at Initialization: Why Are We Missing the Mark?", arXiv 2009.08576). In several rounds the
density falls as ρ^(k/N) and only survivors are scored again; that paper's "sparsity s^(n/N)" would remove almost
everything in the first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.method import BudgetLike, Method, UnitsLike, at_density, default_units
from halpiee.methods.phases import Phase, Recipe, Redraw, Resize, Shuffle, Train
from halpiee.methods.pools import bind
from halpiee.methods.unwrap import bare
from halpiee.saliency.criterion import Criterion
from halpiee.saliency.registry import criterion_of
from halpiee.sparsity.distribution import ERK, Budget, Global, Uniform, as_budget

__all__ = ["SNIP", "AtInit", "GraSP", "SynFlow", "recipe"]


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


class AtInit(Method):
    """Pruning by any criterion at a step, one-shot or in rounds.

    Args:
        model: trained in place.
        optimizer: over ``model.parameters()``.
        budget: ``Global`` (one ranking over all layers) as in the papers, or any other but a latency.
        criterion: a criterion or its name; by default the class's own.
        batches: (inputs, targets) to score on, ten examples a class say; not read by data-free criteria.
        total_steps: not read; every method takes it.
        units: by default every weight of conv and linear layers.
        at: training steps before.
        rounds: how often survivors are scored again.
        shuffle: whether the mask is then shuffled within each layer: an ablation.
        redraw: (model, seed) → draws the weights anew under the mask: an ablation.
        protect: names of weights (or groups, or convolutions) to leave whole.
        seed: of every random choice.

    Raises:
        UsageError: an unknown criterion, or none of the batches gave finite scores.
    """

    default_criterion = "magnitude"
    default_rounds = 1

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        budget: BudgetLike,
        criterion: Criterion | str | None = None,
        batches: Iterable[tuple[Tensor, Tensor]] = (),
        total_steps: int = 0,
        units: UnitsLike | None = None,
        at: int = 0,
        rounds: int | None = None,
        shuffle: bool = False,
        redraw: Callable[[nn.Module, int], object] | None = None,
        protect: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        budget = as_budget(budget, latency=False)
        units = default_units(bare(model), budget, None, protect, units)
        ablations: list[Phase] = [Shuffle(seed)] if shuffle else []
        if redraw is not None:
            ablations.append(Redraw(redraw, seed))
        chosen = criterion_of(self.default_criterion if criterion is None else criterion, seed)
        super().__init__(
            model,
            optimizer,
            units=units,
            pool=bind(budget, units, None),
            recipe=recipe(
                budget,
                rounds=self.default_rounds if rounds is None else rounds,
                at=at,
                ablations=tuple(ablations),
            ),
            criterion=chosen,
            batches=batches,
            seed=seed,
        )


class SNIP(AtInit):
    """Keeps the largest ``|w·g|``; arguments as AtInit."""

    default_criterion = "snip"


class GraSP(AtInit):
    """Keeps the largest ``w·(Hg)``; arguments as AtInit."""

    default_criterion = "grasp"


class SynFlow(AtInit):
    """Keeps the largest ``|w·∂R/∂w|`` of ones through absolute weights, in a hundred rounds; arguments as AtInit."""

    default_criterion = "synflow"
    default_rounds = 100
