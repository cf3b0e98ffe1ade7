"""What solve_grid refuses, and how it says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from halpiee.errors import BudgetError, ProfileError, UsageError
from halpiee.selection.cost import LatencyCost
from halpiee.selection.select import choose, select
from halpiee.selection.solve import solve_grid

from .fakes import FormulaProfile, residual

ONE = [(None, 0, [[1.0, 2.0]])]


@pytest.mark.parametrize(
    ("values", "terms", "more", "text"),
    [
        ([], [], {}, "no groups"),
        ([[]], [], {}, r"values\[0\] must be a 1-d array"),
        ([[0.0, 1.0], [0.0, np.nan]], ONE, {}, r"values\[1\] holds nan at option 1"),
        ([[0.0, np.inf]], ONE, {}, r"values\[0\] holds inf at option 1"),
        (
            [[0.0, 1.0]],
            [(None, 0, [[1.0, np.nan]])],
            {},
            r"terms\[0\] \(ins=None, outs=0\) costs nan at \[0, 1\]",
        ),
        ([[0.0, 1.0]], [(None, 0, [[1.0, 2.0, 3.0]])], {}, "3 entries along outs=0, expected 2"),
        ([[0.0, 1.0]], [(None, 0, [1.0, 2.0])], {}, r"two axes \[n_in, n_out\]"),
        ([[0.0, 1.0]], [(None, 1, [[1.0, 2.0]])], {}, "names the group 1; groups are numbered 0 … 0"),
        ([[0.0, 1.0]], [(0, None)], {}, r"terms\[0\] must be \(ins, outs, cost"),
        ([[0.0, 1.0]], [((), None, [[1.0]])], {}, "empty tuple"),
        ([[0.0, 1.0]] * 2, [((0, 1), None, np.ones((9, 1)))], {}, "pass widths="),
        (
            [[0.0, 1.0]] * 2,
            [((0, 1), None, np.ones((4, 1)))],
            {"widths": [[1, 2], [1, 2]]},
            "add up to 4, so it needs 5",
        ),
        ([[0.0, 1.0]], ONE, {"widths": [[1, 2, 3]]}, r"widths\[0\] must be 2 integers"),
        ([[0.0, 1.0]], ONE, {"widths": [[2, 1]]}, "ascending"),
        ([[0.0, 1.0]], ONE, {"start": [2]}, r"start\[0\] is 2, but group 0 has the options 0 … 1"),
        ([[0.0, 1.0]], ONE, {"start": [0, 0]}, "1 option indices"),
        ([[0.0, 1.0]], ONE, {"solver": "exact"}, "choose 'joint', 'linear' or 'cpsat'"),
        ([[0.0, 1.0]], ONE, {"gap": -1.0}, "at least 0"),
        ([[0.0, 1.0]], ONE, {"time_limit_s": 0.0}, "seconds above 0"),
    ],
)
def test_a_problem_that_does_not_fit_is_refused_by_name(values, terms, more, text):
    with pytest.raises(UsageError, match=text):
        solve_grid(values, terms, 5.0, **more)


def test_a_nan_budget_is_refused():
    with pytest.raises(UsageError, match="the budget is NaN"):
        solve_grid([[0.0, 1.0]], ONE, float("nan"))


def test_an_infinite_budget_takes_the_most_valuable_options():
    assert solve_grid([[0.0, 1.0]], ONE, float("inf")).choice.tolist() == [1]


@pytest.mark.parametrize("solver", ["joint", "cpsat", "linear"])
def test_a_budget_below_the_minimum_says_the_minimum(solver):
    text = "a budget of 0.5 was asked; the cheapest choice costs 1; ask for at least 1"
    with pytest.raises(BudgetError, match=text) as error:
        solve_grid([[0.0, 1.0]], ONE, 0.5, solver=solver)
    assert error.value.minimum == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_name_their_group(bad):
    cost = LatencyCost(residual(), FormulaProfile(conv=lambda i, o: i * o, linear=lambda i, o: i))
    scores = {"stream": torch.ones(8), "a": torch.tensor([1.0, 1.0, bad, 1.0, 1.0, 1.0, 1.0, 1.0])}
    with pytest.raises(UsageError, match=rf"scores\['a'\] holds {bad} at unit 2; every score must be finite"):
        select(scores, cost, 100.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_latencies_that_are_not_finite_name_their_layer_and_groups(bad):
    def broken(c_in, c_out):
        return np.where((c_in == 8) & (c_out == 5), bad, c_in * c_out)

    cost = LatencyCost(residual(), FormulaProfile(conv=broken, linear=lambda i, o: i))
    text = rf"a latency of block\.conv1 \(groups stream → a\) was asked at 8 → 5 channels; the profile says {bad} µs"
    with pytest.raises(ProfileError, match=text):
        select({"stream": torch.ones(8), "a": torch.ones(8)}, cost, 100.0)


def test_a_network_without_anything_to_choose_is_whole_or_over_budget():
    cost = LatencyCost(residual(), FormulaProfile(conv=lambda i, o: i * o, linear=lambda i, o: i))
    assert choose({}, cost, cost.dense_us).counts == {"stream": 8, "a": 8}
    with pytest.raises(BudgetError, match=r"the narrowest network allowed takes 160\.0 µs"):
        choose({}, cost, 159.0)


def chain(n: int = 30, k: int = 40):
    rng = np.random.default_rng(9)
    values = [np.cumsum(rng.random(k)) for _ in range(n)]
    terms = [(g - 1 if g else None, g, rng.random((k if g else 1, k)).cumsum(0).cumsum(1)) for g in range(n)]
    return values, terms


@pytest.mark.parametrize("solver", ["joint", "cpsat", "linear"])
def test_a_time_limit_gives_the_best_answer_so_far_with_its_gap(solver):
    values, terms = chain()
    found = solve_grid(values, terms, 3000.0, gap=0.0, time_limit_s=1e-6, solver=solver)
    assert found.path.endswith("+time")
    assert found.gap > 0
    assert found.value <= found.upper_bound
    assert found.own_cost <= 3000.0 * (1 + 1e-9)
    if solver != "linear":
        assert found.meets_budget
