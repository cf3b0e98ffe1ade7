"""Pruning after training, and training again: from which weights, on which part of the schedule.

Train, prune to a budget, take weights, train the rest ("Pruning Neural Networks at Initialization: Why Are We Missing
the Mark?", arXiv 2009.08576, whose ablations are here, too)::

    magnitude after training, learning-rate rewinding   final weights, the whole schedule again (Renda et al. 2020)
    lottery-ticket rewinding                            weights of step k, the schedule from k (Frankle et al. 2020)
    lottery ticket                                      the same with k = 0 (Frankle & Carbin 2019)
    reinit                                              a new sample of the initialisation, the whole schedule
    shuffle                                             any of them, the mask shuffled within each layer

In n rounds each prunes to ρ^(k/n) and trains again before the next; only survivors compete. Optimizer state starts
anew with every training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.one_shot import Pruning, in_rounds, stages
from halpiee.methods.registry import method
from halpiee.methods.state import Guard
from halpiee.options import option
from halpiee.saliency.registry import criterion_of
from halpiee.saliency.score import units_of, warn_of_ties
from halpiee.sparsity.distribution import Budget, as_budget
from halpiee.sparsity.granularity import Units
from halpiee.sparsity.mask import Mask


class Train(Protocol):
    """Trains steps ``first`` to ``last − 1`` of the schedule, in place.

    What ``mask`` has pruned has to stay zero (see ``keeping_mask``); ``None`` is the dense network. ``done(n)`` is
    called when n steps of the schedule have been done: after each step.
    """

    def __call__(
        self, model: nn.Module, mask: Mask | None, first: int, last: int, done: Callable[[int], None]
    ) -> object:
        """Trains."""


@dataclass(frozen=True)
class Retrain:
    """The weights that the pruned network is trained from, and the part of the schedule.

    Attributes:
        weights: those of a step of the dense training (0: the lottery ticket; 1000 to 6255: the steps of
            arXiv 1912.05671), the ``final`` ones, or a ``fresh`` sample of the initialisation.
        schedule: from the ``start``, or from the ``step`` whose weights are taken.
    """

    weights: int | Literal["final", "fresh"]
    schedule: Literal["start", "step"] = "start"

    def __post_init__(self) -> None:
        if isinstance(self.weights, str) and self.schedule == "step":
            raise UsageError(
                f"a schedule from the step of {self.weights!r} weights was asked; only weights of a numbered step "
                "have one: give that step, or schedule='start'"
            )
        if isinstance(self.weights, int) and self.weights < 0:
            raise UsageError(
                f"weights of step {self.weights} were asked; steps count from 0, the initialisation"
            )

    @property
    def first(self) -> int:
        """The first step that is trained again."""
        return self.weights if isinstance(self.weights, int) and self.schedule == "step" else 0


LEARNING_RATE_REWINDING = Retrain("final")
"""Also magnitude pruning after training, as arXiv 2009.08576 retrains it."""
REINIT = Retrain("fresh")


@dataclass(frozen=True)
class Rewinding:
    """The option in which the registered names of ``rewind`` differ."""

    weights: int | Literal["final"] | None = option(
        None,
        "Weights that are trained again: of this step, or the final ones; by default of the step that is asked.",
    )


@method(
    "lrr",
    paper="Renda et al. 2020, arXiv 2003.02389",
    budgets=("global", "uniform", "erk", "nm"),
    kind="rewind",
    options=Rewinding(weights="final"),
    summary="magnitude pruning after training, then the whole schedule again: learning-rate rewinding",
)
@method(
    "ltr",
    paper="Frankle et al. 2020, arXiv 1912.05671",
    budgets=("global", "uniform", "erk", "nm"),
    kind="rewind",
    summary="lottery-ticket rewinding: the trained network's mask, the weights of an early step, the rest again",
)
@method(
    "lth",
    paper="Frankle & Carbin 2019, arXiv 1803.03635",
    budgets=("global", "uniform", "erk", "nm"),
    kind="rewind",
    options=Rewinding(weights=0),
    summary="the lottery ticket: the trained network's mask on the weights that training began with",
)
def rewind(
    model: nn.Module,
    train: Train,
    *,
    total_steps: int,
    budget: Budget | float | str,
    retrain: Retrain = LEARNING_RATE_REWINDING,
    draw: Callable[[nn.Module, int], object] | None = None,
    **pruning: Any,
) -> Mask:
    """Trains the dense model, prunes it, and trains it again; returns the final mask.

    Args:
        model: from its initialisation; ends trained and pruned.
        train: trains a part of the schedule, see ``Train``.
        total_steps: of the whole schedule.
        budget: how much stays where; see ``Pruning``.
        retrain: from which weights and where on the schedule.
        draw: (model, seed) draws fresh weights; by default ``draw_again``.
        pruning: the other fields of ``Pruning``: ``criterion``, ``batches``, ``rounds``, ``shuffle``, ``units``,
            ``loss_fn``, ``cost``, and the ``seed``, also of fresh weights.

    Raises:
        UsageError: no rounds, a step outside of the schedule, or one that ``train`` never reported.
        BudgetError: a budget below what the smallest network needs.
    """
    how, step = Pruning(budget=budget, **pruning), retrain.weights
    if total_steps < 1:
        raise UsageError(f"total_steps={total_steps} was asked; give at least 1")
    if isinstance(step, int) and step > total_steps:
        raise UsageError(
            f"weights of step {step} were asked of a training of {total_steps} steps; give a step up to that"
        )
    limit = as_budget(budget, latency=how.cost is not None)
    list(stages(limit, units_of(model, how.units), how.cost, how.rounds))  # refused before the dense training
    kept: dict[int, dict[str, Tensor]] = {}

    def done(n: int) -> None:
        if n == step and n not in kept:
            kept[n] = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def rewound(model: nn.Module) -> None:
        if isinstance(step, int):
            model.load_state_dict(kept[step])
        elif step == "fresh":
            (draw or draw_again)(model, how.seed)

    done(0)
    train(model, None, 0, total_steps, done)
    if isinstance(step, int) and step not in kept:
        raise UsageError(
            f"weights of step {step} were asked, and train did not call done({step}); call done(n) after each step"
        )
    alive = Mask({})
    for alive in rewinding(model, how, rewound):
        train(model, alive, retrain.first, total_steps, lambda step: None)
    warn_of_ties(alive.flat, criterion_of(how.criterion, how.seed))
    return alive


def rewinding(model: nn.Module, how: Pruning, rewound: Callable[[nn.Module], object]) -> Iterator[Mask]:
    """Yields the mask of each round, with the model pruned and rewound: train it before asking for the next.

    ``rewound`` writes the weights that are trained again into the model; where it does nothing, the final ones stay.

    Raises:
        UsageError: see ``Pruning``.
        BudgetError: a budget below what the smallest network needs.
    """
    units = units_of(model, how.units)
    for alive in in_rounds(model, replace(how, units=units)):
        rewound(model)
        alive.apply(model, units)
        yield alive


@contextmanager
def keeping_mask(
    model: nn.Module, optimizer: Optimizer, mask: Mask | None, units: Units | None = None
) -> Iterator[None]:
    """Context in which steps of the model's optimizer leave pruned weights at zero, with momentum and weight decay.

    The mask (``None``: everything is active) is already applied; its names are those of ``units``, else of parameters.
    """
    if mask is None:
        yield
        return
    masks = dict(mask) if units is None else units.masks(mask)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    guard = Guard({name: tensors[name] for name in masks}, optimizer)
    guard.hold(masks)
    handle = optimizer.register_step_post_hook(lambda optimizer, args, kwargs: guard.restore())
    try:
        yield
    finally:
        handle.remove()


def draw_again(model: nn.Module, seed: int = 0) -> None:
    """Draws every weight again by each module's ``reset_parameters``; norms go back to 1 and 0.

    A network with an initialisation of its own needs its own function in ``rewind(draw=...)``; for those of
    ``halpiee.zoo`` that is ``halpiee.zoo.draw``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()


@torch.no_grad()
def draw_normal(model: nn.Module, seed: int = 0) -> None:
    """Draws the weights of convolutions and linear layers from N(0, 1), whatever their size; biases are zero.

    With it magnitude at initialisation loses what it knows of the layers' scales (an ablation of arXiv 2009.08576).
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
            if module.bias is not None:
                module.bias.zero_()
