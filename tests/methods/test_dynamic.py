"""Static, SET, RigL, ITOP and SNFS: exact counts, who may be grown, and what grown weights start from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from halpiee import ERK, NM, SET, SETITOP, SNFS, Global, RigL, RigLITOP, Static, Uniform
from halpiee.errors import ScoreWarning, UsageError
from halpiee.methods.scores import share
from halpiee.sparsity import Channels, Mask
from halpiee.structure.groups import Structure

from .small import batches, conv, linear, momentum, sgd, train


def masks_at(method: object, event: str) -> list[Mask]:
    """Collects the masks after every event of a name, as it happens."""
    found: list[Mask] = []
    method.ledger.listeners.append(lambda e, mask: found.append(mask) if e.event == event else None)  # type: ignore[attr-defined]
    return found


def test_a_static_mask_has_erk_counts_and_never_changes() -> None:
    net = linear()
    optimizer = sgd(net)
    method = Static(net, optimizer, budget=ERK(0.4))
    # ERK: raw 20/96, 18/72, 9/18; ε = 0.4·186/(20 + 18 + 9) = 1.583: densities .3298, .3957, .7915
    epsilon = 0.4 * 186 / 47
    by_hand = {
        "0.weight": round(20 * epsilon),
        "3.weight": round(18 * epsilon),
        "5.weight": round(9 * epsilon),
    }
    assert method.alive.counts == by_hand
    before = method.alive.digest()
    for _ in train(net, optimizer, batches(net, 5)):
        assert method.alive.digest() == before
    assert method.finished
    assert [e.event for e in method.reports] == ["init"]


def test_a_global_budget_starts_spread_as_erk_with_the_exact_total() -> None:
    net = linear()
    method = Static(net, sgd(net), budget=Global(0.4))
    assert sum(method.alive.counts.values()) == round(0.4 * 186)
    assert all(abs(k - d) <= 1 for k, d in zip(method.alive.counts.values(), (31.7, 28.5, 14.2), strict=True))


def test_every_update_drops_the_floor_of_f_k_per_layer_and_grows_as_many() -> None:
    net = conv()
    optimizer = sgd(net)
    method = RigL(net, optimizer, budget=Uniform(0.5), total_steps=40, interval=5, fraction=0.3)
    for _ in train(net, optimizer, batches(net, 40)):
        pass
    whole = {"0.weight": 36, "3.weight": 72, "7.weight": 6}
    drops = [e for e in method.reports if e.event == "drop"]
    # T_end = 0.75 · 40 = 30: updates after 5, 10, …, 25, none at the end itself
    assert [e.step for e in drops] == [5, 10, 15, 20, 25]
    for event in drops:
        f = 0.15 * (1 + math.cos(math.pi * event.step / 30))
        assert event.counts == {n: k - math.floor(f * k) for n, k in whole.items()}
    assert all(e.counts == whole for e in method.reports if e.event == "grow")


def test_rigl_drops_by_magnitude_and_grows_by_gradient_as_brute_force_does() -> None:
    net = linear()
    optimizer = sgd(net)
    method = RigL(net, optimizer, budget=Uniform(0.5), total_steps=40, interval=4, fraction=0.5)
    for i, (x, y) in enumerate(batches(net, 4)):
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(net(x), y))
        gradient = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        if i == 3:
            # By hand: the values that this very step will leave are those of a plain copy of the optimizer.
            old = Mask({n: m.clone() for n, m in method.alive.items()})
        optimizer.step()
    # values after the step, before the update: what survives keeps them, so the memory shows them
    f = 0.25 * (1 + math.cos(math.pi * 4 / 30))
    for name, was in old.items():
        k = int(was.sum())
        n = math.floor(f * k)
        value = method.memory.value(name)
        assert value is not None
        size = torch.where(was, value.abs(), torch.inf).flatten()
        dropped = size.argsort(stable=True)[:n]
        kept = was.flatten().clone()
        kept[dropped] = False
        growth = torch.where(kept, -1.0, gradient[name].abs().flatten())
        kept[growth.argsort(descending=True, stable=True)[:n]] = True
        assert torch.equal(method.alive[name].flatten(), kept), name


def force(net: nn.Module, method: RigL, gradient: dict[str, Tensor]) -> None:
    """One step in which every parameter's gradient is given."""
    for name, p in net.named_parameters():
        p.grad = gradient[name].clone() if name in gradient else torch.zeros_like(p)
    method.optimizer.step()


def one_layer() -> tuple[nn.Linear, RigL, torch.optim.Optimizer]:
    """Four weights, two active; f(1) of T_end = 3 exchanges one."""
    torch.manual_seed(0)
    net = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    method = RigL(
        net, optimizer, budget=Uniform(0.5), total_steps=4, interval=1, fraction=0.9, init="magnitude"
    )
    return net, method, optimizer


