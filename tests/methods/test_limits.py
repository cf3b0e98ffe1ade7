"""Limits beside the latency, and blocks that vanish, in IEE and HALP: every choice is legal, compact equals masked."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import halpiee
from halpiee.methods.allocator import LatencyPool
from halpiee.methods.method import Method
from halpiee.selection.cost import Also, LatencyCost
from halpiee.selection.limits import resource
from halpiee.selection.options import blocks
from halpiee.structure.groups import Structure
from halpiee.structure.verification import verify
from latency.op import Op


class Block(nn.Module):
    """A bottleneck beside a skip."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.b, self.nb = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.c, self.nc = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.nb(self.b(torch.relu(self.na(self.a(x))))))
        return torch.relu(x + self.nc(self.c(y)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.two = Block(8, 6), Block(8, 6)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(torch.relu(self.norm(self.stem(x)))))
        found: Tensor = self.head(x.mean((2, 3)))
        return found


class Table:
    def lookup(self, c_in: Any, c_out: Any) -> Any:
        i, o = np.broadcast_arrays(np.asarray(c_in), np.asarray(c_out))
        return 1.0 + i * o

    def measured(self, c_in: Any, c_out: Any) -> Any:
        return np.ones(np.broadcast(c_in, c_out).shape, dtype=np.bool_)


class Tables:
    def table(self, op: Op) -> Table:
        return Table()


EXAMPLE = (torch.zeros(2, 3, 6, 6),)


def traced(*, vanish: bool = True) -> tuple[Net, Structure, LatencyCost]:
    torch.manual_seed(0)
    net = Net()
    structure = halpiee.trace(net, EXAMPLE, vanish=vanish)
    return net, structure, LatencyCost(structure, Tables())


def train(method: Method, net: nn.Module, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(8, 3, 6, 6, generator=generator)
        y = torch.randint(0, 4, (8,), generator=generator)
        method.optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net(x), y))
        method.optimizer.step()


def made(name: str, net: nn.Module, structure: Structure, cost: LatencyCost, share: float) -> Any:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    options: dict[str, Any] = {"end": 0.75, "h": 3, "j": 1, "q": 3, "start": "pretrained"} if name == "IEE" else {
        "prunes": 4, "interval": 3, "solver": "joint",
    }  # fmt: skip
    kind = getattr(halpiee, name)
    budget = halpiee.Latency(fraction=share)
    return kind(net, optimizer, budget=budget, total_steps=24, structure=structure, cost=cost, **options)


@pytest.mark.parametrize(("name", "share"), [("IEE", 0.3), ("HALP", 0.2)])
def test_blocks_vanish_in_a_training_whole_and_exactly(name: str, share: float) -> None:
    net, structure, cost = traced()
    pairs = blocks(structure)
    assert [len(pair) for pair in pairs] == [2, 2]
    method = made(name, net, structure, cost, share)
    train(method, net, 24)
    counts = method.alive.counts
    assert {all(counts[n] == 0 for n in pair) or all(counts[n] > 0 for n in pair) for pair in pairs} == {True}
    assert any(counts[n] == 0 for pair in pairs for n in pair)
    assert cost.total(counts) <= share * cost.dense * (1 + 1e-9)
    compact, _ = method.shrink()
    verify(net, structure, method.keep, EXAMPLE, compact=compact, sizes=(1, 3))
    assert compact(torch.randn(3, 3, 6, 6)).shape == (3, 4)


@pytest.mark.parametrize("name", ["IEE", "HALP"])
def test_without_vanish_every_group_keeps_a_unit(name: str) -> None:
    net, structure, cost = traced(vanish=False)
    method = made(name, net, structure, cost, 0.3)
    train(method, net, 24)
    assert min(method.alive.counts.values()) >= 1


@pytest.mark.parametrize("name", ["IEE", "HALP"])
def test_every_choice_of_a_training_keeps_the_limits_of_its_cost(name: str) -> None:
    net, structure, cost = traced(vanish=False)
    params = resource(structure, "params")
    most = 0.35 * params.dense
    method = made(name, net, structure, cost.limited(Also("params", params, most)), 0.8)
    seen = []
    for _ in range(24):
        train(method, net, 1)
        seen.append(params.total(method.alive.counts))
    done = [event for event in method.reports if event.event in ("grow", "prune", "resize")]
    assert done
    assert seen[-1] <= most * (1 + 1e-9)
    # what the limit leaves is used: no group's next width fits both
    counts, limited = method.alive.counts, method.pool.cost
    for group, count in counts.items():
        wider = [k for k in limited.candidates[group] if k > count]
        if wider:
            other = {**counts, group: wider[0]}
            assert limited.total(other) > 0.8 * cost.dense * (1 - 1e-9) or params.total(other) > most * (
                1 - 1e-9
            )


def test_a_prune_lowers_every_limit_as_it_lowers_the_latency() -> None:
    net, structure, cost = traced(vanish=False)
    params = resource(structure, "params")
    pool = halpiee.methods.allocator.bind(
        halpiee.Latency(fraction=0.9),
        halpiee.sparsity.Channels(net, structure),
        cost.limited(Also("params", params, 0.5 * params.dense)),
    )
    assert isinstance(pool, LatencyPool)
    scores = {name: torch.rand(size) for name, size in pool.units.sizes.items()}
    nothing = halpiee.sparsity.Mask.full(pool.units.sizes, False)
    for level, top in itertools.product((1.0, 0.7), (1.0,)):
        chosen = pool.choose(scores, must=nothing, may=~nothing, level=level)
        assert params.total(chosen.counts) <= top * level * 0.5 * params.dense * (1 + 1e-9)
        assert chosen.latency_us <= level * 0.9 * cost.dense * (1 + 1e-9)


def test_a_limit_that_no_training_reaches_is_refused_by_name() -> None:
    net, structure, cost = traced(vanish=False)
    params = resource(structure, "params")
    with pytest.raises(
        halpiee.BudgetError, match="params: at most 5 parameters were asked; the smallest network"
    ):
        made("IEE", net, structure, cost.limited(Also("params", params, 5.0)), 0.8)


def test_a_training_starts_within_a_budget_that_only_fewer_blocks_meet() -> None:
    net, structure, cost = traced()
    whole = traced(vanish=False)[2]
    narrowest = whole.total({name: widths[0] for name, widths in whole.candidates.items()})
    least = cost.total({name: widths[0] for name, widths in cost.candidates.items()})
    share = (least + narrowest) / 2 / cost.dense
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    method = halpiee.IEE(
        net,
        optimizer,
        budget=halpiee.Latency(fraction=share),
        total_steps=24,
        structure=structure,
        cost=cost,
        end=0.75,
        h=3,
        j=1,
        q=3,
    )
    train(method, net, 24)
    assert cost.total(method.alive.counts) <= share * cost.dense * (1 + 1e-9)
    compact, _ = method.shrink()
    verify(net, structure, method.keep, EXAMPLE, compact=compact, sizes=(1, 3))
