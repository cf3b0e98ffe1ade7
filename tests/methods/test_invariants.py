"""What holds after every step, whatever the method, the optimizer and the network."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from halpiee import ERK, GMP, IEE, SET, SNFS, Global, GraNet, RigL, Static, Uniform
from halpiee.methods.driver import Sparse

from .small import adamw, batches, conv, linear, momentum, sgd, train

STEPS = 24
Make = Callable[[nn.Module, Optimizer, int], Sparse]

METHODS: dict[str, Make] = {
    "static": lambda m, o, s: Static(m, o, budget=ERK(0.4), seed=s),
    "set": lambda m, o, s: SET(m, o, budget=ERK(0.4), total_steps=STEPS, interval=3, fraction=0.5, seed=s),
    "rigl": lambda m, o, s: RigL(
        m, o, budget=Global(0.4), total_steps=STEPS, interval=3, fraction=0.5, seed=s
    ),
    "snfs": lambda m, o, s: SNFS(m, o, budget=ERK(0.4), total_steps=STEPS, interval=3, seed=s),
    "gmp": lambda m, o, s: GMP(m, o, budget=Global(0.2), total_steps=STEPS, interval=3, seed=s),
    "granet": lambda m, o, s: GraNet(
        m, o, budget=Global(0.2), total_steps=STEPS, interval=3, initial=0.3, seed=s
    ),
    "iee": lambda m, o, s: IEE(m, o, budget=ERK(0.4), total_steps=STEPS, h=3, j=1, q=2, seed=s),
    "iee-global": lambda m, o, s: IEE(
        m, o, budget=Global(0.4), total_steps=STEPS, h=3, j=0, q=1, explore_init="model", seed=s
    ),
}
PLAIN: dict[str, Callable[[nn.Module], Optimizer]] = {"sgd": sgd, "adamw": adamw}
NETS: dict[str, Callable[[int], nn.Module]] = {"linear": linear, "conv": conv}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    name=st.sampled_from(sorted(METHODS)),
    optimizer_name=st.sampled_from(sorted(PLAIN)),
    net_name=st.sampled_from(sorted(NETS)),
    seed=st.integers(0, 3),
)
def test_after_every_step_density_is_exact_and_what_is_inactive_is_zero_and_without_momentum(
    name: str, optimizer_name: str, net_name: str, seed: int
) -> None:
    net = NETS[net_name](seed)
    optimizer = PLAIN[optimizer_name](net)
    method = METHODS[name](net, optimizer, seed)
    whole = sum(m.numel() for m in method.alive.values())
    for done in train(net, optimizer, batches(net, STEPS, seed)):
        kept = sum(method.alive.counts.values())
        assert method.alive.density == pytest.approx(kept / whole)
        if name in ("static", "set", "rigl", "snfs"):
            assert kept == int(method.pool.total)
        elif name.startswith("iee"):
            last = method.reports[-1]
            assert kept == int(last.used)
            assert last.event == "prune" or kept == int(method.pool.total)
        elif method.reports:
            assert kept == int(method.reports[-1].used)
        assert all(k >= 1 for k in method.alive.counts.values())
        if method.memory.everything:
            continue  # exploring: everything is used on purpose
        for parameter_name, p in net.named_parameters():
            if parameter_name in method.alive:
                dead = ~method.alive[parameter_name]
                assert bool((p[dead] == 0).all()), (parameter_name, done)
                if name != "snfs":
                    assert all(bool((s[dead] == 0).all()) for s in momentum(optimizer, p))
    assert method.finished
    assert sum(method.alive.counts.values()) == int(method.pool.total)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    name=st.sampled_from(sorted(METHODS)),
    optimizer_name=st.sampled_from(sorted(PLAIN)),
    at=st.integers(1, STEPS - 1),
)
def test_a_run_resumed_at_any_step_ends_bit_equal(name: str, optimizer_name: str, at: int) -> None:
    def fresh() -> tuple[nn.Module, Optimizer, Sparse]:
        net = conv()
        optimizer = PLAIN[optimizer_name](net)
        return net, optimizer, METHODS[name](net, optimizer, 1)

    net, optimizer, method = fresh()
    data = batches(net, STEPS)
    for _ in train(net, optimizer, data[:at]):
        pass
    file = io.BytesIO()
    torch.save(
        {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "method": method.state_dict()}, file
    )
    for _ in train(net, optimizer, data[at:]):
        pass
    other, other_optimizer, other_method = fresh()
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    other_method.load_state_dict(state["method"])
    for _ in train(other, other_optimizer, data[at:]):
        pass
    assert method.alive.digest() == other_method.alive.digest()
    for (n, a), b in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), n
    assert [e.used for e in method.reports] == [e.used for e in other_method.reports]


@pytest.mark.parametrize("make", [sgd, adamw])
def test_active_weights_and_their_state_do_not_move_by_one_bit_while_inactive_ones_are_explored(
    make: Callable[[nn.Module], Optimizer],
) -> None:
    net = conv()
    optimizer = make(net)
    method = IEE(net, optimizer, budget=ERK(0.4), total_steps=20, h=3, j=1, q=3)
    data = batches(net, 7)
    for _ in train(net, optimizer, data[:4]):
        pass
    assert method.memory.everything
    before = {n: t.clone() for n, t in net.state_dict().items()}
    held = {n: [s.clone() for s in momentum(optimizer, p)] for n, p in net.named_parameters()}
    moved = 0
    for _ in train(net, optimizer, data[4:6]):
        for name, tensor in net.state_dict().items():
            if not tensor.is_floating_point():
                continue
            active = method.alive.get(name, torch.ones(tensor.shape, dtype=torch.bool))
            assert torch.equal(tensor[active], before[name][active]), name
            moved += int((tensor[~active] != before[name][~active]).sum())
        for name, p in net.named_parameters():
            active = method.alive.get(name, torch.ones(p.shape, dtype=torch.bool))
            for old, new in zip(held[name], momentum(optimizer, p), strict=True):
                assert torch.equal(old[active], new[active]), name
    assert moved > 0


def explore_once(**options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], IEE, dict[str, Tensor]]:
    """Plain SGD, Q = 1: values before the explore step, its gradients, the method after, candidates before."""
    net = linear()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    method = IEE(net, optimizer, budget=Uniform(0.3), total_steps=8, h=2, j=0, q=1, end=0.5, **options)
    data = batches(net, 3)
    for _ in train(net, optimizer, data[:2]):
        pass
    assert method.memory.everything
    if options.get("explore_init") == "zero":
        with torch.no_grad():  # what was just pruned starts from zero, too
            for name, p in net.named_parameters():
                if name in method.alive:
                    p.mul_(method.alive[name])
    values = {n: p.detach().clone() for n, p in net.named_parameters()}
    candidates = {n: ~m for n, m in method.alive.items()}
    optimizer.zero_grad()
    cross_entropy(net(data[2][0]), data[2][1]).backward()
    gradients = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    optimizer.step()
    return values, gradients, method, candidates


def test_with_plain_sgd_and_q_of_one_the_score_of_an_inactive_weight_is_its_value_minus_the_step() -> None:
    values, gradients, method, candidates = explore_once(explore_init="model")
    assert method.last_grow is not None
    for name, inactive in candidates.items():
        expected = values[name].add(gradients[name], alpha=-0.05).abs()  # as SGD adds it, to the last bit
        assert torch.equal(method.last_grow[1][name][inactive], expected[inactive])


def test_with_zero_initialised_candidates_iee_grows_what_rigl_would() -> None:
    _, gradients, method, candidates = explore_once(explore_init="zero")
    grown = {n: method.alive[n] & inactive for n, inactive in candidates.items()}
    for name, inactive in candidates.items():
        k = int(grown[name].sum())
        assert k > 0
        by_gradient = torch.where(inactive, gradients[name].abs(), -1.0).flatten()
        rigl = torch.zeros_like(by_gradient, dtype=torch.bool)
        rigl[by_gradient.argsort(descending=True, stable=True)[:k]] = True
        assert torch.equal(grown[name].flatten(), rigl), name


def test_a_copied_model_is_an_ordinary_one() -> None:
    net = linear()
    optimizer = sgd(net)
    method = RigL(net, optimizer, budget=ERK(0.4), total_steps=STEPS, interval=3)
    for _ in train(net, optimizer, batches(net, 5)):
        pass
    twin = copy.deepcopy(net)
    assert twin.state_dict().keys() == net.state_dict().keys()
    zeros = sum(int((p == 0).sum()) for n, p in twin.named_parameters() if n in method.alive)
    assert zeros == 186 - int(method.pool.total)


def test_weights_that_are_no_numbers_stop_the_run_and_say_why() -> None:
    from halpiee.errors import PromiseError

    net = linear()
    optimizer = sgd(net)
    RigL(net, optimizer, budget=ERK(0.4), total_steps=STEPS, interval=1)
    with torch.no_grad():
        net[0].weight.fill_(float("nan"))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(PromiseError, match=r"scores of '0.weight' are not finite: the training has diverged"):
        optimizer.step()
