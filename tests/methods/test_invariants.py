"""What holds after every step, whatever the method, the optimizer and the network."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from halpiee import (
    ERK,
    GMP,
    IEE,
    NM,
    SET,
    SETITOP,
    SNFS,
    SNIP,
    AtInit,
    FilterPruning,
    Global,
    GraNet,
    GraSP,
    RigL,
    RigLITOP,
    Static,
    SynFlow,
    Uniform,
)
from halpiee.methods.registry import METHODS as CATALOGUE
from halpiee.methods.sparse import Sparse
from halpiee.saliency import Taylor
from halpiee.sparsity import Filters, Mask, Weights

from .small import adamw, batches, conv, decayed_sgd, heavy_sgd, linear, momentum, plain_sgd, sgd, train

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
    "set-itop": lambda m, o, s: SETITOP(m, o, budget=ERK(0.4), total_steps=STEPS, interval=5, seed=s),
    "rigl-itop": lambda m, o, s: RigLITOP(m, o, budget=ERK(0.4), total_steps=STEPS, interval=5, seed=s),
    "rigl-nm": lambda m, o, s: RigL(
        m, o, budget=NM(1, 2), total_steps=STEPS, interval=3, units=even(m), seed=s
    ),
    "gmp-uniform": lambda m, o, s: GMP(
        m, o, budget=Uniform(0.3, first=1.0, last=0.4), total_steps=STEPS, interval=3, seed=s
    ),
    "snip": lambda m, o, s: SNIP(m, o, budget=Global(0.3), batches=batches(m, 2), seed=s),
    "snip-later": lambda m, o, s: SNIP(
        m, o, budget=Global(0.3), batches=batches(m, 2), at=7, shuffle=True, seed=s
    ),
    "grasp": lambda m, o, s: GraSP(m, o, budget=Global(0.3), batches=batches(m, 2), at=2, seed=s),
    "synflow": lambda m, o, s: SynFlow(m, o, budget=Global(0.3), batches=batches(m, 1), rounds=5, seed=s),
    "magnitude": lambda m, o, s: AtInit(m, o, budget=Global(0.3), at=4, redraw=again, seed=s),
    "random": lambda m, o, s: AtInit(m, o, budget=Global(0.3), criterion="random", seed=s),
    "lrr": lambda m, o, s: Static(m, o, mask=given_mask(m), seed=s),
    "ltr": lambda m, o, s: Static(m, o, mask=given_mask(m), shuffle=True, seed=s),
    "iee-nm": lambda m, o, s: IEE(
        m, o, budget=NM(1, 2), total_steps=STEPS, h=3, j=1, q=2, units=even(m), seed=s
    ),
    "iee-moving": lambda m, o, s: IEE(
        m, o, budget=Uniform(0.4), total_steps=STEPS, h=4, j=1, q=1, freeze=False, grow_by="random", seed=s
    ),
    "iee-zero": lambda m, o, s: IEE(
        m,
        o,
        budget=ERK(0.4),
        total_steps=STEPS,
        h=3,
        j=1,
        q=2,
        start="pretrained",
        grow_values="zero",
        seed=s,
    ),
    "iee-global": lambda m, o, s: IEE(
        m, o, budget=Global(0.4), total_steps=STEPS, h=3, j=0, q=1, explore_init="model", seed=s
    ),
}
CONV_ONLY: dict[str, Make] = {
    "filter": lambda m, o, s: FilterPruning(m, o, budget=Uniform(0.5), total_steps=STEPS, rounds=2, seed=s),
    "filter-regrown": lambda m, o, s: FilterPruning(
        m, o, budget=Global(0.5), total_steps=STEPS, rounds=2, regrow=0.3, seed=s
    ),
    "iee-filters": lambda m, o, s: IEE(
        m,
        o,
        budget=Uniform(0.5),
        units=Filters(m),
        criterion=Taylor(),
        total_steps=STEPS,
        h=3,
        j=1,
        q=2,
        seed=s,
    ),
}
# HALP's channels, small-dense, and repair and early, which cut once and mask nothing, have tests of their own
# (test_halp.py, tests/structure, tests/reconstruction, tests/training/test_repairing.py); lth is ltr from step 0.
COVERED = {name.removesuffix("-later") for name in (*METHODS, *CONV_ONLY)} | {
    "halp",
    "small-dense",
    "lth",
    "repair",
    "early",
    "scaled",
}
FIXED = ("static", "set", "rigl", "snfs", "set-itop", "rigl-itop", "rigl-nm", "lrr", "ltr")


def even(model: nn.Module) -> Weights:
    """Weights of layers whose inputs divide by two."""
    odd = {name for name, shape in Weights(model).sizes.items() if shape[1] % 2}
    return Weights(model, pinned=frozenset(odd))


def again(model: nn.Module, seed: int) -> None:
    """Other weights of the same kind."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 4)


def given_mask(model: nn.Module) -> Mask:
    """Every third weight."""
    return Mask(
        {n: (torch.arange(math.prod(s)) % 3 == 0).reshape(s) for n, s in Weights(model).sizes.items()}
    )


PLAIN: dict[str, Callable[[nn.Module], Optimizer]] = {
    "plain": plain_sgd,
    "momentum": heavy_sgd,
    "decay": decayed_sgd,
    "sgd": sgd,
    "adamw": adamw,
}
NETS: dict[str, Callable[[int], nn.Module]] = {"linear": linear, "conv": conv}


EVERY = {**METHODS, **CONV_ONLY}
CASES = [
    (name, optimizer, net)
    for name in EVERY
    for optimizer in PLAIN
    for net in NETS
    if not (name in CONV_ONLY and net == "linear")
    and not (name == "snfs" and optimizer in ("plain", "decay"))
]
"""Every method with every optimizer on both networks; SNFS needs a momentum, filters a convolution."""


