"""Pruning plasticity: what is pruned, what comes back, and what is measured when."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from halpiee.analysis import pruning_plasticity
from halpiee.errors import UsageError


def net() -> nn.Linear:
    layer = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 1.0, -2.0, 3.0, -4.0, 0.0]]))
    return layer


def size(model: nn.Module) -> float:
    return float(next(model.parameters()).detach().abs().sum())


def double(model: nn.Module, active: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        next(model.parameters()).mul_(2)


def test_the_smallest_nonzero_weights_go_and_three_accuracies_are_told_apart() -> None:
    model = net()
    found = pruning_plasticity(model, rate=0.5, train=double, accuracy=size)
    # 4 nonzeros: the two smallest go; 3 + 4 stay, then double
    assert (found.before, found.pruned, found.after) == (10, 7, 14)
    assert found.value == 4
    assert found.density == 2 / 6
    assert size(model) == 10


def test_regrowth_brings_back_as_many_by_gradient_from_zero() -> None:
    seen: dict[str, Tensor] = {}

    def train(model: nn.Module, active: Mapping[str, Tensor]) -> None:
        seen.update(active)
        assert next(model.parameters()).detach().tolist() == [[0, 0, 0, 3, -4, 0]]

    gradients = {"weight": torch.tensor([[9.0, 1.0, 0.0, 99.0, 99.0, 8.0]])}
    found = pruning_plasticity(net(), rate=0.5, train=train, accuracy=size, gradients=gradients)
    assert seen["weight"].tolist() == [[True, False, False, True, True, True]]
    assert found.density == 4 / 6


def test_a_rate_that_is_no_share_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a pruning rate of 1\.5"):
        pruning_plasticity(net(), rate=1.5, train=double, accuracy=size)
