"""GMP and GraNet: the cubic with its end point, what may return, and neuroregeneration."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from halpiee import ERK, GMP, NM, Global, GraNet, Uniform
from halpiee.errors import UsageError
from halpiee.methods.gradual import Ramp, Regrowth, gradual
from halpiee.methods.phases import Drop, Grow, Resize, Train
from halpiee.sparsity import Mask

from .small import batches, conv, linear, momentum, sgd, train


def test_the_density_follows_the_cubic_and_ends_exactly_where_it_was_asked() -> None:
    net = linear()
    optimizer = sgd(net)
    method = GMP(net, optimizer, budget=Global(0.1), total_steps=40, interval=4, last=0.5)
    for _ in train(net, optimizer, batches(net, 40)):
        pass
    # 186 weights; grid 4, 8, …, 20: s = .9 · (1 − (1 − k/5)³)
    assert [(e.step, int(e.used)) for e in method.reports] == [
        (4 * k, round((1 - 0.9 * (1 - (1 - k / 5) ** 3)) * 186)) for k in range(1, 6)
    ]
    assert int(method.reports[-1].used) == round(0.1 * 186)
    assert method.finished


def test_a_grid_that_does_not_reach_the_end_ends_at_its_last_point() -> None:
    phases = gradual(Global(0.2), Ramp(total_steps=100, interval=7))
    resizes = [p for p in phases if isinstance(p, Resize)]
    assert len(resizes) == 7  # 7, …, 49
    assert resizes[-1].budget == Global(0.2)  # not 1 − (1 − 0.2)


def test_one_ranking_over_all_layers_keeps_the_largest_weights_anywhere() -> None:
    net = linear()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    values = torch.cat([m.weight.detach().abs().flatten() for m in net if isinstance(m, nn.Linear)])
    method = GMP(net, optimizer, budget=Global(0.2), total_steps=10, interval=1, last=0.1)
    for _ in train(net, optimizer, batches(net, 1)):
        pass
    kept = torch.cat([m.flatten() for m in method.alive.values()])
    assert int(kept.sum()) == 37
    assert float(values[kept].min()) > float(values[~kept].max())


def test_gale_keeps_the_first_layer_dense_and_a_fifth_of_the_last() -> None:
    net = linear()
    optimizer = sgd(net)
    budget = Uniform(0.1, first=1.0, last=0.2)
    method = GMP(net, optimizer, budget=budget, total_steps=20, interval=2, last=0.5)
    for _ in train(net, optimizer, batches(net, 20)):
        pass
    assert method.alive.counts == {"0.weight": 96, "3.weight": 7, "5.weight": round(0.2 * 18)}


def test_with_masks_only_a_removed_weight_may_return_with_its_value_and_otherwise_never() -> None:
    for masks_only in (True, False):
        net = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        method = GMP(
            net, optimizer, budget=Uniform(0.5), total_steps=4, interval=1, last=0.5, masks_only=masks_only
        )
        # k = 1 of 2: s = .5 · (1 − 1/8) = .4375 → 2 of 4 stay; then the two that stayed shrink below .2
        for gradient in ([0.0, 0, 0, 0], [0.35, 0.25, 0, 0]):
            net.weight.grad = torch.tensor([gradient])
            optimizer.step()
        if masks_only:
            assert method.alive["weight"].tolist() == [[False, False, True, True]]
            assert net.weight.tolist()[0][2:] == pytest.approx([0.2, 0.1])
        else:
            assert method.alive["weight"].tolist() == [[True, True, False, False]]


def test_neuroregeneration_exchanges_the_ceiling_of_r_times_the_nonzeros_to_the_end() -> None:
    net = conv()
    optimizer = sgd(net)
    method = GraNet(net, optimizer, budget=Global(0.2), total_steps=40, interval=5, last=0.5)
    masks: list[tuple[str, int, Mask]] = []
    method.ledger.listeners.append(lambda e, m: masks.append((e.event, e.step, m)))
    for _ in train(net, optimizer, batches(net, 40)):
        pass
    names = [(event, step) for event, step, _ in masks]
    cubic, rest = (5, 10, 15, 20), (25, 30, 35)
    assert names == [(e, s) for s in cubic for e in ("prune", "drop", "grow")] + [
        (e, s) for s in rest for e in ("drop", "grow")
    ]
    for i, (event, step, mask) in enumerate(masks):
        if event == "drop":
            r = 0.005 + 0.495 / 2 * (1 + math.cos(math.pi * step / 40))
            before = (masks[i - 1][2]).counts
            assert mask.counts == {n: k - min(math.ceil(r * k), k - 1) for n, k in before.items()}
            assert masks[i + 1][2].counts == before
    assert sum(method.alive.counts.values()) == round(0.2 * 228)


def test_regeneration_can_end_with_the_pruning_as_algorithm_1_has_it() -> None:
    ramp = Ramp(total_steps=40, interval=5, last=0.5)
    phases = gradual(Global(0.2), ramp, regrowth=Regrowth(until="pruning"))
    assert sum(isinstance(p, Grow) for p in phases) == 4
    phases = gradual(Global(0.2), ramp, regrowth=Regrowth())
    assert sum(isinstance(p, Grow) for p in phases) == 7
    assert sum(p.steps for p in phases if isinstance(p, Train)) == 35
    assert [p.omega for p in phases if isinstance(p, Drop)][3] == pytest.approx(0.2525)  # half way


def test_what_the_resize_removed_comes_back_as_zero_with_zero_momentum() -> None:
    net = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.6, 0.5, 0.4, 0.3, 0.2, 0.1]]))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    method = GraNet(net, optimizer, budget=Global(0.5), total_steps=4, interval=1, last=0.25)
    # k = 1 of 1: 3 of 6 stay; r(1) = .4275: ⌈1.28⌉ = 2 are exchanged; gradients want the last two
    net.weight.grad = torch.tensor([[0.0, 0, 0, 0, 7.0, 9.0]])
    optimizer.step()
    assert method.alive["weight"].tolist() == [[True, False, False, False, True, True]]
    assert net.weight[0, 4:].tolist() == [0.0, 0.0]
    assert momentum(optimizer, net.weight)[0].tolist()[0][1:] == [0.0] * 5


def test_granet_from_a_sparsity_starts_with_an_erk_mask_of_it() -> None:
    net = linear()
    method = GraNet(net, sgd(net), budget=Global(0.1), total_steps=40, interval=5, initial=0.5)
    first = method.reports[0]
    epsilon = 0.5 * 186 / 47  # no layer reaches 1: 9 · 1.979 = 17.8 of 18
    by_hand = {
        "0.weight": round(20 * epsilon),
        "3.weight": round(18 * epsilon),
        "5.weight": round(9 * epsilon),
    }
    assert (first.event, first.counts) == ("init", by_hand)
    other = linear()
    uniform = GraNet(other, sgd(other), budget=Uniform(0.1), total_steps=40, interval=5, initial=0.5)
    assert uniform.reports[0].counts == {"0.weight": 48, "3.weight": 36, "5.weight": 9}


def test_twice_as_long_with_the_same_interval_is_granet_2x() -> None:
    one = gradual(Global(0.2), Ramp(total_steps=40, interval=5))
    two = gradual(Global(0.2), Ramp(total_steps=80, interval=5))
    assert sum(isinstance(p, Resize) for p in one) == 4
    assert sum(isinstance(p, Resize) for p in two) == 8


def test_the_ablation_of_two_settings_is_refused_in_words() -> None:
    net = linear()
    with pytest.raises(UsageError, match=r"start at a sparsity of 0.95 and end at 0.9"):
        GraNet(net, sgd(net), budget=Global(0.1), total_steps=40, interval=5, initial=0.95)
    with pytest.raises(
        UsageError, match=r"every 50 steps between 0% and 69% of 40 steps .* none fits; .* shorter interval= "
    ):
        GMP(net, sgd(net), budget=ERK(0.4), total_steps=40, interval=50)
    with pytest.raises(UsageError, match=r"NM was given to a method that passes through densities"):
        GMP(net, sgd(net), budget=NM(2, 4), total_steps=40, interval=5)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.77, 0.9])
@pytest.mark.parametrize("init", ["random", "magnitude"])
def test_granet_that_starts_at_its_end_keeps_exactly_what_was_asked(sparsity: float, init: str) -> None:
    net = conv()
    optimizer = sgd(net)
    method = GraNet(
        net,
        optimizer,
        budget=Global(round(1 - sparsity, 12)),
        total_steps=12,
        interval=3,
        initial=sparsity,
        init=init,
    )
    for _ in train(net, optimizer, batches(net, 12)):
        pass
    total = sum(math.prod(shape) for shape in method.units.sizes.values())
    assert int(method.reports[0].used) >= round((1 - sparsity) * total)
    assert sum(method.alive.counts.values()) == round((1 - sparsity) * total)
