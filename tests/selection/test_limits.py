"""Several limits and the curve of all budgets against enumeration, and resources against formulas by hand."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from halpiee.errors import BudgetError, ProfileError, UsageError
from halpiee.selection.choose import choose
from halpiee.selection.cost import Also, LatencyCost
from halpiee.selection.grid import Grid, Search, Term, normalise
from halpiee.selection.limits import energy, pareto, peak_bytes, resource, solve_limits
from latency.profiles import Profile

from .fakes import FormulaProfile, residual, select_within
from .problems import SHAPES, Problem, random_problem


def as_grid(problem: Problem) -> Grid:
    return normalise(problem.values, [Term(*t) for t in problem.terms], problem.widths)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_limits_are_kept_and_solved_exactly(shape: str) -> None:
    rng = np.random.default_rng([41, SHAPES.index(shape)])
    for _ in range(6):
        first = random_problem(rng, shape)
        other = [(i, o, rng.random(t.shape).cumsum(0).cumsum(1)) for i, o, t in first.terms]
        second = Problem(first.values, other, first.widths)
        choices = list(first.choices())
        somewhere = choices[int(rng.integers(len(choices)))]
        first.budget = first.cost(somewhere) + 0.1
        second.budget = second.cost(somewhere) + 0.1
        best = max(
            first.value(c)
            for c in choices
            if first.cost(c) <= first.budget and second.cost(c) <= second.budget
        )
        limits = [(as_grid(first), first.budget), (as_grid(second), second.budget)]
        choice, upper_bound, _ = solve_limits(limits, Search(gap=0.0))
        assert first.cost(choice) <= first.budget + 1e-9
        assert second.cost(choice) <= second.budget + 1e-9
        assert first.value(choice) == pytest.approx(best, abs=1e-7)
        assert upper_bound >= best - 1e-9


def test_limits_that_no_choice_keeps_together_are_refused() -> None:
    # Cheap on one device is dear on the other.
    values = [np.array([0.0, 1.0])]
    one = normalise(values, [Term(None, 0, np.array([[1.0, 5.0]]))], None)
    other = normalise(values, [Term(None, 0, np.array([[5.0, 1.0]]))], None)
    with pytest.raises(BudgetError, match="2 limits were asked at once; each can be kept alone") as error:
        solve_limits([(one, 2.0), (other, 2.0)], Search())
    assert math.isnan(error.value.minimum)
    with pytest.raises(BudgetError) as error:
        solve_limits([(one, 0.5), (other, 2.0)], Search())
    assert error.value.minimum == 1.0


def test_latency_on_two_devices_macs_and_memory_at_once() -> None:
    net = residual()
    fast = LatencyCost(net, FormulaProfile(conv=lambda i, o: i * o, linear=lambda i, o: i * o))
    slow = LatencyCost(net, FormulaProfile(conv=lambda i, o: 50 + o, linear=lambda i, o: i))
    macs = resource(net, "macs")
    memory = resource(net, "peak_bytes", above=3_000)
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(8, generator=generator) for name in ("stream", "a")}
    budgets = [0.6 * fast.dense_us, 0.99 * slow.dense_us, 0.7 * macs.dense, 0.0]
    found = select_within(scores, list(zip((fast, slow, macs, memory), budgets, strict=True)), gap=0.0)
    assert all(u <= b + 1e-9 for u, b in zip(found.used, budgets, strict=True))
    tops = {n: [0.0, *v.double().sort(descending=True).values.cumsum(0).tolist()] for n, v in scores.items()}
    best = max(
        tops["stream"][s] + tops["a"][a]
        for s, a in itertools.product(range(1, 9), range(9))
        if all(
            cost.total({"stream": s, "a": a}) <= b
            for cost, b in zip((fast, slow, macs, memory), budgets, strict=True)
        )
    )
    assert found.value == pytest.approx(best, abs=1e-6)
    assert found.gap <= 1e-6
    assert found.counts == {n: int(k.sum()) for n, k in found.keep.items()}


def test_resources_by_hand() -> None:
    # 3×3 convs at 8×8: 3→s, s→a, a→s; a linear layer of 8·8 rows, s→10.
    net = residual()
    for s, a in ((8, 8), (5, 2)):
        counts = {"stream": s, "a": a}
        assert resource(net, "macs").total(counts) == 64 * (9 * (3 * s + 2 * s * a) + 10 * s)
        assert resource(net, "params").total(counts) == 9 * (3 * s + 2 * s * a) + 10 * s
    # float32: input + output of stem, conv1, conv2, add, linear at 64 positions.
    bytes_of = [4 * 64 * (i + o) for i, o in ((3, 8), (8, 8), (8, 8), (8, 8), (8, 10))]
    assert resource(net, "peak_bytes", above=3000.0).total({}) == sum(max(0, b - 3000) for b in bytes_of)


def test_limits_of_different_networks_are_refused() -> None:
    scores = {name: torch.ones(8) for name in ("stream", "a")}
    with pytest.raises(
        UsageError,
        match="limit 1 has 4 units of 'a', the budget has 8",
    ):
        select_within(scores, [(resource(residual(sizes), "macs"), 1e9) for sizes in ({}, {"a": 4})])


def test_a_limit_too_small_by_itself_is_named_with_its_minimum() -> None:
    net = residual()
    scores = {name: torch.ones(8) for name in ("stream", "a")}
    limits = [(resource(net, "macs"), 1e9), (resource(net, "params"), 20.0)]
    text = (
        r"params: at most 20 was asked; the smallest network allowed takes 37 parameters; ask for at least 37"
    )
    with pytest.raises(BudgetError, match=text) as error:
        select_within(scores, limits, names=["macs", "params"])
    assert error.value.minimum == 9 * 3 + 10


def test_the_largest_op_holds_its_input_and_output() -> None:
    # float32 at 64 positions: conv1 and conv2 hold 8 + 8 channels, the head 8 + 10.
    assert peak_bytes(residual()) == 4 * 64 * 18
    assert peak_bytes(residual(), {"stream": 3, "a": 8}) == 4 * 64 * 13


def test_a_memory_limit_far_exceeded_is_reached_without_overflow() -> None:
    net = residual({"stream": 64, "a": 64})
    memory = resource(net, "peak_bytes", above=4.0 * 64 * 20)
    scores = {"stream": torch.ones(64), "a": torch.ones(64)}
    found = select_within(scores, [(resource(net, "macs"), 1e12), (memory, 0.0)], gap=0.0)
    # Stream + 10 of the head, stream + a, 2·stream of the add: at most 20 channels each.
    assert found.counts["stream"] + found.counts["a"] == 20
    assert found.counts["stream"] <= 10


def test_limits_at_two_batches_are_kept_together() -> None:
    one, two = (
        LatencyCost(residual(), FormulaProfile(conv=f, linear=lambda i, o: i))
        for f in (lambda i, o: i * o, lambda i, o: 20 + 3 * o)
    )
    scores = {name: torch.ones(8) for name in ("stream", "a")}
    found = select_within(scores, [(one, 90.0), (two, 140.0)], gap=0.0)
    assert found.latency_us == one.total_us(found.counts) <= 90.0
    assert found.used[1] == two.total_us(found.counts) <= 140.0
    assert found.slack_us == pytest.approx(90.0 - found.latency_us)


@pytest.fixture
def cost() -> LatencyCost:
    """14·s + 2·s·a µs, as in test_choose."""
    return LatencyCost(
        residual(),
        FormulaProfile(conv=lambda i, o: i * o, linear=lambda i, o: i * o, add=lambda i, o: i),
    )


def test_every_point_of_the_curve_is_the_optimum_of_its_budget(cost: LatencyCost) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(8, generator=generator) for name in ("stream", "a")}
    tops = {
        n: torch.cat([torch.zeros(1), v.double().sort(descending=True).values.cumsum(0)])
        for n, v in scores.items()
    }
    budgets = [cost.dense_us * share for share in (0.9, 0.3, 0.31, 0.5, 0.1, 0.7, 1.0)]
    points = pareto(scores, cost, budgets, gap=0.0)
    assert [p.budget_us for p in points] == budgets
    for point in points:
        best = max(
            float(tops["stream"][s] + tops["a"][a])
            for s, a in itertools.product(range(1, 9), range(9))
            if 14 * s + 2 * s * a <= point.budget_us
        )
        assert point.value == pytest.approx(best)
        assert point.gap <= 1e-9
        s, a = point.counts["stream"], point.counts["a"]
        assert point.latency_us == 14 * s + 2 * s * a <= point.budget_us


def test_budgets_below_the_narrowest_network_are_left_out(cost: LatencyCost) -> None:
    scores = {name: torch.ones(8) for name in ("stream", "a")}
    assert [p.budget_us for p in pareto(scores, cost, [5.0, 13.9, 14.0, 100.0])] == [14.0, 100.0]


def test_protected_groups_stay_whole_along_the_curve(cost: LatencyCost) -> None:
    scores = {name: torch.ones(8) for name in ("stream", "a")}
    points = pareto(scores, cost, [120.0, 200.0], protect={"stream"})
    assert [p.counts for p in points] == [{"stream": 8, "a": 0}, {"stream": 8, "a": 5}]


@pytest.mark.parametrize("seed", range(6))
def test_energy_is_priced_by_the_same_tables_and_solved_like_a_latency(seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = residual({"stream": 4, "a": 4})
    cells: list[dict[str, Any]] = []
    for timed in net.ops:
        for i, o in itertools.product(range(1, timed.op.c_in + 1), range(1, timed.op.c_out + 1)):
            if timed.op.diagonal and i != o:
                continue
            times = {"us": float(rng.uniform(1, 9)), "energy_mj": float(rng.uniform(1, 9))}
            cells.append({**timed.op.with_channels(i, o).key(), **times, "steps": [1, 1]})
    profile = Profile({}, cells)
    cost, joules = LatencyCost(net, profile), energy(net, profile)
    assert joules.unit == "mJ"
    by_key = {json.dumps(key_of(c)): c["energy_mj"] for c in cells}

    def spent(s: int, a: int) -> float:
        counts = {"stream": s, "a": a}
        sides = ((t, net.sides(t, counts)) for t in net.ops)
        found = [
            float(by_key[json.dumps(key_of(t.op.with_channels(*side).key()))])
            for t, side in sides
            if min(side)
        ]
        return sum(found)

    for s, a in itertools.product(range(1, 5), range(5)):
        assert joules.total({"stream": s, "a": a}) == pytest.approx(spent(s, a))
    scores = {"stream": torch.rand(4), "a": torch.rand(4)}
    best_of = {
        n: [0.0, *v.double().sort(descending=True).values.cumsum(0).tolist()] for n, v in scores.items()
    }
    widths = [(s, a) for s in cost.candidates["stream"] for a in cost.candidates["a"]]
    costs = sorted(spent(*w) for w in widths)
    limit, budget = costs[len(costs) // 2], 0.9 * cost.dense_us
    within = [w for w in widths if spent(*w) <= limit and cost.total({"stream": w[0], "a": w[1]}) <= budget]
    if within:
        found = choose(scores, cost.limited(Also("energy", joules, limit)), budget, gap=0.0)
        best = max(best_of["stream"][s] + best_of["a"][a] for s, a in within)
        assert found.value == pytest.approx(best, abs=1e-6)
    widths = [(s, a) for s in joules.candidates["stream"] for a in joules.candidates["a"]]
    alone = choose(scores, joules, limit, gap=0.0)
    assert alone.value == pytest.approx(
        max(best_of["stream"][s] + best_of["a"][a] for s, a in widths if spent(s, a) <= limit), abs=1e-9
    )


def key_of(cell: Mapping[str, Any]) -> list[Any]:
    return [cell["op"], cell["c_in"], cell["c_out"], cell.get("groups", 1), list(cell.get("kernel", ()))]


def test_a_profile_without_energies_is_refused() -> None:
    with pytest.raises(ProfileError, match="none of the 0 cells of the profile holds energy_mj"):
        energy(residual(), Profile({}, []))