def test_a_weight_that_is_dropped_and_regrown_keeps_its_value_and_momentum() -> None:
    net, method, optimizer = one_layer()
    active = method.alive["weight"].clone()
    values = net.weight.detach().clone()
    smallest = int(torch.where(active, values.abs(), torch.inf).argmin())
    gradient = torch.full((1, 4), 0.1)
    gradient[0, smallest] = 5.0  # the one to be dropped has the largest gradient of all
    force(net, method, {"weight": gradient})
    assert torch.equal(method.alive["weight"], active)
    assert net.weight[0, smallest] == values[0, smallest]
    assert momentum(optimizer, net.weight)[0][0, smallest] == 5.0


def test_a_new_weight_starts_at_zero_with_zero_momentum_and_the_dropped_one_loses_its_own() -> None:
    net, method, optimizer = one_layer()
    active = method.alive["weight"].clone()
    smallest = int(torch.where(active, net.weight.detach().abs(), torch.inf).argmin())
    new = int((~active).flatten().nonzero()[0])
    gradient = torch.full((1, 4), 0.1)
    gradient[0, new] = 5.0
    force(net, method, {"weight": gradient})
    assert bool(method.alive["weight"][0, new])
    assert not bool(method.alive["weight"][0, smallest])
    assert net.weight[0, new] == 0.0
    assert net.weight[0, smallest] == 0.0
    buffer = momentum(optimizer, net.weight)[0]
    assert buffer[0, new] == 0.0
    assert buffer[0, smallest] == 0.0


def test_grown_weights_can_take_their_last_values() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 1, bias=False)
    first = net.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    method = RigL(
        net,
        optimizer,
        budget=Uniform(0.5),
        total_steps=4,
        interval=1,
        fraction=0.9,
        init="magnitude",
        values="last",
    )
    new = int((~method.alive["weight"]).flatten().nonzero()[0])
    gradient = torch.full((1, 4), 0.1)
    gradient[0, new] = 5.0
    force(net, method, {"weight": gradient})
    assert net.weight[0, new] == first[0, new]


def test_a_gradient_that_is_not_finite_exchanges_nothing_and_is_counted() -> None:
    net, method, _ = one_layer()
    active = method.alive.digest()
    gradient = torch.full((1, 4), 0.1)
    gradient[0, int((~method.alive["weight"]).flatten().nonzero()[0])] = float("nan")
    force(net, method, {"weight": gradient})
    assert method.alive.digest() == active
    assert method.reports[-1].event == "grow"
    assert method.reports[-1].skipped == 1


def test_ties_go_to_the_lower_index() -> None:
    net = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with pytest.warns(ScoreWarning, match="Magnitude does not tell the units of 'weight' apart: all .* 1"):
        method = RigL(
            net, optimizer, budget=Uniform(0.5), total_steps=4, interval=1, fraction=0.7, init="magnitude"
        )
    assert method.reports[0].flat == ("weight",)
    assert method.alive["weight"].tolist() == [[True, True, True, False, False, False]]
    # f(1) = .35 · (1 + cos(π/3)) = .525: one of three goes, the last of equals; the first of equals comes
    force(net, method, {"weight": torch.ones(1, 6)})
    assert method.alive["weight"].tolist() == [[True, True, True, False, False, False]]
    force(net, method, {"weight": torch.tensor([[1.0, 1, 1, 2, 2, 2]])})
    # f(2) = .175: floor(.175 · 3) = 0
    assert method.alive["weight"].tolist() == [[True, True, True, False, False, False]]


def test_set_grows_at_random_but_the_same_for_the_same_seed() -> None:
    found = []
    for seed in (0, 0, 1):
        net = linear()
        optimizer = sgd(net)
        method = SET(net, optimizer, budget=Uniform(0.3), total_steps=20, interval=5, seed=seed)
        start = method.alive.digest()
        for _ in train(net, optimizer, batches(net, 20)):
            pass
        assert method.alive.digest() != start
        found.append(method.alive.digest())
    assert found[0] == found[1] != found[2]


def test_the_itop_variants_update_to_the_end_with_their_own_intervals() -> None:
    net = linear()
    method = RigLITOP(net, sgd(net), budget=ERK(0.4), total_steps=16000)
    assert sum(p.__class__.__name__ == "Grow" for p in method.recipe) == 3  # 4000, 8000, 12000; not the end
    net = linear()
    other = SETITOP(net, sgd(net), budget=ERK(0.4), total_steps=6001)
    assert sum(p.__class__.__name__ == "Grow" for p in other.recipe) == 4  # 1500 … 6000
    drops = [p.omega for p in method.recipe if p.__class__.__name__ == "Drop"]  # type: ignore[union-attr]
    assert drops[1] == pytest.approx(0.005 + 0.495 / 2)  # half way down the cosine from .5 to its floor


