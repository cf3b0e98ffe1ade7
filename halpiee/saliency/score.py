"""Scores of a model's units over some batches, outside any training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from halpiee.errors import UsageError
from halpiee.saliency.criterion import Criterion
from halpiee.saliency.magnitude import Magnitude
from halpiee.saliency.random import Random
from halpiee.saliency.taylor import Taylor
from halpiee.sparsity.granularity import Channels, Units, Weights
from halpiee.structure.groups import Structure

__all__ = ["CRITERIA", "score"]

CRITERIA: dict[str, Callable[[int], Criterion]] = {
    "magnitude": lambda seed: Magnitude(),
    "random": Random,
    "taylor": lambda seed: Taylor(),
}
"""Name → criterion for a seed."""


def score(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    criterion: Criterion | str,
    *,
    units: Structure | Literal["weights"],
    loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Returns the importance of every unit.

    Gradients are taken per batch; coupled layers are summed before the absolute value, batches are averaged after
    it. The model is left as it was: gradients, buffers and mode.

    Args:
        model: the network, in the mode its batch norms are to run in.
        batches: (inputs, targets); not read by criteria that need no gradients.
        criterion: a criterion, or ``magnitude``, ``random``, ``taylor``.
        units: a structure → ``{group: [size]}``; ``"weights"`` → ``{parameter name: weight's shape}``.
        loss_fn: (outputs, targets) → scalar.
        seed: of random scores.

    Raises:
        UsageError: an unknown criterion, or no finite batch for one that needs gradients.
    """
    if isinstance(criterion, str):
        if criterion not in CRITERIA:
            raise UsageError(
                f"the criterion {criterion!r} was asked; known are {', '.join(sorted(CRITERIA))}"
            )
        criterion = CRITERIA[criterion](seed)
    chosen: Units = Weights(model) if isinstance(units, str) else Channels(model, units, trainable_only=False)
    parameters = dict(model.named_parameters())
    if not criterion.per_step:
        with torch.no_grad():
            return {n: s.cpu() for n, s in criterion(chosen, parameters.get, lambda _: None).items()}
    total: dict[str, Tensor] = {}
    done = 0
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    try:
        for inputs, targets in batches:
            loss = loss_fn(model(inputs), targets)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            gradients = dict(zip(parameters, found, strict=True))
            scores = criterion(chosen, parameters.get, gradients.get)
            if not all(bool(torch.isfinite(s).all()) for s in scores.values()):
                continue
            done += 1
            for name, s in scores.items():
                total[name] = total[name] + s if name in total else s.detach()
    finally:
        with torch.no_grad():
            for name, tensor in model.named_buffers():
                tensor.copy_(buffers[name])
    if not done:
        raise UsageError("no batch gave finite scores; give at least one batch of finite inputs and targets")
    return {name: (s / done).cpu() for name, s in total.items()}
