"""A scheduler goes on with the compact network's optimizer as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, SequentialLR, StepLR

from halpiee.errors import UsageError
from halpiee.methods.attach import rebind


def sgd() -> Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)


def rates(optimizer: Optimizer, scheduler: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda o: StepLR(o, 3, 0.5),
        lambda o: CosineAnnealingLR(o, 10),
        lambda o: OneCycleLR(o, 0.2, total_steps=10),
        lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=4), CosineAnnealingLR(o, 6)], [4]),
    ],
    ids=["step", "cosine", "one-cycle", "sequential"],
)
def test_the_rates_after_rebinding_are_those_without(make: Callable[[Optimizer], Any]) -> None:
    whole = sgd()
    expected = rates(whole, make(whole), 9)
    first = sgd()
    scheduler = make(first)
    begun = rates(first, scheduler, 5)
    second = sgd()
    for old, new in zip(first.param_groups, second.param_groups, strict=True):
        new.update({key: value for key, value in old.items() if key != "params"})
    assert rebind(scheduler, first, second) is scheduler
    assert begun + rates(second, scheduler, 4) == pytest.approx(expected)


def test_a_scheduler_of_another_optimizer_is_refused() -> None:
    with pytest.raises(UsageError, match="built on this optimizer"):
        rebind(StepLR(sgd(), 1), sgd(), sgd())
