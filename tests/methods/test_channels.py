"""HALP: a geometric path down to the latency, and channels that never return."""

from __future__ import annotations

import itertools

import pytest
import torch

from halpiee import HALP
from halpiee.errors import UsageError
from halpiee.methods.channels import recipe
from halpiee.methods.phases import Resize, Train
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity import Latency
from halpiee.structure.groups import Structure

from .conftest import TinyNet
from .small import Batches, sgd, train
from .test_latency_budget import Tables, latency_by_hand, timed

__all__ = ["timed"]


def test_thirty_targets_fall_geometrically_as_forces_do() -> None:
    phases = recipe(dense=1 / 0.55, prunes=30, interval=40)
    levels = [p.level * 0.55 for p in phases if isinstance(p, Resize)]
    assert [round(levels[k], 3) for k in (0, 1, 14, 29)] == [0.980, 0.961, 0.742, 0.55]
    assert levels[-1] == 0.55
    assert all(p == Train(40, collect=True) for p in phases if isinstance(p, Train))


@pytest.mark.parametrize("solver", ["linear", "joint"])
def test_every_prune_keeps_survivors_only_and_the_last_meets_the_budget(
    timed: Structure, net: TinyNet, batches: Batches, solver: str
) -> None:
    optimizer = sgd(net)
    method = HALP(
        net,
        optimizer,
        budget=Latency(fraction=0.6),
        total_steps=20,
        structure=timed,
        cost=LatencyCost(timed, Tables()),
        prunes=4,
        interval=3,
        solver=solver,
    )
    masks = []
    method.ledger.listeners.append(lambda e, m: masks.append(m))
    for _ in train(net, optimizer, batches[:20]):
        pass
    assert method.finished
    assert [e.step for e in method.reports[:4]] == [3, 6, 9, 12]
    last = method.reports[-1]
    assert last.used == latency_by_hand(last.counts["a"], last.counts["b"]) <= 0.6 * 51
    for before, after in itertools.pairwise(masks[:4]):
        assert (after & ~before).density == 0


def test_prunes_that_do_not_fit_are_refused(timed: Structure, net: TinyNet) -> None:
    with pytest.raises(UsageError, match=r"30 prunes every 40 steps were asked of 100 steps"):
        HALP(
            net,
            torch.optim.SGD(net.parameters(), lr=0.1),
            budget=Latency(fraction=0.6),
            total_steps=100,
            structure=timed,
            cost=LatencyCost(timed, Tables()),
        )
