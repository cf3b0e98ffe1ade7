"""Blocks that vanish whole or not at all, and limits that a cost carries: both against enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from halpiee.errors import BudgetError, UsageError
from halpiee.selection.choose import choose, uniform
from halpiee.selection.cost import Also, LatencyCost
from halpiee.selection.limits import pareto, resource
from halpiee.selection.options import blocks
from halpiee.structure.groups import Structure

from .fakes import FormulaProfile, conv, group, other, residual, select_within, structure

SIZES = {"stream": 4, "a": 3, "b": 3}


def bottleneck() -> Structure:
    """Stem → (a, b, back onto the stream) + skip → head; a and b may vanish."""
    sizes = {"input": 3, "head": 5, **SIZES}
    one = {name: ((name, 1),) for name in sizes}
    return structure(
        [
            group("input", 3, prunable=False),
            group("stream", 4),
            group("a", 3, may_vanish=True),
            group("b", 3, may_vanish=True),
            group("head", 5, prunable=False),
        ],
        [
            conv("stem", one["input"], one["stream"], sizes),
            conv("block.conv1", one["stream"], one["a"], sizes),
            conv("block.conv2", one["a"], one["b"], sizes),
            conv("block.conv3", one["b"], one["stream"], sizes),
            other("add", "block.add", one["stream"], one["stream"], sizes),
            other("linear", "head", one["stream"], one["head"], sizes),
        ],
    )


def product() -> FormulaProfile:
    return FormulaProfile(conv=lambda i, o: i * o, linear=lambda i, o: i * o, add=lambda i, o: i)


def us(s: int, a: int, b: int) -> int:
    return 3 * s + s * a + a * b + b * s + s + 5 * s


def scores(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(size, generator=generator) for name, size in SIZES.items()}


def worth(score: Mapping[str, torch.Tensor], s: int, a: int, b: int) -> float:
    """Scores of the best units."""
    tops = {n: [0.0, *v.double().sort(descending=True).values.cumsum(0).tolist()] for n, v in score.items()}
    return float(tops["stream"][s] + tops["a"][a] + tops["b"][b])


LEGAL = [(s, a, b) for s in range(1, 5) for a in range(4) for b in range(4) if (a == 0) == (b == 0)]


def test_the_groups_of_a_block_are_found_by_what_reads_and_writes_them() -> None:
    assert blocks(bottleneck()) == [("a", "b")]
    assert blocks(residual()) == [("a",)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [12, 20, 35, 50, 62])
def test_a_block_goes_whole_or_stays(seed: int, budget: int) -> None:
    score = scores(seed)
    found = choose(score, LatencyCost(bottleneck(), product()), budget, gap=0.0)
    best = max(worth(score, *k) for k in LEGAL if us(*k) <= budget)
    assert found.value == pytest.approx(best, abs=1e-9)
    assert best - 1e-9 <= found.upper_bound <= best + 1e-6
    assert (found.counts["a"] == 0) == (found.counts["b"] == 0)
    assert found.latency_us == us(*found.counts.values()) <= budget


def test_a_block_of_which_a_part_is_kept_stays() -> None:
    score = {"stream": torch.zeros(4), "a": torch.zeros(3), "b": torch.ones(3)}
    cost = LatencyCost(bottleneck(), product())
    assert choose(score, cost, 25.0, protect=["b"]).counts["a"] > 0
    one = torch.tensor([True, False, False])
    assert choose(score, cost, 25.0, must={"a": one}).counts["b"] > 0


@pytest.mark.parametrize("seed", range(4))
def test_values_of_ones_own_replace_sums_of_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {name: np.sort(rng.random(size + 1)) for name, size in SIZES.items()}
    cost = LatencyCost(bottleneck(), product())
    for budget in (15.0, 30.0, 45.0):
        found = choose(scores(seed), cost, budget, values=values, gap=0.0)
        best = max(
            sum(values[n][k] - values[n][0] for n, k in zip(SIZES, ks, strict=True))
            for ks in LEGAL
            if us(*ks) <= budget
        )
        assert found.value == pytest.approx(best, abs=1e-9)
        assert found.upper_bound >= best - 1e-9


def test_values_that_do_not_fit_are_refused() -> None:
    cost = LatencyCost(bottleneck(), product())
    with pytest.raises(UsageError, match=r"values\['a'\] must be 4 finite numbers"):
        choose(scores(0), cost, 30.0, values={"a": np.zeros(3)})


def limited(seed: int) -> tuple[LatencyCost, list[tuple[int, int, int]]]:
    """A cost under MACs and parameters, and the networks that keep these."""
    net = bottleneck()
    macs, params = resource(net, "macs"), resource(net, "params")
    most = (0.5 + 0.1 * seed) * macs.dense, (0.6 - 0.05 * seed) * params.dense
    cost = LatencyCost(net, product()).limited(Also("macs", macs, most[0]), Also("params", params, most[1]))
    names = list(SIZES)
    within = [
        k
        for k in LEGAL
        if macs.total(dict(zip(names, k, strict=True))) <= most[0]
        and params.total(dict(zip(names, k, strict=True))) <= most[1]
    ]
    return cost, within


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [20, 35, 60])
def test_limits_of_a_cost_are_kept_wherever_it_is_solved(seed: int, budget: int) -> None:
    cost, within = limited(seed)
    score = scores(seed)
    best = max(worth(score, *k) for k in within if us(*k) <= budget)
    found = choose(score, cost, budget, gap=0.0)
    (point,) = pareto(score, cost, [budget], gap=0.0)
    for one in (found, point):
        assert one.value == pytest.approx(best, abs=1e-6)
        assert one.upper_bound >= best - 1e-9
        assert tuple(one.counts.values()) in within
    same = uniform(cost, budget)
    assert tuple(same.values()) in within


def test_what_is_chosen_is_within_the_limits_after_a_calibration_too() -> None:
    from latency.predict import Calibration

    cost, within = limited(0)
    found = choose(scores(1), cost.with_calibration(Calibration(3.0, 2.0)), 100.0)
    assert tuple(found.counts.values()) in within


def test_a_limit_of_a_cost_that_nothing_keeps_is_named() -> None:
    net = bottleneck()
    macs = resource(net, "macs")
    cost = LatencyCost(net, product()).limited(Also("macs", macs, 10.0))
    least = min(macs.total(dict(zip(SIZES, k, strict=True))) for k in LEGAL)
    for solve in (lambda: choose(scores(0), cost, 50.0), lambda: uniform(cost, 50.0)):
        with pytest.raises(BudgetError, match=r"macs: at most 10 ") as error:
            solve()
        assert error.value.minimum >= least
    with pytest.raises(UsageError, match="'linear' was asked under 2 limits"):
        choose(scores(0), cost, 50.0, solver="linear")
    assert not math.isnan(select_within(scores(0), [(LatencyCost(net, product()), 50.0)]).value)


def test_protected_and_unnamed_groups_keep_every_limit_or_are_refused() -> None:
    cost, _ = limited(0)
    with pytest.raises(BudgetError):
        choose({}, cost, 1000.0)
    with pytest.raises(BudgetError):
        choose(scores(0), cost, 1000.0, protect=list(SIZES))
    assert list(
        itertools.chain(choose({}, LatencyCost(bottleneck(), product()), 1000.0).counts.values())
    ) == [4, 3, 3]
