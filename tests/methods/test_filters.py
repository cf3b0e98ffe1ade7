"""Filter pruning: rounds, regrowth by gradient, and a network that is cut smaller."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import halpiee
from halpiee import FilterPruning, Global, Uniform
from halpiee.errors import UsageError
from halpiee.structure.verification import verify

from .conftest import TinyNet
from .small import Batches, sgd, train


def attach(net: nn.Module, **options: object) -> tuple[FilterPruning, torch.optim.Optimizer]:
    structure = halpiee.trace(net, (torch.zeros(1, 3, 5, 5),))
    optimizer = sgd(net)
    given = {"budget": Global(0.5), "total_steps": 12, "structure": structure, **options}
    return FilterPruning(net, optimizer, **given), optimizer


def test_n_rounds_remove_equal_numbers_of_all_filters(net: TinyNet, batches: Batches) -> None:
    method, optimizer = attach(net, budget=Global(0.4), rounds=3, interval=2)
    for _ in train(net, optimizer, batches[:7]):
        pass
    # of 10 filters: 1 − k · .6/3 stay after round k
    assert [(e.step, int(e.used)) for e in method.reports] == [(2, 8), (4, 6), (6, 4)]
    assert method.finished


def test_layer_by_layer_each_convolution_loses_its_own_share(net: TinyNet, batches: Batches) -> None:
    method, optimizer = attach(net, budget=Uniform(0.5), rounds=1, interval=1)
    for _ in train(net, optimizer, batches[:2]):
        pass
    assert method.alive.counts == {"conv1": 2, "conv2": 3}


def test_l1_removes_the_filters_of_the_smallest_norm(net: TinyNet, batches: Batches) -> None:
    for group in [attach(net, budget=Uniform(0.5), interval=1)]:
        method, optimizer = group
        optimizer.param_groups[0]["lr"] = 0.0
        norms = net.conv1.weight.detach().abs().flatten(1).sum(1)
        for _ in train(net, optimizer, batches[:1]):
            pass
        kept = method.alive["conv1"]
        assert float(norms[kept].min()) > float(norms[~kept].max())


def test_the_shrunk_network_equals_the_masked_one_and_is_smaller(net: TinyNet, batches: Batches) -> None:
    method, optimizer = attach(net, rounds=2, interval=3)
    for _ in train(net, optimizer, batches[:10]):
        pass
    net.eval()
    x = batches[11][0]
    masked = net(x)
    compact, _ = method.shrink()
    torch.testing.assert_close(compact.eval()(x), masked, rtol=1e-5, atol=1e-6)
    kept = method.alive.counts
    assert compact.get_parameter("conv1.weight").shape[:2] == (kept["conv1"], 3)
    assert compact.get_parameter("conv2.weight").shape[:2] == (kept["conv2"], kept["conv1"])


def test_a_zeroed_filter_keeps_its_norm_and_so_its_gradient_and_can_return(
    net: TinyNet, batches: Batches
) -> None:
    with (
        torch.no_grad()
    ):  # a zeroed filter comes out of its norm as β: behind a ReLU only β > 0 has a gradient
        net.bn1.bias.fill_(0.1)
        net.bn2.bias.fill_(0.1)
    method, optimizer = attach(net, budget=Uniform(0.5), interval=1, regrow=0.4)
    gammas = net.bn1.weight.detach().clone()
    seen = []
    method.ledger.listeners.append(lambda e, m: seen.append((e.event, m)))
    optimizer.param_groups[0]["lr"] = 0.0
    for done in train(net, optimizer, batches[:2]):
        if done == 1:
            dead = ~method.alive["conv1"]
            assert bool((net.conv1.weight[dead] == 0).all())
            assert torch.equal(net.bn1.weight, gammas)
    assert net.conv1.weight.grad is not None
    assert bool((net.conv1.weight.grad[dead].flatten(1).abs().sum(1) > 0).all())
    # conv2: 3 of 6; ⌊.4 · 3⌋ = 1 goes and 1 comes
    assert [event for event, _ in seen] == ["prune", "drop", "grow"]
    assert seen[1][1].counts == {"conv1": 2, "conv2": 2}
    assert seen[2][1].counts == {"conv1": 2, "conv2": 3}


def test_after_regrowth_the_cut_takes_the_norms_of_removed_filters_too(
    net: TinyNet, batches: Batches
) -> None:
    method, optimizer = attach(net, interval=2, regrow=0.4)
    for _ in train(net, optimizer, batches[:6]):
        pass
    compact, _ = method.shrink()
    x = batches[7][0]
    verify(net, method._structure, method.keep, (x,), compact=compact)  # type: ignore[arg-type]
    torch.testing.assert_close(compact.eval()(x), net.eval()(x), rtol=1e-5, atol=1e-6)


def three(between: nn.Module) -> nn.Module:
    """conv 3 → 6, what lies between, conv 6 → 5, ReLU, conv 5 → 4."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 1), between, nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.Flatten()
    )


