"""HALP: a geometric path down to the latency, and channels that never return."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import halpiee
from halpiee import HALP, IEE
from halpiee.errors import UsageError
from halpiee.methods.channels import recipe
from halpiee.methods.phases import Resize, Train
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity import Latency, Uniform
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


@pytest.mark.parametrize("method", [HALP, IEE])
def test_layers_solved_again_after_a_prune_make_up_for_a_channel_that_another_one_copies(
    method: type[HALP] | type[IEE],
) -> None:
    """Every hidden channel has a copy, so that any one can go and the answers can stay; kept weights alone halve it."""

    def loss_of_answers(images: torch.Tensor | None) -> float:
        torch.manual_seed(0)
        first, norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None)
        net = nn.Sequential(first, norm, nn.ReLU(), nn.Conv2d(8, 5, 1))
        with torch.no_grad():
            norm.weight.copy_(torch.arange(1.0, 9.0))
            for tensor in net[:2].parameters():
                tensor[4:] = tensor[:4]
        net(x)  # its statistics are those of the images
        norm.eval()
        norm.requires_grad_(False)
        before = net(x).detach()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        own = (
            {"prunes": 1, "interval": 1}
            if method is HALP
            else {"h": 1, "j": 1, "q": 1, "start": "pretrained"}
        )
        structure = halpiee.trace(net, (x[:1],))
        attached = method(
            net,
            optimizer,
            budget=Uniform(7 / 8),
            units=structure,
            total_steps=8,
            images=images,
            criterion="l1",
            **own,
        )
        while not attached.reports:
            net(x).sum().backward()
            optimizer.step()
        with torch.no_grad():
            found, after = attached.keep, net(x)
        assert sum(int(m.sum()) for m in found.values()) == 7
        return float((after - before).norm() / before.norm())

    x = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert loss_of_answers(x) < 1e-2 < 0.05 < loss_of_answers(None)


def test_images_to_solve_layers_from_are_refused_where_no_channels_are_cut(net: TinyNet) -> None:
    with pytest.raises(UsageError, match=r"IEE was given images to solve layers from, and masks weights"):
        IEE(net, sgd(net), budget=Uniform(0.5), total_steps=1000, images=torch.zeros(8, 3, 8, 8))
