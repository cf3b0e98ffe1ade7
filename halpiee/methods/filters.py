"""Filter pruning: one shot or n rounds of training, ranking and removing whole convolution filters.

The rounds of Lubana & Dick (arXiv 2009.11839): one epoch before each, and after round k of n the fraction k·p/n of
all filters is gone, so that round k removes p/(n − (k − 1)·p) of what is left. With regrowth (GraNet's appendix), each
round drops, one step later, a share of every layer's filters by L1 norm and grows as many by Σ|g|: only the filter of
the convolution is zeroed, γ and β stay, since otherwise the chain rule leaves no gradient to grow by. Behind a ReLU
that takes β > 0: a zeroed filter comes out of its norm as β, and the gradient of ReLU at or below zero is zero.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.design import Asked, Design, Setup, at_density
from halpiee.methods.method import Method
from halpiee.methods.phases import Drop, Grow, Phase, Recipe, Resize, Train
from halpiee.methods.registry import method
from halpiee.options import option
from halpiee.saliency.criterion import Criterion
from halpiee.saliency.gradient import Gradient
from halpiee.saliency.magnitude import Magnitude
from halpiee.saliency.registry import InMode, criterion_of, named
from halpiee.sparsity.distribution import ERK, Budget, Global, Uniform
from halpiee.sparsity.filters import Filters
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


@dataclass(frozen=True)
class Options:
    """The options of filter pruning."""

    criterion: Criterion | str = option("l1", "A criterion or its name.")
    rounds: int = option(1, "n, the number of rounds.")
    interval: int | None = option(
        None,
        "Training steps before each round (the paper: one epoch); by default the first half of training.",
    )
    regrow: float = option(
        0.0, "Share of every layer's filters that each round then exchanges by gradient, one step later."
    )
    pinned: Collection[str] = option((), "Paths of convolutions that stay whole, like protect.")


@method(
    "filter",
    paper="Li et al. 2017, arXiv 1608.08710; Lubana & Dick 2021, arXiv 2009.11839",
    units=("filters",),
    budgets=("global", "uniform"),
    options=Options,
)
class FilterPruning(Method):
    """Removes whole convolution filters by any criterion, in one shot or rounds.

    Args: see ``Method``, and ``Options`` for its own. ``structure`` is what ``shrink`` cuts by. Without ``batches``,
    scores are collected over the training steps before each round, which all criteria but those of second order allow.

    Raises:
        UsageError: the rounds do not fit into the training.
    """

    def design(self, given: Setup, options: Options) -> Design:
        """Returns the rounds."""
        o, budget, units = options, given.limit, given.asked_units
        whole = frozenset({o.pinned} if isinstance(o.pinned, str) else o.pinned)
        whole |= frozenset({given.protect} if isinstance(given.protect, str) else given.protect)
        if units is None or units == "filters":
            units = Filters(given.model, pinned=whole, norm_follows=not o.regrow)
        if not isinstance(units, Filters):
            raise UsageError(
                f"filter pruning was asked of {type(units).__name__}; give units=halpiee.sparsity.Filters(model)"
            )
        if o.regrow and units.zero_is_dead:
            raise UsageError(
                "filters were to be regrown whose norm goes with them: its zero leaves no gradient to grow by; "
                "use Filters(…, norm_follows=False)"
            )
        total, extra = given.total_steps, int(bool(o.regrow))
        steps = o.interval if o.interval is not None else max(1, total // 2 // max(o.rounds, 1))
        needed = o.rounds * (steps + extra)
        if needed > total:
            raise UsageError(
                f"{o.rounds} rounds every {steps} steps take {needed} steps, and the training has {total}; "
                "train longer, or ask for fewer rounds"
            )
        over = given.batches is not None
        phases = recipe(budget, rounds=o.rounds, interval=steps, regrow=o.regrow, batches=over)
        return given.design(phases, criterion_of(o.criterion, given.seed), units=units)

    @classmethod
    def arguments(cls, asked: Asked) -> dict[str, Any]:
        """Returns the options that were typed, and batches for criteria that cannot be read off training steps.

        Residual networks keep their first convolution whole (Lubana & Dick 2021).
        """
        o = {name: asked.options[name] for name in ("interval", "rounds", "regrow") if name in asked.options}
        name = asked.options.get("criterion", Options.criterion)
        of = name.removeprefix("inverted-")
        # A batch norm in training mode makes θᵀg zero; the paper scores in evaluation.
        criterion = InMode(named(name, asked.seed)) if of.startswith("loss") else named(name, asked.seed)
        batches = asked.examples() if of.startswith(("grasp", "synflow", "loss")) else None
        pinned = first_conv(asked.model) if any_residual(asked.structure()) else frozenset()
        return {**o, "criterion": criterion, "batches": batches, "pinned": pinned, "units": None}

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


def first_conv(model: nn.Module) -> frozenset[str]:
    """Returns the path of the first convolution."""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            return frozenset({path})
    return frozenset()


def any_residual(structure: Structure) -> bool:
    """Whether several convolutions write to one group: residual networks protect the first (Lubana & Dick 2021)."""
    writers: dict[str, int] = {}
    for layer in structure.layers:
        for name, _ in layer.out_groups:
            writers[name] = writers.get(name, 0) + 1
    return any(n > 1 for n in writers.values())