def test_every_method_of_the_catalogue_is_held_to_the_invariants() -> None:
    assert {m.name for m in CATALOGUE.values()} <= COVERED


@pytest.mark.parametrize("name", sorted(EVERY))
def test_after_every_step_density_is_exact_and_what_is_inactive_is_zero_and_without_momentum(
    name: str,
) -> None:
    check_every_step(name, "sgd", "conv")
    check_every_step(name, "adamw", "conv" if name in CONV_ONLY else "linear")


@pytest.mark.slow  # every optimizer on every network
@pytest.mark.parametrize("name", sorted(EVERY))
def test_the_same_with_every_optimizer_on_every_network(name: str) -> None:
    for case, optimizer_name, net_name in CASES:
        if case == name:
            check_every_step(name, optimizer_name, net_name)


def check_every_step(name: str, optimizer_name: str, net_name: str) -> None:
    net = NETS[net_name](1)
    optimizer = PLAIN[optimizer_name](net)
    method = EVERY[name](net, optimizer, 1)
    for done in train(net, optimizer, batches(net, STEPS, 1)):
        where = (name, optimizer_name, net_name, done)
        kept = sum(method.alive.counts.values())
        if name in FIXED:
            assert kept == int(method.pool.total), where
        elif method.reports:
            last = method.reports[-1]
            assert kept == int(last.used), where
            if name.startswith("iee"):
                assert last.event == "prune" or kept == int(method.pool.total), where
        assert all(k >= 1 for k in method.alive.counts.values()), where
        if method.memory.everything:
            continue  # exploring: everything is used on purpose
        masks = method.units.masks(method.alive)
        for parameter_name, p in net.named_parameters():
            if parameter_name in masks:
                dead = ~masks[parameter_name]
                assert bool((p[dead] == 0).all()), (*where, parameter_name)
                if name != "snfs":
                    assert all(bool((s[dead] == 0).all()) for s in momentum(optimizer, p)), where
    assert method.finished
    assert sum(method.alive.counts.values()) == int(method.pool.total), (name, optimizer_name, net_name)


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_run_resumed_at_several_steps_ends_bit_equal(name: str) -> None:
    check_resuming(name, "sgd" if sorted(EVERY).index(name) % 2 else "adamw", (1, 8, 15))


@pytest.mark.slow  # every method from every step
@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_run_resumed_at_any_step_ends_bit_equal(name: str) -> None:
    check_resuming(name, "adamw" if sorted(EVERY).index(name) % 2 else "sgd", tuple(range(1, STEPS)))


@pytest.mark.slow  # every method, and the optimizers that are not resumed from every step
@pytest.mark.parametrize("optimizer_name", sorted(PLAIN.keys() - {"sgd", "adamw"}))
@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_run_saved_and_resumed_between_all_its_steps_ends_bit_equal(name: str, optimizer_name: str) -> None:
    if (name, optimizer_name, "conv") not in CASES:
        return
    net, optimizer, method = whole = fresh(name, optimizer_name)
    data = batches(net, STEPS)
    for _ in train(net, optimizer, data):
        pass
    net, optimizer, method = fresh(name, optimizer_name)
    for step in range(STEPS):
        for _ in train(net, optimizer, data[step : step + 1]):
            pass
        net, optimizer, method = resumed(name, optimizer_name, saved(net, optimizer, method))
    same(whole, (net, optimizer, method), (name, optimizer_name))


Parts = tuple[nn.Module, Optimizer, Sparse]


def fresh(name: str, optimizer_name: str) -> Parts:
    """Returns what a run begins with."""
    net = conv()
    optimizer = PLAIN[optimizer_name](net)
    return net, optimizer, EVERY[name](net, optimizer, 1)


def saved(net: nn.Module, optimizer: Optimizer, method: Sparse) -> io.BytesIO:
    """Returns a checkpoint."""
    file = io.BytesIO()
    parts: dict[str, Any] = {"model": net, "optimizer": optimizer, "method": method}
    torch.save({key: part.state_dict() for key, part in parts.items()}, file)
    return file


def resumed(name: str, optimizer_name: str, file: io.BytesIO) -> Parts:
    """Returns new parts that hold what a checkpoint says."""
    net, optimizer, method = fresh(name, optimizer_name)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    net.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    method.load_state_dict(state["method"])
    return net, optimizer, method


def same(one: Parts, other: Parts, where: object) -> None:
    """Asserts that two runs ended with the same masks, weights, reports and phases."""
    (net, _, method), (other_net, _, other_method) = one, other
    assert method.alive.digest() == other_method.alive.digest(), where
    for (n, a), b in zip(net.state_dict().items(), other_net.state_dict().values(), strict=True):
        assert torch.equal(a, b), (where, n)
    assert [e.used for e in method.reports] == [e.used for e in other_method.reports], where
    assert method.log == other_method.log, where


def check_resuming(name: str, optimizer_name: str, steps: tuple[int, ...]) -> None:
    """Saves a run at the given steps, goes on from each of them, and compares the ends."""
    net, optimizer, method = whole = fresh(name, optimizer_name)
    data, files = batches(net, STEPS), {}
    for done in train(net, optimizer, data):
        if done in steps:
            files[done] = saved(net, optimizer, method)
    for at, file in files.items():
        parts = resumed(name, optimizer_name, file)
        for _ in train(parts[0], parts[1], data[at:]):
            pass
        same(whole, parts, (name, at))


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
    torch.autograd.backward(cross_entropy(net(data[2][0]), data[2][1]))
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
        net.get_parameter("0.weight").fill_(float("nan"))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(PromiseError, match=r"scores of '0.weight' are not finite: the training has diverged"):
        optimizer.step()
