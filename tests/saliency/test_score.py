"""Scores against their formulas, written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import halpiee
from halpiee.errors import UsageError


def grad(parameter: torch.Tensor | nn.Module) -> torch.Tensor:
    """Returns the gradient of a parameter."""
    assert isinstance(parameter, torch.Tensor)
    assert parameter.grad is not None
    return parameter.grad


class Coupled(nn.Module):
    """Two convolutions with batch norms added up: their channels are coupled."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.b, self.bn_b = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc((self.bn_a(self.a(x)) + self.bn_b(self.b(x))).mean((2, 3)))
        return found


@pytest.fixture
def net() -> Coupled:
    torch.manual_seed(0)
    net = Coupled()
    for bn in (net.bn_a, net.bn_b):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.normal_(bn.bias)
    return net


def batches(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(4, 3, 2, 2, generator=generator), torch.randint(0, 2, (4,), generator=generator))
        for _ in range(n)
    ]


def test_taylor_sums_coupled_layers_before_the_absolute_value_and_averages_batches(net: Coupled) -> None:
    structure = halpiee.trace(net, (torch.zeros(1, 3, 2, 2),))
    (group,) = structure.prunable
    expected = torch.zeros(4)
    for x, y in batches(3):
        net.zero_grad()
        torch.autograd.backward(cross_entropy(net(x), y))
        a, b = (bn.weight * grad(bn.weight) + bn.bias * grad(bn.bias) for bn in (net.bn_a, net.bn_b))
        expected += (a + b).detach().abs() / 3
    net.zero_grad()
    found = halpiee.score(net, batches(3), "taylor", units=structure)
    torch.testing.assert_close(found, {group.name: expected})


def test_taylor_on_weights_is_weight_times_gradient(net: Coupled) -> None:
    (x, y) = batches(1)[0]
    torch.autograd.backward(cross_entropy(net(x), y))
    found = halpiee.score(net, [(x, y)], "taylor", units="weights")
    assert set(found) == {"a.weight", "b.weight", "fc.weight"}
    torch.testing.assert_close(found["fc.weight"], (net.fc.weight * grad(net.fc.weight)).abs().detach())


def test_scoring_leaves_the_model_as_it_was(net: Coupled) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    halpiee.score(net, batches(2), "taylor", units="weights")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_a_batch_that_is_not_finite_is_left_out(net: Coupled) -> None:
    good = batches(1)
    bad = (torch.full((4, 3, 2, 2), float("nan")), good[0][1])
    both = halpiee.score(net, [*good, bad], "taylor", units="weights")
    torch.testing.assert_close(both, halpiee.score(net, good, "taylor", units="weights"))
    with pytest.raises(UsageError, match="no batch gave finite scores"):
        halpiee.score(net, [bad], "taylor", units="weights")


def test_random_scores_are_those_of_their_seed(net: Coupled) -> None:
    first, again, other = (halpiee.score(net, [], "random", units="weights", seed=s) for s in (1, 1, 2))
    assert torch.equal(first["a.weight"], again["a.weight"])
    assert not torch.equal(first["a.weight"], other["a.weight"])


def test_an_unknown_criterion_is_refused_with_the_known_ones(net: Coupled) -> None:
    with pytest.raises(UsageError, match=r"known are gradient, grasp, .* magnitude, random, .*taylor"):
        halpiee.score(net, [], "size", units="weights")
