"""The widest uniform network against every ratio and every single step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import halpiee
from halpiee.errors import BudgetError
from halpiee.methods.channels import uniform_counts
from halpiee.selection.choose import uniform, widest
from halpiee.selection.cost import LatencyCost
from halpiee.structure.groups import parameters

from .fakes import FormulaProfile, residual


def latency(s: int, a: int) -> int:
    return 3 * s + s * a + a * s + s + 10 * s


@pytest.fixture
def cost() -> LatencyCost:
    return LatencyCost(
        residual(),
        FormulaProfile(step=4, conv=lambda i, o: i * o, linear=lambda i, o: i * o, add=lambda i, o: i),
    )


def nearest(options: Sequence[int], width: float) -> int:
    """The option nearest to a width, the wider of two."""
    return min(reversed(options), key=lambda k: abs(k - width))


def ratios() -> Any:
    """Every share a network of up to 12 units can tell apart, and some between them."""
    return [n / 2400 for n in range(2401)]


def random_network(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    sizes = {name: int(rng.integers(2, 13)) for name in "abc"}
    options = {
        name: sorted({int(k) for k in rng.integers(1, size + 1, 4)} | {size}) for name, size in sizes.items()
    }
    table = {key: rng.uniform(0, 8, size=13) for key in ("ab", "bc", "c")}

    def measure(counts: dict[str, int]) -> float:
        a, b, c = (counts[name] for name in "abc")
        bumps = table["ab"][a] + table["bc"][b] + table["c"][c] if seed % 2 else 0.0
        return float(2 * a + a * b + b * c + 3 * c + bumps)

    return sizes, options, measure


@pytest.mark.parametrize("seed", range(60))
def test_no_larger_ratio_fits_and_no_single_further_step(seed: int) -> None:
    sizes, options, measure = random_network(seed)
    every = [measure(dict(zip("abc", k, strict=True))) for k in itertools.product(*options.values())]
    at = [{n: nearest(options[n], r * sizes[n]) for n in "abc"} for r in ratios()]
    costs = [measure(widths) for widths in at]
    for limit in np.linspace(min(every), max(every), 7):
        counts = widest(sizes, options, measure, limit, rising=seed % 2 == 0)
        fitting = [widths for widths, cost in zip(at, costs, strict=True) if cost <= limit]
        if not fitting:
            assert counts is None
            continue
        assert counts is not None
        assert measure(counts) <= limit
        # Steps only add to the network of the largest ratio that fits.
        assert all(counts[n] >= fitting[-1][n] for n in "abc")
        for name, allowed in options.items():
            for wider in [k for k in allowed if k > counts[name]][:1]:
                assert measure({**counts, name: wider}) > limit


def test_steps_go_to_the_group_with_the_largest_remainder() -> None:
    # One µs a unit. At 3/4 the network keeps 3 + 6 + 9 of 4, 8 and 12 units, at 5/8 a had stepped from 2 to 3.
    sizes = {"a": 4, "b": 8, "c": 12}
    options = {name: range(1, size + 1) for name, size in sizes.items()}

    def found(limit: float) -> dict[str, int] | None:
        return widest(sizes, options, lambda counts: sum(counts.values()), limit)

    assert found(18) == {"a": 3, "b": 6, "c": 9}
    # c steps to 10 at 9.5/12 = 0.79, b to 7 at 6.5/8 = 0.81: 19 and 20 units are uniform networks.
    assert found(19) == {"a": 3, "b": 6, "c": 10}
    assert found(20) == {"a": 3, "b": 7, "c": 10}
    # a and c step together at 10.5/12 = 3.5/4 = 0.875, two units more; of one more unit a is the first of two equals.
    assert found(22) == {"a": 4, "b": 7, "c": 11}
    assert found(21) == {"a": 4, "b": 7, "c": 10}


def test_coarse_widths_do_not_leave_the_budget_unused() -> None:
    # Half widths are all that some groups offer: rounding all of them down at once would take 58 % of 0.9.
    sizes = {f"g{i}": 16 for i in range(10)}
    options = dict.fromkeys(sizes, (8, 16))
    counts = widest(sizes, options, lambda counts: sum(counts.values()), 0.9 * 160)
    assert counts is not None
    assert sum(counts.values()) == 144


def test_uniform_keeps_the_largest_share_that_fits(cost: LatencyCost) -> None:
    for share in (0.2, 0.5, 0.8):
        budget = share * cost.dense_us
        k = max(k for k in range(1, 9) if latency(k, k) <= budget)
        s, a = k, k
        while s < 8 and latency(s + 1, a) <= budget:
            s += 1
        while a < 8 and latency(s, a + 1) <= budget:
            a += 1
        assert uniform(cost, budget) == {"stream": s, "a": a}


def test_uniform_leaves_protected_groups_whole(cost: LatencyCost) -> None:
    assert uniform(cost, latency(8, 3) + 1, protect={"stream"}) == {"stream": 8, "a": 3}


def test_uniform_refuses_a_budget_below_its_narrowest_network(cost: LatencyCost) -> None:
    with pytest.raises(BudgetError) as error:
        uniform(cost, 10.0)
    assert error.value.minimum == latency(1, 1)


@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.9, 1.0])
def test_a_share_of_the_parameters_is_used_to_within_a_unit_of_every_group(share: float) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 5),
    )  # fmt: skip
    structure = halpiee.trace(net, (torch.zeros(1, 3, 8, 8),))
    first, second = (next(name for name, _ in layer.out_groups) for layer in structure.layers[:2])

    def size(a: int, b: Any) -> Any:
        return 28 * a + (9 * a + 1) * b + (b + 1) * 5

    assert size(8, 12) == parameters(structure) == sum(p.numel() for p in net.parameters())
    counts = uniform_counts(structure, params=share)
    a, b = counts[first], counts[second]
    limit = share * size(8, 12)
    assert size(a, b) <= limit
    assert a == 8 or size(a + 1, b) > limit
    assert b == 12 or size(a, b + 1) > limit
    both = [(nearest(range(1, 9), r * 8), nearest(range(1, 13), r * 12)) for r in ratios()]
    widest_a, widest_b = max(pair for pair in both if size(*pair) <= limit)
    assert (a, b) >= (widest_a, widest_b)
    assert a >= widest_a
    assert b >= widest_b
