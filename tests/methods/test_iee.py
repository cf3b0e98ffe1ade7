"""IEE on a hand-written structure: its cycle, its two scores, and what stands still while it explores."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.iee import IEE, Options, recipe
from halpiee.methods.phases import Drop, Grow, Start, Train
from halpiee.sparsity import Constant, Mask, Uniform, Weights
from halpiee.structure.groups import ChannelGroup, Slot, Structure
from halpiee.structure.plan import Selection

from .channels import Batches, active_elements, attach, everything, sgd, step
from .small import gradient


def test_the_recipe_is_init_then_cycles_of_train_prune_train_explore_grow() -> None:
    phases = recipe(Options(h=5, j=3, q=2, end=0.75), total_steps=100, omega=Constant(0.3))
    assert phases[0] == Start("random")
    assert phases[1:6] == (
        Train(5, collect=True),
        Drop(0.3),
        Train(3),
        Train(2, forward="all", update="dead", collect=True),
        Grow(0.3),
    )
    assert len(phases) == 1 + 5 * 7  # floor(75 / 10) cycles


def test_less_than_one_cycle_is_refused_with_what_would_fit() -> None:
    with pytest.raises(UsageError, match=r"h \+ j \+ q = 450 steps does not fit .* add up to at most 75"):
        recipe(Options(), total_steps=100, omega=Constant(0.3))


def test_prune_and_grow_come_at_the_steps_the_paper_says(
    net: nn.Module, structure: Structure, batches: Batches
) -> None:
    optimizer = sgd(net)
    iee = attach(net, structure, optimizer)
    for batch in batches:
        step(net, optimizer, batch)
    # h=3, j=2, q=3: prune after 3, 11, 19, 27; grow after 8, 16, 24, 32; end = 32 = 0.8 · 40
    assert [(e.event, e.step) for e in iee.reports] == [
        ("init", 0),
        *[(kind, at + 8 * cycle) for cycle in range(4) for kind, at in (("prune", 3), ("grow", 8))],
    ]
    assert iee.finished


def test_the_budget_holds_after_every_event(net: nn.Module, structure: Structure, batches: Batches) -> None:
    optimizer = sgd(net)
    iee = attach(net, structure, optimizer)
    for batch in batches:
        step(net, optimizer, batch)
    # Uniform(0.5): 2 of 4 and 3 of 6 channels
    for event in iee.reports:
        if event.event == "prune":
            assert event.used <= 5
        else:
            assert event.counts == {"a": 2, "b": 3}


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "GradScaler"])
@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, weight_decay=0.01),
        lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, weight_decay=0.01, fused=True),
        lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1),
        lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1, fused=True),
    ],
    ids=["SGD", "fused SGD", "AdamW", "fused AdamW"],
)
def test_nothing_active_moves_by_one_bit_while_exploring(
    net: nn.Module,
    structure: Structure,
    batches: Batches,
    make: Callable[..., Optimizer],
    scaled: bool,
) -> None:
    optimizer = make(net.parameters())
    iee = attach(net, structure, optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
    for i, (x, y) in enumerate(batches[:8]):
        if i == 5:
            before = everything(net, optimizer)  # after h + j steps: the first step of exploring comes next
        optimizer.zero_grad()
        torch.autograd.backward(scaler.scale(cross_entropy(net(x), y)))
        scaler.step(optimizer)
        scaler.update()
        if i in (5, 6):
            now = everything(net, optimizer)
            moved = []
            for name, value in now.items():
                active = active_elements(net, iee, name.split("/")[0])
                assert torch.equal(value[active], before[name][active]), name
                moved.append(not torch.equal(value[~active], before[name][~active]))
            assert sum(moved) >= 8  # the inactive parts of weights, affine and statistics do train


def test_inactive_channels_are_zero_and_still_while_the_active_ones_train(
    net: nn.Module, structure: Structure, batches: Batches
) -> None:
    optimizer = sgd(net)
    iee = attach(net, structure, optimizer)
    statistics = {n: t.clone() for n, t in net.state_dict().items() if "running" in n}
    for batch in batches[:2]:
        step(net, optimizer, batch)
    for name, value in net.state_dict().items():
        if not value.is_floating_point():
            continue
        active = active_elements(net, iee, name)
        if name in statistics:
            assert torch.equal(value[~active], statistics[name][~active])
        else:
            assert bool((value[~active] == 0).all()), name
            assert bool((value[active] != 0).all()), name


def test_inactive_channels_come_back_with_their_last_values(
    net: nn.Module, structure: Structure, batches: Batches
) -> None:
    initial = {n: t.clone() for n, t in net.state_dict().items()}
    optimizer = sgd(net)
    iee = attach(net, structure, optimizer)
    never = ~iee.alive["a"]
    for batch in batches[:3]:
        step(net, optimizer, batch)
    value_when_pruned = {"a": iee.alive["a"].clone()}
    for batch in batches[3:5]:
        step(net, optimizer, batch)
    # exploring has begun: never-active channels of conv1 hold the model's own initialisation
    assert torch.equal(net.state_dict()["conv1.weight"][never], initial["conv1.weight"][never])
    pruned = ~value_when_pruned["a"] & ~never
    assert bool((net.state_dict()["conv1.weight"][pruned] != 0).all())


def test_scores_are_taylor_on_batch_norms_averaged_over_the_phase(
    net: nn.Module, structure: Structure, batches: Batches
) -> None:
    optimizer = sgd(net)
    iee = attach(net, structure, optimizer)
    expected = torch.zeros(6)
    for i, (x, y) in enumerate(batches[:3]):
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(net(x), y))
        parts = [net.get_parameter(n) * gradient(net, n) for n in ("bn2.weight", "bn2.bias")]
        expected += (parts[0] + parts[1]).detach().abs() / 3
        if i < 2:
            optimizer.step()
    scores = {}
    original = iee.pool.choose
    iee.pool.choose = lambda s, **kw: (scores.update(s), original(s, **kw))[1]  # type: ignore[method-assign]
    optimizer.step()
    torch.testing.assert_close(scores["b"], expected)


def test_prune_reads_only_active_and_grow_only_explored_scores(
    net: nn.Module, structure: Structure, batches: Batches
) -> None:
    optimizer = sgd(net)
    iee = attach(net, structure, optimizer)
    calls: list[tuple[Mask, Mask, Mask]] = []
    original = iee.pool.choose

    def spy(scores: Mapping[str, Tensor], *, must: Mask, may: Mask, level: float) -> Selection:
        calls.append((must, may, iee.alive))
        return original(scores, must=must, may=may, level=level)

    iee.pool.choose = spy  # type: ignore[method-assign]
    for batch in batches[:8]:
        step(net, optimizer, batch)
    (prune_must, prune_may, before), (grow_must, grow_may, kept) = calls
    for name in ("a", "b"):
        assert not bool(prune_must[name].any())
        assert torch.equal(prune_may[name], before[name])
        assert torch.equal(grow_must[name], kept[name])
        assert torch.equal(grow_may[name], ~kept[name])


def test_a_step_with_a_nan_gradient_is_left_out_of_the_scores_and_counted(
    net: nn.Module, structure: Structure, batches: Batches
) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    iee = attach(net, structure, optimizer)
    for i, (x, y) in enumerate(batches[:3]):
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(net(x), y))
        if i == 1:
            gradient(net, "bn1.weight")[0] = float("nan")
        optimizer.step()
        net.get_parameter("bn1.weight").data.nan_to_num_(1.0)
    assert iee.reports[-1].event == "prune"
    assert iee.reports[-1].skipped == 1


class TwoUnits(nn.Module):
    """Two channels that only a batch norm touches, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(x)
        return y


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("choice", ["batch", "running"])
def test_what_active_units_normalise_by_while_exploring_is_one_choice(choice: str, compiled: bool) -> None:
    net = TwoUnits()
    called: Any = torch.compile(net, backend="eager") if compiled else net
    mean = net.get_buffer("bn.running_mean")
    mean.copy_(torch.tensor([10.0, 10.0]))
    net.get_buffer("bn.running_var").copy_(torch.tensor([4.0, 4.0]))
    structure = Structure(
        layers=(),
        groups=(ChannelGroup("u", 2, 0, True),),
        ops=(),
        slots=tuple(
            Slot(f"bn.{t}", "bn", "batch_norm", "norm", 0, np.arange(2))
            for t in ("weight", "bias", "running_mean", "running_var")
        ),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    iee = attach(net, structure, optimizer, total_steps=10, h=1, j=0, q=3, end=0.5, explore_norm=choice)
    x = torch.tensor([[0.0, 0.0], [2.0, 2.0]])  # batch mean 1, variance 1; running mean 10, variance 4
    torch.autograd.backward(called(x).sum())
    optimizer.step()  # h = 1, j = 0: exploring begins
    active = int(iee.alive["u"].nonzero())
    out = called(x)
    by_batch = -1 / math.sqrt(1 + net.bn.eps)
    # the only training forward before (momentum 0.1) moved the active unit's statistics to 0.9·10 + 0.1·1 = 9.1 and,
    # with the unbiased variance 2, to 0.9·4 + 0.1·2 = 3.8
    by_running = (0 - 9.1) / math.sqrt(3.8 + net.bn.eps)
    assert out[0, active].item() == pytest.approx(by_batch if choice == "batch" else by_running, rel=1e-5)
    assert out[0, 1 - active].item() == pytest.approx(by_batch, rel=1e-5)
    torch.autograd.backward(out.sum())
    optimizer.step()
    assert mean[active].item() == pytest.approx(9.1)
    assert mean[1 - active].item() == pytest.approx(0.9 * 10 + 0.1)
    iee.finish()
    torch.testing.assert_close(called(x), net(x))  # by the batch again


def test_zero_is_refused_as_a_start_for_channels(net: nn.Module, structure: Structure) -> None:
    with pytest.raises(UsageError, match="zero channel has zero gradients"):
        attach(net, structure, sgd(net), explore_init="zero")


def test_parameters_outside_the_optimizer_are_named(net: nn.Module, structure: Structure) -> None:
    with pytest.raises(UsageError, match="does not hold"):
        attach(net, structure, torch.optim.SGD([net.get_parameter("fc.bias")], lr=0.1))


def test_with_plain_sgd_and_one_explore_step_the_score_is_the_weight_after_it(
    net: nn.Module, batches: Batches
) -> None:
    # Magnitude, Q = 1: I(Θ_P) = |θ_P − η g| exactly, g at the explored network.
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    iee = IEE(net, optimizer, budget=Uniform(0.5), total_steps=20, units=Weights(net), h=2, j=1, q=1, end=1.0)
    for batch in batches[:3]:
        step(net, optimizer, batch)
    dead = ~iee.alive["conv2.weight"]
    x, y = batches[3]
    twin = copy.deepcopy(net)
    torch.autograd.backward(cross_entropy(twin(x), y))
    expected = (
        torch.add(twin.get_parameter("conv2.weight"), gradient(twin, "conv2.weight"), alpha=-0.05)
        .detach()
        .abs()
    )
    scores: dict[str, Tensor] = {}
    original = iee.pool.choose
    iee.pool.choose = lambda s, **kw: (scores.update(s), original(s, **kw))[1]  # type: ignore[method-assign]
    step(net, optimizer, batches[3])
    assert torch.equal(scores["conv2.weight"][dead], expected[dead])
