"""IEE on weights, N:M and filters, and the switches of its ablations."""

from __future__ import annotations

import pytest
import torch

import halpiee
from halpiee import ERK, IEE, NM, Global, Uniform
from halpiee.errors import UsageError
from halpiee.saliency import Taylor
from halpiee.sparsity import Filters, Weights
from halpiee.structure.verification import verify

from .conftest import TinyNet
from .small import Batches, batches, linear, sgd, train


def test_n_of_m_is_whole_again_after_every_grow_and_never_exceeded_before() -> None:
    net = linear()
    optimizer = sgd(net)
    units = Weights(net, pinned=frozenset({"5.weight"}))
    method = IEE(net, optimizer, budget=NM(2, 4), units=units, total_steps=40, h=3, j=1, q=2)
    seen = []
    method.ledger.listeners.append(lambda e, m: seen.append((e.event, m)))
    for _ in train(net, optimizer, batches(net, 40)):
        pass
    assert [event for event, _ in seen] == ["prune", "grow"] * 5
    for event, mask in seen:
        runs = mask["0.weight"].reshape(12, 2, 4).sum(-1)
        assert bool((runs <= 2).all())
        if event == "grow":
            assert bool((runs == 2).all())
            assert int(mask["3.weight"].sum()) == 36


def test_non_uniform_starts_as_erk_and_moves_weights_between_layers_at_an_exact_total() -> None:
    net = linear()
    optimizer = sgd(net)
    method = IEE(net, optimizer, budget=Global(0.4), total_steps=40, h=3, j=1, q=2)
    first = method.alive.counts
    assert all(abs(first[n] - d) <= 1 for n, d in zip(first, (31.7, 28.5, 14.2), strict=True))
    for _ in train(net, optimizer, batches(net, 40)):
        pass
    assert method.alive.counts != first
    assert sum(method.alive.counts.values()) == sum(first.values()) == 74


def test_filters_are_exchanged_and_cut_out(net: TinyNet, batches: Batches) -> None:
    structure = halpiee.trace(net, (torch.zeros(1, 3, 5, 5),))
    optimizer = sgd(net)
    method = IEE(
        net,
        optimizer,
        budget=Uniform(0.5),
        units=Filters(net),
        structure=structure,
        criterion=Taylor(),
        total_steps=30,
        h=3,
        j=1,
        q=2,
    )
    for _ in train(net, optimizer, batches[:30]):
        pass
    assert method.alive.counts == {"conv1": 2, "conv2": 3}
    net.eval()
    x = batches[31][0]
    masked = net(x)
    compact, _ = method.shrink()
    torch.testing.assert_close(compact.eval()(x), masked, rtol=1e-5, atol=1e-6)
    verify(net, structure, method.keep, (x,), compact=compact)


@pytest.mark.parametrize(("h", "j", "q"), [(10, 1, 1), (6, 0, 2), (4, 4, 4)])
def test_a_cycle_may_be_almost_all_training_and_improving_may_be_left_out(h: int, j: int, q: int) -> None:
    net = linear()
    optimizer = sgd(net)
    method = IEE(net, optimizer, budget=ERK(0.4), total_steps=40, h=h, j=j, q=q)
    for _ in train(net, optimizer, batches(net, 40)):
        pass
    cycle = h + j + q
    expected = [
        (at, event)
        for n in range(30 // cycle)
        for at, event in ((n * cycle + h, "prune"), ((n + 1) * cycle, "grow"))
    ]
    assert [(e.step, e.event) for e in method.reports[1:]] == expected
    assert sum(n for n, kind, _ in method.log if kind == "explore") == q * (30 // cycle)


def test_without_freezing_active_weights_move_while_exploring_and_the_cost_is_dense() -> None:
    moved = {}
    for freeze in (True, False):
        net = linear()
        optimizer = sgd(net)
        method = IEE(net, optimizer, budget=ERK(0.4), total_steps=20, h=3, j=1, q=3, freeze=freeze)
        data = batches(net, 6)
        for _ in train(net, optimizer, data[:4]):
            pass
        before = net.get_parameter("0.weight").detach().clone()
        for _ in train(net, optimizer, data[4:]):
            pass
        active = method.alive["0.weight"]
        moved[freeze] = bool((net.get_parameter("0.weight").detach() != before)[active].any())
        assert method.log[-1][1] == ("explore" if freeze else "explore_all")
    assert moved == {True: False, False: True}


def test_grown_weights_keep_what_exploring_made_of_them_or_start_at_zero() -> None:
    for values in ("last", "zero"):
        net = linear()
        optimizer = sgd(net)
        method = IEE(
            net,
            optimizer,
            budget=ERK(0.4),
            total_steps=9,
            h=3,
            j=1,
            q=2,
            grow_values=values,
        )
        data = batches(net, 6)
        for _ in train(net, optimizer, data[:5]):
            pass
        kept = method.alive
        explored = {}
        for _ in train(net, optimizer, data[5:]):
            explored = {n: method.memory.value(n) for n in method.alive}
        grown = {n: method.alive[n] & ~kept[n] for n in method.alive}
        assert sum(int(m.sum()) for m in grown.values()) > 0
        for name, mask in grown.items():
            new = net.get_parameter(name).detach()[mask]
            assert bool((new == 0).all()) is (values == "zero" or not len(new)), name
            if values == "last":
                assert torch.equal(new, explored[name][mask])  # type: ignore[index]


def test_weights_never_active_start_exploring_from_zero_or_from_the_initialisation() -> None:
    for init, zero in ((None, True), ("zero", True), ("model", False)):
        net = linear()
        first = net.get_parameter("0.weight").detach().clone()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        method = IEE(
            net,
            optimizer,
            budget=ERK(0.4),
            total_steps=12,
            h=2,
            j=0,
            q=2,
            explore_init=init,
        )
        never = ~method.alive["0.weight"]
        for _ in train(net, optimizer, batches(net, 2)):
            pass
        assert method.memory.everything
        shown = net.get_parameter("0.weight").detach()[never]
        assert torch.equal(shown, torch.zeros_like(shown) if zero else first[never])


def test_random_growth_is_seeded_and_differs_from_growth_by_score() -> None:
    found = []
    for by, seed in (("score", 0), ("random", 0), ("random", 0), ("random", 1)):
        net = linear()
        optimizer = sgd(net)
        method = IEE(
            net,
            optimizer,
            budget=ERK(0.4),
            total_steps=12,
            h=3,
            j=1,
            q=2,
            grow_by=by,
            seed=seed,
        )
        for _ in train(net, optimizer, batches(net, 12)):
            pass
        found.append(method.alive.digest())
    assert found[1] == found[2]
    assert len(set(found)) == 3


def test_filters_that_go_with_their_norm_cannot_start_from_zero(net: TinyNet) -> None:
    with pytest.raises(UsageError, match="zero gradients"):
        IEE(net, sgd(net), budget=Uniform(0.5), units=Filters(net), total_steps=600, explore_init="zero")
