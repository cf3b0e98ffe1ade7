"""Pruning once: by which scores, at which step, in how many rounds."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from halpiee import SNIP, AtInit, Global, GraSP, SynFlow, Uniform
from halpiee.errors import UsageError
from halpiee.methods.one_shot import recipe
from halpiee.methods.phases import Resize
from halpiee.sparsity import ERK, PerLayer

from .small import batches, linear, sgd, train


def test_snip_keeps_the_largest_products_of_weight_and_gradient_anywhere() -> None:
    net = linear()
    x, y = batches(net, 1)[0]
    torch.autograd.backward(cross_entropy(net(x), y))
    weights = {n: p for n, p in net.named_parameters() if p.dim() > 1}
    products = torch.cat([(p * p.grad).detach().abs().flatten() for p in weights.values()])  # type: ignore[operator]
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    net.zero_grad()
    method = SNIP(net, sgd(net), budget=Global(0.25), batches=[(x, y)])
    kept = torch.cat([m.flatten() for m in method.alive.values()])
    assert int(kept.sum()) == round(0.25 * 186)
    # one unit a layer is granted; here every layer has its own among the best
    assert float(products[kept].min()) >= float(products[~kept].max())
    for name, p in weights.items():
        assert torch.equal(p.detach(), before[name] * method.alive[name])
    assert method.finished


def test_a_later_step_prunes_there_and_not_before() -> None:
    net = linear()
    optimizer = sgd(net)
    data = batches(net, 5)
    method = AtInit(net, optimizer, budget=Uniform(0.5), criterion="magnitude", at=3)
    densities = [method.alive.density for _ in train(net, optimizer, data)]
    assert densities == [1, 1, 0.5, 0.5, 0.5]
    assert [(e.step, e.event) for e in method.reports] == [(3, "prune")]


def test_rounds_lower_the_density_geometrically_and_end_exactly() -> None:
    phases = [p for p in recipe(Global(0.1), rounds=100) if isinstance(p, Resize)]
    densities = [p.budget.density for p in phases]  # type: ignore[union-attr]
    assert len(densities) == 100
    assert densities[0] == pytest.approx(0.97724, abs=5e-6)
    assert densities[49] == pytest.approx(0.31623, abs=5e-6)
    assert densities[99] == 0.1


def test_synflow_reads_no_data_and_each_round_prunes_survivors_only() -> None:
    net = linear()
    method = SynFlow(net, sgd(net), budget=Global(0.2), rounds=4)
    counts = [int(e.used) for e in method.reports]
    assert counts == [round(0.2 ** (k / 4) * 186) for k in range(1, 5)]


def test_grasp_needs_batches_and_says_so() -> None:
    net = linear()
    with pytest.raises(UsageError, match="give at least one batch"):
        GraSP(net, sgd(net), budget=Global(0.2))
    method = GraSP(net, sgd(net), budget=Global(0.2), batches=batches(net, 2))
    assert sum(method.alive.counts.values()) == 37


def test_an_unknown_criterion_names_the_closest() -> None:
    net = linear()
    with pytest.raises(UsageError, match="did you mean 'magnitude'"):
        AtInit(net, sgd(net), budget=Global(0.2), criterion="magnitud")


def test_any_budget_of_units_serves() -> None:
    for budget, total in ((ERK(0.4), 74), (PerLayer({"0": 0.5, "3": 0.25}), 48 + 18 + 18)):
        net = linear()
        method = AtInit(net, sgd(net), budget=budget, criterion="random")
        assert sum(method.alive.counts.values()) == total
