"""IEE when steps are skipped, evaluated in between, ended early, or resumed."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from halpiee.methods.iee import IEE
from halpiee.structure.groups import Structure

from .channels import Batches, active_elements, attach, sgd, step
from .small import gradient


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_counts_for_nothing(
    net: nn.Module, structure: Structure, batches: Batches, fused: bool
) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=fused)
    iee = attach(net, structure, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for i, (x, y) in enumerate(batches[:3]):
        optimizer.zero_grad()
        torch.autograd.backward(scaler.scale(cross_entropy(net(x), y)))
        if i == 1:
            gradient(net, "fc.weight")[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    assert iee.step == 2
    assert [e.event for e in iee.reports] == ["init"]


@pytest.mark.parametrize("fused", [False, True])
def test_scores_use_unscaled_gradients(
    net: nn.Module, structure: Structure, batches: Batches, fused: bool
) -> None:
    found = []
    for enabled in (False, True):
        model = copy.deepcopy(net)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
        iee = attach(model, structure, optimizer)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=1024.0)
        x, y = batches[0]
        torch.autograd.backward(scaler.scale(cross_entropy(model(x), y)))
        scaler.step(optimizer)
        found.append(iee.scores.tally.mean()["b"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_evaluating_while_exploring_sees_the_active_units_only(
    net: nn.Module, structure: Structure, batches: Batches
) -> None:
    optimizer = sgd(net)
    iee = attach(net, structure, optimizer)
    for batch in batches[:6]:
        step(net, optimizer, batch)
    explored = net.get_parameter("conv2.weight").detach().clone()
    with iee.evaluating():
        active = active_elements(net, iee, "conv2.weight")
        assert bool((net.get_parameter("conv2.weight")[~active] == 0).all())
        assert torch.equal(net.get_parameter("conv2.weight")[active], explored[active])
    assert torch.equal(net.get_parameter("conv2.weight"), explored)


def test_ending_early_after_a_prune_brings_back_what_it_removed(
    net: nn.Module, structure: Structure, batches: Batches
) -> None:
    optimizer = sgd(net)
    iee = attach(net, structure, optimizer)
    start = iee.alive
    for batch in batches[:4]:
        step(net, optimizer, batch)
    assert iee.alive.digest() != start.digest()
    iee.finish()
    assert iee.finished
    assert iee.alive.digest() == start.digest()
    assert iee.reports[-1].event == "grow"


def test_ending_early_while_exploring_grows_first(
    net: nn.Module, structure: Structure, batches: Batches
) -> None:
    optimizer = sgd(net)
    iee = attach(net, structure, optimizer)
    for batch in batches[:6]:
        step(net, optimizer, batch)
    iee.finish()
    assert iee.reports[-1].event == "grow"
    assert iee.reports[-1].counts == {"a": 2, "b": 3}


@pytest.mark.parametrize(
    "at", [2, 4, 6, 9, 35], ids=["train", "improve", "explore", "second cycle", "finished"]
)
def test_a_run_resumed_at_any_phase_ends_bit_equal(
    net: nn.Module, structure: Structure, batches: Batches, at: int
) -> None:
    def build() -> tuple[nn.Module, Optimizer, IEE]:
        model = copy.deepcopy(net)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        return model, optimizer, attach(model, structure, optimizer)

    whole, optimizer, _ = build()
    for batch in batches:
        step(whole, optimizer, batch)
    first, optimizer, iee = build()
    for batch in batches[:at]:
        step(first, optimizer, batch)
    file = io.BytesIO()
    torch.save({"m": first.state_dict(), "o": optimizer.state_dict(), "i": iee.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second, optimizer, iee = build()
    second.load_state_dict(state["m"])
    optimizer.load_state_dict(state["o"])
    iee.load_state_dict(state["i"])
    for batch in batches[at:]:
        step(second, optimizer, batch)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_a_run_that_goes_on_compact_knows_what_is_left(
    net: nn.Module, structure: Structure, batches: Batches
) -> None:
    optimizer = sgd(net)
    iee = attach(net, structure, optimizer)
    for batch in batches:
        step(net, optimizer, batch)
    iee.finish()
    again = copy.deepcopy(net)
    resumed = attach(again, structure, sgd(again), seed=7)
    resumed.detach()
    resumed.load_record(iee.state_dict())
    assert resumed.alive.digest() == iee.alive.digest()
    assert resumed.alive.density == iee.alive.density
    assert (resumed.step, resumed.finished) == (40, True)
    assert resumed.reports
    # As text: an overlap that is not known is NaN, which equals nothing.
    assert repr(resumed.reports) == repr(iee.reports[: len(resumed.reports)])
