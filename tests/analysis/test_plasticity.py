"""Pruning plasticity: what is pruned, what comes back, and what is measured when."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from halpiee.analysis import pruning_plasticity
from halpiee.errors import UsageError
from halpiee.sparsity.filters import Filters


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


def two_layers() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[1.0, 2.0]]))
        model.get_parameter("1.weight").copy_(torch.tensor([[3.0], [4.0]]))
    return model


def total(model: nn.Module) -> float:
    return float(sum(p.detach().abs().sum() for p in model.parameters()))


def nothing(model: nn.Module, active: Mapping[str, Tensor]) -> None:
    pass


def test_over_all_layers_the_smallest_go_wherever_they_are() -> None:
    # half of |1 2 | 3 4|: each layer its smaller one, 2 + 4 stay; over both layers 1 and 2 would go, and one stays
    assert pruning_plasticity(two_layers(), rate=0.5, train=nothing, accuracy=total).pruned == 2 + 4
    found = pruning_plasticity(two_layers(), rate=0.5, train=nothing, accuracy=total, within="global")
    assert found.pruned == 2 + 4  # the first layer keeps its largest, so one of the second goes
    found = pruning_plasticity(two_layers(), rate=0.25, train=nothing, accuracy=total, within="global")
    assert found.pruned == 2 + 3 + 4
    assert (
        pruning_plasticity(two_layers(), rate=0.25, train=nothing, accuracy=total).pruned == 10
    )  # ⌊0.25·2⌋ = 0


def test_filters_go_whole_by_their_size_and_come_back_by_their_gradient() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([1.0, -2.0, 3.0, -4.0]).reshape(4, 1, 1, 1))
    units = Filters(model, torch.zeros(1, 1, 2, 2), norm_follows=False)
    seen: list[list[bool]] = []

    def kernel(m: nn.Module) -> float:
        return float(m.get_parameter("0.weight").detach().abs().sum())

    def look(m: nn.Module, active: Mapping[str, Tensor]) -> None:
        seen.append(active["0"].tolist())

    gradient = {"0.weight": torch.tensor([5.0, 1.0, 0.0, 0.0]).reshape(4, 1, 1, 1)}
    for gradients, free in ((None, [False, False, True, True]), (gradient, [True, True, True, True])):
        found = pruning_plasticity(
            model, rate=0.5, train=look, accuracy=kernel, gradients=gradients, units=units
        )
        assert (found.before, found.pruned) == (10, 7)
        assert seen[-1] == free
    assert model.get_parameter("1.weight").tolist() == [
        1,
        1,
        1,
        1,
    ]  # norms stay, so that a filter can come back
