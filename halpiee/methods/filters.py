"""Filter pruning: one shot or n rounds of training, ranking and removing whole convolution filters.

The rounds of Lubana & Dick (arXiv 2009.11839): one epoch before each, and after round k of n the fraction k·p/n of
all filters is gone, so that round k removes p/(n − (k − 1)·p) of what is left. With regrowth (GraNet's appendix), each
round drops, one step later, a share of every layer's filters by L1 norm and grows as many by Σ|g|: only the filter of
the convolution is zeroed, γ and β stay, since otherwise the chain rule leaves no gradient to grow by. Behind a ReLU
that takes β > 0: a zeroed filter comes out of its norm as β, and the gradient of ReLU at or below zero is zero.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.method import BudgetLike, Method, at_density
from halpiee.methods.phases import Drop, Grow, Phase, Recipe, Resize, Train
from halpiee.methods.pools import bind
from halpiee.methods.unwrap import bare
from halpiee.saliency.criterion import Criterion
from halpiee.saliency.gradient import Gradient
from halpiee.saliency.magnitude import Magnitude
from halpiee.saliency.registry import criterion_of
from halpiee.sparsity.distribution import ERK, Budget, Global, Uniform, as_budget
from halpiee.sparsity.granularity import Filters
from halpiee.structure.groups import Structure

__all__ = ["FilterPruning", "recipe"]


def recipe(
    budget: Budget, *, rounds: int, interval: int, regrow: float = 0.0, batches: bool = False
) -> Recipe:
    """Returns filter pruning as phases.

    Args:
        budget: what is left after the last round.
        rounds: n.
        interval: training steps before each round.
        regrow: share of every layer's filters that each round then exchanges.
        batches: whether scores are taken over the method's batches, not over the steps before the round.

    Raises:
        UsageError: no round, a share outside [0, 1), or a budget without a density.
    """
    if rounds < 1 or interval < 1 or not 0 <= regrow < 1:
        raise UsageError(
            f"{rounds} rounds every {interval} steps with a regrowth of {regrow} were asked; "
            "rounds and steps are at least 1, regrowth a share from 0 up to 1"
        )
    at_density(budget, 1.0)
    assert isinstance(budget, Uniform | ERK | Global)
    phases: list[Phase] = []
    for k in range(1, rounds + 1):
        density = budget.density if k == rounds else 1 - k * (1 - budget.density) / rounds
        phases += [
            Train(interval, collect=not batches),
            Resize(budget=at_density(budget, density), batches=batches),
        ]
        if regrow:
            phases += [
                Train(1, collect=True, criterion=Gradient(), gradient="all"),
                Drop(regrow, by=Magnitude(), within="layer"),
                Grow(regrow, by=Gradient(), within="layer", values="zero"),
            ]
    return tuple(phases)


class FilterPruning(Method):
    """Filter pruning attached to a model and its optimizer.

    Args:
        model: pretrained or not; trained on in place.
        optimizer: over ``model.parameters()``.
        budget: share of filters that is left: ``Global`` (one ranking) or ``Uniform`` (layer by layer).
        total_steps: optimizer steps of the whole training, which all rounds must fit into.
        structure: of the model, from ``trace``; what ``shrink`` cuts by.
        criterion: a criterion or its name.
        batches: (inputs, targets) to score on; without them scores are collected over the training steps before each
            round, which all criteria but those of second order allow.
        rounds: n.
        interval: training steps before each round (the paper: one epoch); by default the first half of training.
        regrow: share of every layer's filters that each round then exchanges by gradient, one step later.
        pinned: paths of convolutions that stay whole.
        protect: the same, under the name that other methods have for it.
        units: the filters, where they are already known.
        seed: of random scores.

    Raises:
        UsageError: the rounds do not fit into the training.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        budget: BudgetLike,
        total_steps: int,
        structure: Structure | None = None,
        criterion: Criterion | str = "l1",
        batches: Iterable[tuple[Tensor, Tensor]] | None = None,
        rounds: int = 1,
        interval: int | None = None,
        regrow: float = 0.0,
        pinned: Collection[str] = (),
        protect: Collection[str] = (),
        units: Filters | None = None,
        seed: int = 0,
    ) -> None:
        bare_model = bare(model)
        budget = as_budget(budget, latency=False)
        whole = frozenset({pinned} if isinstance(pinned, str) else pinned)
        whole |= frozenset({protect} if isinstance(protect, str) else protect)
        units = units or Filters(bare_model, pinned=whole, norm_follows=not regrow)
        if regrow and units.zero_is_dead:
            raise UsageError(
                "filters were to be regrown whose norm goes with them: its zero leaves no gradient to grow by; "
                "use Filters(…, norm_follows=False)"
            )
        steps = interval if interval is not None else max(1, total_steps // 2 // max(rounds, 1))
        needed = rounds * (steps + bool(regrow))
        if needed > total_steps:
            raise UsageError(
                f"{rounds} rounds every {steps} steps take {needed} steps, and the training has {total_steps}; "
                "train longer, or ask for fewer rounds"
            )
        super().__init__(
            model,
            optimizer,
            units=units,
            pool=bind(budget, units, None),
            recipe=recipe(budget, rounds=rounds, interval=steps, regrow=regrow, batches=batches is not None),
            criterion=criterion_of(criterion, seed),
            structure=structure,
            batches=batches,
            seed=seed,
        )

    @torch.no_grad()
    def shrink(self) -> tuple[nn.Module, Optimizer]:
        """Returns the compact model and its optimizer; norms of removed filters go with them for good."""
        if self._compact is None:
            self.refuse_foreign()
            self.finish()
            assert isinstance(self.units, Filters)
            tensors = {**self._parameters, **dict(self.model.named_buffers())}
            for path, norm in self.units.norms.items():
                own = self.units.owner(path)
                if own in self.alive:
                    for name in ("weight", "bias"):
                        tensor = tensors.get(f"{norm}.{name}")
                        if tensor is not None:
                            tensor.masked_fill_(~self.alive[own].to(tensor.device), 0.0)
        return super().shrink()
