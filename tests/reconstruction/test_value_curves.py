"""Measured values: against losses worked out without the product's cuts, and solved against enumeration."""

from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import halpiee
from halpiee.errors import UsageError
from halpiee.reconstruction.rounds import concave, measured_values
from halpiee.selection.choose import choose
from halpiee.selection.cost import LatencyCost
from halpiee.selection.options import blocks


class Net(nn.Module):
    """Two hidden layers, and a bottleneck of one group beside a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 4)
        self.inner, self.back, self.head = nn.Linear(4, 3), nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, gone: dict[str, Tensor] | None = None, branch: bool = True) -> Tensor:
        def kept(name: str, y: Tensor) -> Tensor:
            return y if gone is None or name not in gone else y * gone[name]

        x = kept("two", torch.relu(self.two(kept("one", torch.relu(self.one(x))))))
        y = (
            self.back(kept("inner", torch.relu(self.inner(x))))
            if branch
            else self.back.bias.expand(len(x), 4)
        )
        found: Tensor = self.head(x + y)
        return found


def net() -> tuple[Net, Tensor, dict[str, Tensor]]:
    torch.manual_seed(3)
    model = Net().double().eval()
    images = torch.randn(200, 5, dtype=torch.float64)
    structure = halpiee.trace(model, (images[:2],), vanish=True)
    return model, images, {g.name: torch.rand(g.size) for g in structure.prunable}


def divergence(expected: Tensor, found: Tensor) -> float:
    p, q = torch.softmax(expected, 1), torch.softmax(found, 1)
    return float((p * (p / q).log()).sum(1).mean())


def test_a_width_costs_the_divergence_of_the_network_with_those_units_set_to_zero() -> None:
    model, images, scores = net()
    structure = halpiee.trace(model, (images[:2],))
    size, name = 6, next(g.name for g in structure.prunable if g.size == 6)
    # units whose every width is measured: the hull of the points is then known
    found = measured_values(model, structure, scores, images, shares=[k / size for k in range(1, size)])[name]
    order = scores[name].argsort(descending=True)
    points = {size: 0.0}
    with torch.no_grad():
        for k in range(1, size):
            mask = torch.zeros(size, dtype=torch.float64)
            mask[order[:k]] = 1
            points[k] = -divergence(model(images), model(images, {"one": mask}))
    np.testing.assert_allclose(found, concave(points, size), atol=1e-9)
    assert found[size] == 0.0
    assert (np.diff(found) >= -1e-12).all()


def test_the_width_of_zero_is_the_block_without_its_branch() -> None:
    model, images, scores = net()
    structure = halpiee.trace(model, (images[:2],), vanish=True)
    (block,) = blocks(structure)
    found = measured_values(model, structure, scores, images)
    with torch.no_grad():
        removal = divergence(model(images), model(images, branch=False))
    assert sum(found[name][0] for name in block) == pytest.approx(-removal, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_the_majorant_is_the_least_concave_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 12))
    widths = sorted({int(k) for k in rng.integers(1, size, size=4)} - {size})
    points = {size: 0.0, **{k: float(-rng.random()) for k in widths}}
    curve = concave(points, size)
    inside = sorted(points)
    for k in range(inside[0], size + 1):
        # the best mix of a point at or below k and one at or above it
        best = max(
            points[a] if a == b else points[a] + (points[b] - points[a]) * (k - a) / (b - a)
            for a, b in itertools.product(inside, inside)
            if a <= k <= b
        )
        assert curve[k] == pytest.approx(best, abs=1e-12)
    assert (np.diff(curve, 2) <= 1e-12).all()


class Product:
    def table(self, op: Any) -> Any:
        return self

    def lookup(self, c_in: Any, c_out: Any) -> Any:
        return 1.0 + c_in * c_out

    def measured(self, c_in: Any, c_out: Any) -> Any:
        return c_in * c_out >= 0


@pytest.mark.parametrize("share", [0.25, 0.4, 0.6, 0.8])
def test_the_solve_over_measured_values_is_the_enumerated_optimum(share: float) -> None:
    model, images, scores = net()
    structure = halpiee.trace(model, (images[:2],), vanish=True)
    cost = LatencyCost(structure, cast(Any, Product()))
    values = measured_values(model, structure, scores, images)
    found = choose(scores, cost, share * cost.dense, values=values, gap=0.0)
    names = list(values)
    assert sorted(names) == sorted(cost.candidates)
    within = [
        sum(values[n][k] - values[n][0] for n, k in zip(names, ks, strict=True))
        for ks in itertools.product(*(cost.candidates[n] for n in names))
        if cost.total(dict(zip(names, ks, strict=True))) <= share * cost.dense
    ]
    assert found.value == pytest.approx(max(within), abs=1e-9)
    assert found.upper_bound >= max(within) - 1e-9


def test_batch_norms_take_the_statistics_of_what_reaches_them() -> None:
    torch.manual_seed(0)
    # every unit of the first layer says the same: with statistics of its own, half of them lose nothing
    first = nn.Linear(4, 6, bias=False)
    with torch.no_grad():
        first.weight.copy_(first.weight[:1].expand(6, 4))
    second = nn.Linear(6, 5, bias=False)
    model = nn.Sequential(first, second, nn.BatchNorm1d(5, eps=1e-12), nn.ReLU(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        second.weight.copy_(second.weight.abs())
    images = torch.randn(128, 4, dtype=torch.float64)
    structure = halpiee.trace(model.eval(), (images[:2],))
    with torch.no_grad():
        inner = second(first(images))
        norm = cast(nn.BatchNorm1d, model[2])
        norm.running_mean, norm.running_var = inner.mean(0), inner.var(0)
    name = next(g.name for g in structure.prunable if g.size == 6)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = measured_values(model, structure, {name: torch.rand(6)}, images, shares=[0.5])
    assert found[name][3] == pytest.approx(0.0, abs=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_cannot_be_measured_is_refused() -> None:
    model, images, scores = net()
    structure = halpiee.trace(model, (images[:2],))
    with pytest.raises(UsageError, match="give shares between 0 and 1"):
        measured_values(model, structure, scores, images, shares=[1.5])
    with pytest.raises(UsageError, match=r"value='measured' was asked.*pass batches="):
        halpiee.HALP(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            budget=halpiee.Latency(fraction=0.5),
            total_steps=100,
            structure=structure,
            cost=LatencyCost(structure, cast(Any, Product())),
            prunes=2,
            interval=2,
            value="measured",
        )


def test_halp_prunes_by_measured_values_within_its_budget() -> None:
    model, images, _ = net()
    structure = halpiee.trace(model, (images[:2],))
    cost = LatencyCost(structure, cast(Any, Product()))
    targets = torch.randint(0, 3, (len(images),))
    method = halpiee.HALP(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        budget=halpiee.Latency(fraction=0.5),
        total_steps=8,
        structure=structure,
        cost=cost,
        prunes=2,
        interval=2,
        solver="joint",
        batches=[(images, targets)],
        value="measured",
    )
    for _ in range(8):
        method.optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(images), targets))
        method.optimizer.step()
    assert cost.total(method.alive.counts) <= 0.5 * cost.dense * (1 + 1e-9)


def test_rounds_choose_by_measured_values_and_meet_their_budget() -> None:
    from halpiee.reconstruction.rounds import InRounds, Rounds

    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    images = torch.randn(60, 3, 5, 5)
    structure = halpiee.trace(model, (images[:1],))
    cost = LatencyCost(structure, cast(Any, Product()))
    cut = Rounds(
        model,
        cost,
        0.5 * cost.dense,
        images=images,
        scored=images,
        how=InRounds(rounds=2, value="measured"),
    )
    assert cut.selection.latency_us <= 0.5 * cost.dense * (1 + 1e-9)
    # every measured curve falls from the units that were alive; what was not alive adds nothing
    for group in structure.prunable:
        assert (np.diff(cut._values[group.name]) >= -1e-12).all()