@pytest.mark.parametrize(
    ("between", "stays"),
    [(nn.ReLU(), False), (nn.Sigmoid(), True), (nn.GroupNorm(3, 6), True), (nn.Identity(), False)],
    ids=lambda one: type(one).__name__,
)
def test_a_channel_that_is_heard_without_its_filter_is_not_cut(between: nn.Module, stays: bool) -> None:
    """The compact network is the one that was trained: a sigmoid makes 0.5 of zeros, a group norm −µ/σ."""
    net, x = three(between), torch.randn(4, 3, 5, 5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    structure = halpiee.trace(net, (x,))
    method = FilterPruning(
        net, optimizer, budget=Uniform(0.5), total_steps=4, structure=structure, rounds=1, interval=1
    )
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(net(x).square().mean())
        optimizer.step()
    compact, _ = method.shrink()
    torch.testing.assert_close(compact.eval()(x), net.eval()(x), rtol=1e-5, atol=1e-6)
    widths = [m.out_channels for m in compact.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [6 if stays else 3, 2, 4]


def test_second_order_criteria_score_over_given_batches(net: TinyNet, batches: Batches) -> None:
    method, optimizer = attach(net, criterion="grasp", batches=batches[:2], interval=1)
    for _ in train(net, optimizer, batches[:2]):
        pass
    assert int(method.reports[-1].used) == 5
    other = TinyNet()
    method, optimizer = attach(other, criterion="grasp", interval=1)
    with pytest.raises(UsageError, match="score over batches"):
        for _ in train(other, optimizer, batches[:2]):
            pass


def products(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """θᵀg, θᵀHg and ‖g‖² of every filter, by two backward passes."""
    weights = {name: net.get_parameter(f"{name}.weight") for name in ("conv1", "conv2")}
    parameters = list(net.parameters())
    g = torch.autograd.grad(functional.cross_entropy(net(x), y), parameters, create_graph=True)
    dot = torch.stack([(one * one.detach()).sum() for one in g]).sum()
    hg = torch.autograd.grad(dot, parameters)
    found: dict[str, dict[str, torch.Tensor]] = {"θᵀg": {}, "θᵀHg": {}, "‖g‖²": {}}
    for name, w in weights.items():
        at = next(i for i, p in enumerate(parameters) if p is w)
        for key, one, other in (("θᵀg", w, g[at]), ("θᵀHg", w, hg[at]), ("‖g‖²", g[at], g[at])):
            found[key][name] = (one * other).detach().flatten(1).sum(1)
    return found


def test_gradient_flow_is_scored_in_evaluation_where_a_norm_does_not_undo_the_scale_of_filters(
    net: TinyNet, batches: Batches
) -> None:
    """In training mode θᵀg is zero and θᵀHg is −‖g‖², whatever the weights are."""
    for norm in (net.bn1, net.bn2):
        norm.momentum = 0.0  # the one training step leaves the running statistics
        norm.eps = 1e-12
    net.double()
    (x, y), *_ = data = [(x.double(), y) for x, y in batches[:2]]
    training = products(copy.deepcopy(net).train(), x, y)
    for name, size in training["‖g‖²"].items():
        torch.testing.assert_close(training["θᵀHg"][name], -size, rtol=1e-6, atol=1e-12)
        assert float(training["θᵀg"][name].abs().max()) < 1e-9
    evaluation = products(copy.deepcopy(net).eval(), x, y)
    for criterion, key, sign in (
        ("grasp-plain", "θᵀHg", 1),
        ("inverted-grasp-plain", "θᵀHg", -1),
        ("loss", "θᵀg", 0),
    ):
        method, optimizer = attach(copy.deepcopy(net), criterion=criterion, batches=data[:1], interval=1)
        optimizer.param_groups[0]["lr"] = 0.0
        for _ in train(method.model, optimizer, data[:1]):
            pass
        assert method.last_drop is not None
        for name, score in method.last_drop[1].items():
            expected = evaluation[key][name]
            torch.testing.assert_close(
                score, sign * expected if sign else expected.abs(), rtol=1e-6, atol=1e-12
            )


def test_rounds_that_do_not_fit_are_refused(net: TinyNet) -> None:
    with pytest.raises(UsageError, match=r"5 rounds every 3 steps take 15 steps, and the training has 12"):
        attach(net, rounds=5, interval=3)
