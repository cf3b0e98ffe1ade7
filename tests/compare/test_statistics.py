"""Means, intervals and pairs, against numbers worked out by hand and another library's t."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.special

from halpiee.compare.results import Row, difference, standings
from halpiee.sheet import Mean


def row(contestant: str, seed: int, accuracy: float, budget: float = 0.5, **more: Any) -> Row:
    values: dict[str, Any] = {
        "key": f"{contestant}-{budget}-{seed}",
        "latency_us": 50.0,
        "dense_us": 100.0,
        **more,
    }
    return Row(contestant=contestant, budget=budget, seed=seed, accuracy=accuracy, **values)


def test_an_interval_is_t_times_the_standard_error() -> None:
    # mean 3, deviations −2 0 2: s² = 8/2 = 4, s/√3 = 1.1547, t(2) = 4.302653
    found = Mean.of([1.0, 3.0, 5.0])
    assert (found.mean, found.half) == pytest.approx((3.0, 4.302653 * 2 / math.sqrt(3)))


@pytest.mark.parametrize("n", [2, 3, 7, 31])
def test_quantiles_are_those_of_scipy(n: int) -> None:
    values = [float(i % 5) for i in range(n)]
    half = Mean.of(values).half
    mean = sum(values) / n
    s = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    assert half == pytest.approx(scipy.special.stdtrit(n - 1, 0.975) * s / math.sqrt(n), rel=1e-6)


def test_a_single_value_has_no_interval() -> None:
    assert Mean.of([0.7]).mean == 0.7
    assert math.isnan(Mean.of([0.7]).half)


def test_a_difference_is_of_pairs_with_the_same_seed_and_budget() -> None:
    rows = [
        row("early", 0, 0.70),
        row("early", 1, 0.74),
        row("early", 2, 0.99),  # no partner
        row("early", 0, 0.10, budget=0.3),
        row("uniform", 0, 0.69, latency_us=40.0),
        row("uniform", 1, 0.71),
        row("uniform", 3, 0.20),
    ]
    found = difference(rows, "early", "uniform", 0.5)
    assert found is not None
    # gains 0.01 and 0.03: mean 0.02, s = 0.01·√2, t(1) = tan(0.475 π) = 12.706205
    assert (found.accuracy, found.half) == pytest.approx(
        (0.02, 12.706205 * 0.01 * math.sqrt(2) / math.sqrt(2))
    )
    assert (found.wins, found.pairs) == (2, 2)
    assert found.share == pytest.approx((0.5 / 0.4 + 1.0) / 2)
    assert difference(rows, "early", "uniform", 0.3) is None


def test_standings_go_from_large_budgets_to_small_and_from_best_to_worst() -> None:
    rows = [
        row("uniform", 0, 0.5, budget=0.3),
        row("uniform", 0, 0.6),
        row("early", 0, 0.7),
        row("dense", 0, 0.8, budget=1.0, latency_us=100.0),
    ]
    assert [(s.contestant, s.budget, s.accuracy) for s in standings(rows)] == [
        ("dense", 1.0, 0.8),
        ("early", 0.5, 0.7),
        ("uniform", 0.5, 0.6),
        ("uniform", 0.3, 0.5),
    ]


def test_of_a_cell_that_stands_twice_the_last_row_counts_and_training_counts_what_it_started_from() -> None:
    rows = [
        row("repaired", 0, 0.1),
        row("repaired", 0, 0.7, seconds=5.0, train_macs=2.0, start_seconds=30.0, start_macs=7.0),
        row("repaired", 1, 0.5, seconds=7.0, train_macs=4.0, start_seconds=32.0, start_macs=7.0),
    ]
    (found,) = standings(rows)
    assert (found.accuracy, found.seconds, found.start_seconds, found.train_macs) == pytest.approx(
        (0.6, 6.0, 31.0, 10.0)
    )
    assert found.seeds == (0, 1)
