"""A loss that is no number: every method stops, before it chooses units by what has become of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import halpiee
from halpiee.errors import PromiseError

from .small import batches, conv, sgd


def attached(kind: str, net: nn.Module, optimizer: Any) -> Any:
    steps: dict[str, Any] = {"total_steps": 80}
    structure = halpiee.trace(net, (torch.zeros(1, 2, 4, 4),))
    if kind == "filters":
        return halpiee.FilterPruning(
            net, optimizer, budget=0.5, interval=4, rounds=3, structure=structure, **steps
        )
    if kind == "HALP":
        return halpiee.HALP(net, optimizer, budget=0.5, units=structure, interval=4, prunes=3, **steps)
    if kind == "IEE on channels":
        return halpiee.IEE(
            net, optimizer, budget=0.5, units=structure, criterion="taylor", h=4, j=2, q=4, **steps
        )
    options: dict[str, dict[str, Any]] = {
        "IEE": {"h": 4, "j": 2, "q": 4},
        "Static": {},
        "SNIP": {"batches": batches(net, 1)},
    }
    return getattr(halpiee, kind)(net, optimizer, budget=0.5, **steps, **options.get(kind, {"interval": 4}))


KINDS = (
    "IEE",
    "IEE on channels",
    "HALP",
    "filters",
    "RigL",
    "SET",
    "SNFS",
    "GMP",
    "GraNet",
    "Static",
    "SNIP",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_stops_at_its_next_change_or_after_fifty_steps(kind: str) -> None:
    net = conv()
    optimizer = sgd(net)
    method = attached(kind, net, optimizer)
    events = 0

    def run() -> None:
        nonlocal events
        for i, (x, y) in enumerate(batches(net, 80)):
            optimizer.zero_grad()
            loss = cross_entropy(net(x), y)
            torch.autograd.backward(loss * float("nan") if i == 2 else loss)
            events = len(method.reports)
            optimizer.step()

    with pytest.raises(
        PromiseError, match=r"are not finite: the training has diverged; lower the learning rate"
    ):
        run()
    assert method.step <= 50
    assert len(method.reports) == events  # nothing was chosen by what is left
    with pytest.raises(PromiseError, match="the training has diverged"):
        method.finish()


def test_a_latency_budget_stops_before_the_prune_that_follows() -> None:
    from halpiee.zoo import build

    torch.manual_seed(0)
    net = build("resnet20", num_classes=10, width=1)
    structure = halpiee.trace(net, (torch.zeros(1, 3, 32, 32),))
    cost = halpiee.LatencyCost(structure, next(Path("profiles").glob("*/resnet20-32-b1.jsonl")))
    optimizer = sgd(net)
    iee = halpiee.IEE(
        net, optimizer, budget=0.7, total_steps=40, end=0.75, structure=structure, cost=cost, h=4, j=2, q=4
    )

    def run() -> None:
        for i in range(8):
            optimizer.zero_grad()
            loss = cross_entropy(net(torch.randn(4, 3, 16, 16)), torch.arange(4))
            torch.autograd.backward(loss * float("nan") if i == 2 else loss)
            optimizer.step()

    with pytest.raises(PromiseError, match=r"at step 4 values and scores of '.*' are not finite"):
        run()
    assert [e.event for e in iee.reports] == ["init"]


def test_weights_that_are_no_numbers_are_not_attached_to() -> None:
    net = conv()
    with torch.no_grad():
        net.get_parameter("0.weight")[0, 0, 0, 0] = float("inf")
    optimizer = sgd(net)
    with pytest.raises(PromiseError, match=r"at step 0 values and scores of '0.weight' are not finite"):
        attached("RigL", net, optimizer)
    assert not optimizer._optimizer_step_pre_hooks