def test_snfs_shares_what_was_dropped_by_mean_momentum_with_an_exact_total() -> None:
    # two layers lost 3 + 3; mean scores of their active units 3 : 1 → 4.5 and 1.5 → largest remainder, ties first
    active = Mask({"a": torch.ones(10, dtype=torch.bool), "b": torch.ones(10, dtype=torch.bool)})
    scores = {"a": torch.full((10,), 3.0), "b": torch.full((10,), 1.0)}
    assert share({"a": 5, "b": 5}, {"a": 8, "b": 8}, scores, active) == {"a": 10, "b": 6}
    # room in a is only 2: the rest goes to b
    assert share({"a": 8, "b": 2}, {"a": 11, "b": 5}, scores, active) == {"a": 10, "b": 6}
    # no score anywhere: alike
    nothing = {"a": torch.zeros(10), "b": torch.zeros(10)}
    assert share({"a": 5, "b": 5}, {"a": 7, "b": 7}, nothing, active) == {"a": 7, "b": 7}


def held(net: nn.Module, optimizer: Optimizer, method: SNFS) -> tuple[int, bool]:
    """Active weights, and whether the momentum of an inactive one has moved; inactive weights are zero."""
    moved = False
    for name, p in net.named_parameters():
        if name in method.alive:
            dead = ~method.alive[name]
            assert bool((p[dead] == 0).all())
            moved = moved or bool((momentum(optimizer, p)[0][dead] != 0).any())
    return sum(method.alive.counts.values()), moved


def test_snfs_keeps_its_total_trains_all_momentum_and_holds_inactive_weights_at_zero() -> None:
    net = linear()
    optimizer = sgd(net)
    method = SNFS(net, optimizer, budget=Uniform(0.4), total_steps=20, interval=5)
    whole = sum(method.alive.counts.values())
    training = train(net, optimizer, batches(net, 19))
    with pytest.warns(
        ScoreWarning, match="Momentum .* '5.weight' apart"
    ):  # its inputs are dead at one update
        moved = [held(net, optimizer, method) for _ in training]
    assert {kept for kept, _ in moved} == {whole}
    assert any(momentum_moved for _, momentum_moved in moved)
    # nothing is exchanged after the update at step 15, so dense momentum ends there
    assert sum(n for n, kind, _ in method.log if kind == "gradient") == 15
    assert method.log[-1][:2] == (4, "train")


def test_snfs_without_momentum_is_refused() -> None:
    net = linear()
    with pytest.raises(
        UsageError, match=r"SNFS grows by momentum, and SGD keeps none; use SGD with momentum"
    ):
        SNFS(net, torch.optim.SGD(net.parameters(), lr=0.1), budget=ERK(0.4), total_steps=200)


def test_the_step_whose_dense_gradient_is_read_is_logged_for_the_flops() -> None:
    net = linear()
    optimizer = sgd(net)
    method = RigL(net, optimizer, budget=ERK(0.4), total_steps=40, interval=10)
    for _ in train(net, optimizer, batches(net, 40)):
        pass
    assert [(n, kind) for n, kind, _ in method.log] == [(9, "train"), (1, "gradient")] * 2 + [(20, "train")]


def test_n_of_m_holds_in_every_run_after_every_update() -> None:
    net = linear()
    optimizer = sgd(net)
    from halpiee.sparsity import Weights

    units = Weights(net, pinned=frozenset({"3.weight", "5.weight"}))
    method = RigL(net, optimizer, budget=NM(2, 4), total_steps=30, interval=5, fraction=0.5, units=units)
    grown = masks_at(method, "grow")
    for _ in train(net, optimizer, batches(net, 30)):
        pass
    assert len(grown) == 4
    assert len({m.digest() for m in grown}) > 1
    for mask in grown:
        assert mask["0.weight"].reshape(12, 2, 4).sum(-1).eq(2).all()


def test_no_update_that_fits_says_what_would() -> None:
    net = linear()
    with pytest.raises(UsageError, match=r"every 100 steps in the first 75% of 80 steps .* below 60"):
        RigL(net, sgd(net), budget=ERK(0.4), total_steps=80)


def test_channels_are_refused_because_a_zero_channel_has_no_gradient(
    net: nn.Module, structure: Structure
) -> None:
    with pytest.raises(UsageError, match=r"zeros have zero gradients for ever; use weights"):
        RigL(net, sgd(net), budget=Uniform(0.5), total_steps=400, units=Channels(net, structure))


def test_given_weights_start_from_their_largest() -> None:
    net = linear()
    value = net.get_parameter("0.weight").detach().clone()
    method = Static(net, sgd(net), budget=Uniform(0.25), init="magnitude")
    kept = method.alive["0.weight"]
    assert float(value.abs()[kept].min()) >= float(value.abs()[~kept].max())
    assert int(kept.sum()) == 24
