"""The joint solver against enumeration, its laws, and what solve_grid refuses and how it says so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halpiee.errors import BudgetError, ProfileError, UsageError
from halpiee.selection.choose import choose, select
from halpiee.selection.cost import LatencyCost
from halpiee.selection.grid import FloatArray, GridSolution, Solver
from halpiee.selection.solve import solve_grid

from .fakes import FormulaProfile, residual
from .problems import SHAPES, Problem, random_problem


def solve(problem: Problem, **more: Any) -> GridSolution:
    return solve_grid(problem.values, problem.terms, problem.budget, widths=problem.widths, **more)


def check(problem: Problem, **more: Any) -> GridSolution:
    best, _ = problem.enumerate()
    found = solve(problem, **more)
    assert found.cost == pytest.approx(problem.cost(found.choice), rel=1e-12, abs=1e-12)
    assert found.value == pytest.approx(problem.value(found.choice), rel=1e-12, abs=1e-12)
    assert found.cost <= problem.budget + 1e-9 * abs(problem.budget)
    assert found.meets_budget
    assert found.upper_bound >= best - 1e-9 * max(1, abs(best))
    assert found.value <= best + 1e-9
    if found.gap <= 1e-9:
        assert found.value == pytest.approx(best, abs=1e-8)
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_gap_zero_is_the_optimum_of_random_problems(shape: str) -> None:
    rng = np.random.default_rng([1, SHAPES.index(shape)])
    for _ in range(150):
        problem = random_problem(rng, shape)
        best, _ = problem.enumerate()
        found = solve(problem, gap=0.0)
        assert found.value == pytest.approx(best, abs=1e-8)
        assert found.gap <= 1e-9
        assert found.upper_bound >= best - 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_never_over_budget_and_never_a_bound_below_the_optimum(shape: str) -> None:
    rng = np.random.default_rng([2, SHAPES.index(shape)])
    for _ in range(90):
        check(random_problem(rng, shape), gap=float(rng.choice([1e-3, 0.05, 0.3])))


@pytest.mark.slow  # 5,000 problems, about 40 s
@pytest.mark.parametrize("shape", SHAPES)
def test_five_thousand_small_problems_equal_enumeration(shape: str) -> None:
    rng = np.random.default_rng([3, SHAPES.index(shape)])
    for _ in range(850):
        assert check(random_problem(rng, shape), gap=0.0).gap <= 1e-9


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES), gap=st.sampled_from([0.0, 1e-3, 0.1]))
def test_laws_hold_for_any_seed(seed: int, shape: str, gap: float) -> None:
    check(random_problem(np.random.default_rng(seed), shape), gap=gap)


@pytest.mark.parametrize("shape", SHAPES)
def test_budget_below_the_cheapest_choice_names_its_cost(shape: str) -> None:
    rng = np.random.default_rng([4, SHAPES.index(shape)])
    for _ in range(40):
        problem = random_problem(rng, shape)
        least = problem.enumerate()[1]
        problem.budget = least - 0.01 * abs(least) - 1e-6
        with pytest.raises(BudgetError) as error:
            solve(problem)
        assert error.value.minimum == pytest.approx(least, rel=1e-12, abs=1e-12)
        problem.budget = error.value.minimum
        assert solve(problem).cost == pytest.approx(least, rel=1e-9, abs=1e-12)


def test_no_group_has_a_wider_option_that_still_fits() -> None:
    rng = np.random.default_rng(5)
    for i in range(200):
        problem = random_problem(rng, SHAPES[i % len(SHAPES)])
        problem.values = [np.cumsum(rng.random(len(v)) * rng.integers(0, 2)) for v in problem.values]
        found = solve(problem, gap=0.05)
        for g, value in enumerate(problem.values):
            for wider in range(int(found.choice[g]) + 1, len(value)):
                other = found.choice.copy()
                other[g] = wider
                assert problem.cost(other) > problem.budget * (1 - 1e-12)


def test_both_sides_of_a_layer_are_priced() -> None:
    # Two layers in a row, cost c_in · c_out with 2 → g0 → 2: narrowing g0 from 2 to 1 saves in both layers.
    values = [[1.0, 2.0]]
    terms = [(None, 0, [[2.0, 4.0]]), (0, None, [[2.0], [4.0]])]
    assert solve_grid(values, terms, 8.0).choice.tolist() == [1]
    found = solve_grid(values, terms, 7.9)
    assert (found.choice.tolist(), found.cost, found.value) == ([0], 4.0, 1.0)
    assert found.slack == pytest.approx(3.9)


def test_a_term_of_a_group_with_itself_costs_its_diagonal() -> None:
    table = [[1.0, 100.0], [100.0, 3.0]]
    assert solve_grid([[0.0, 1.0]], [(0, 0, table)], 3.0).cost == 3.0


def test_repeated_pairs_add_up_in_either_direction() -> None:
    a, b = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[10.0, 20.0], [30.0, 40.0]])
    found = solve_grid([[0.0, 1.0], [0.0, 1.0]], [(0, 1, a), (0, 1, a), (1, 0, b)], 1e9)
    assert found.cost == 5.0 + 5.0 + 40.0
    assert found.path == "whole"


def test_a_tuple_side_is_indexed_by_the_sum_of_widths() -> None:
    # Widths 2 or 4 and 1 or 3: the sums 3, 5, 7 cost 30, 50, 70.
    cost = 10.0 * np.arange(8)[:, None]
    found = solve_grid([[0, 5], [0, 4]], [((0, 1), None, cost)], 50, widths=[[2, 4], [1, 3]], gap=0.0)
    assert (found.choice.tolist(), found.cost) == ([1, 0], 50.0)


def test_a_group_named_twice_in_a_tuple_counts_twice() -> None:
    cost = np.arange(9.0)[:, None]
    found = solve_grid([[0, 1], [0, 1]], [((0, 0, 1), None, cost)], 100, widths=[[1, 3], [1, 2]])
    assert found.cost == 8.0


def test_an_option_that_is_narrower_but_slower_is_not_taken() -> None:
    # 63 channels cost more than 64, as on a CPU whose kernels work in blocks of 16.
    found = solve_grid([[48.0, 63.0, 64.0]], [(None, 0, [[228.0, 422.0, 304.0]])], 310.0)
    assert found.choice.tolist() == [2]


def test_equal_values_everywhere_still_fill_the_budget() -> None:
    found = solve_grid([[0.0, 0.0, 0.0]] * 2, [(None, 0, [[1, 2, 3]]), (None, 1, [[1, 2, 3]])], 5.0)
    assert found.cost == 5.0
    assert found.gap == 0.0


def test_the_gap_asked_is_proved_where_the_dual_leaves_one() -> None:
    # Subset sum: the dual bound is 8.33, the optimum 8; only exact steps close it.
    values = [[0, 6.0], [0, 5.0], [0, 3.0]]
    terms = [(None, g, [[0.0, c]]) for g, c in enumerate([6.0, 5.0, 4.0])]
    found = solve_grid(values, terms, 9.5, gap=0.0)
    assert found.value == 8.0
    assert found.upper_bound == pytest.approx(8.0)
    assert found.path == "frontier"


def test_a_budget_that_is_met_exactly_counts_as_met() -> None:
    third = 1 / 3
    found = solve_grid([[0, 1]] * 3, [(None, g, [[0, third]]) for g in range(3)], 1.0)
    assert found.value == 3


def test_negative_costs_and_budgets_are_fine() -> None:
    found = solve_grid([[0.0, 1.0]], [(None, 0, [[-5.0, -2.0]])], -3.0)
    assert found.choice.tolist() == [0]
    assert found.meets_budget


def test_start_is_a_first_answer() -> None:
    # A budget at the cost of the start itself: the answer is at least as good.
    rng = np.random.default_rng(8)
    for _ in range(30):
        problem = random_problem(rng, "chain")
        start = [int(rng.integers(len(v))) for v in problem.values]
        problem.budget = problem.cost(start)
        assert solve(problem, start=start, gap=1.0).value >= problem.value(start) - 1e-12


def test_the_time_limit_gives_an_answer_with_its_gap() -> None:
    rng = np.random.default_rng(9)
    values = [np.cumsum(rng.random(40)) for _ in range(30)]
    terms = [
        (g - 1 if g else None, g, rng.random((40 if g else 1, 40)).cumsum(0).cumsum(1)) for g in range(30)
    ]
    found = solve_grid(values, terms, 3000.0, gap=0.0, time_limit_s=1e-6)
    assert found.path.endswith("+time")
    assert found.meets_budget
    assert found.gap > 0
    assert solve_grid(values, terms, 3000.0, gap=1e-3).value <= found.upper_bound


def test_a_coupling_graph_too_wide_for_elimination_still_gets_a_valid_bound() -> None:
    # A clique of 9 groups with 4 options each: 262,144 choices, enumerated with broadcasting.
    rng = np.random.default_rng(10)
    n = 9
    values = [np.cumsum(rng.random(4)) for _ in range(n)]
    terms = [(i, j, rng.random((4, 4)).cumsum(0).cumsum(1)) for i in range(n) for j in range(i)]
    axes = [np.arange(4).reshape([-1 if a == g else 1 for a in range(n)]) for g in range(n)]
    cost = np.asarray(sum(t[axes[i], axes[j]] for i, j, t in terms))
    value = np.asarray(sum(v[axes[g]] for g, v in enumerate(values)))
    budget = float(np.quantile(cost, 0.3))
    best = float(value[cost <= budget].max())
    from halpiee.selection.grid import Search, Term, normalise
    from halpiee.selection.lagrangian import solve_dual

    grid = normalise(values, [Term(*t) for t in terms], None)
    narrow = solve_dual(grid, budget, Search(), limit=300)
    assert narrow.path == "mini-bucket"
    assert narrow.cost <= budget
    assert narrow.value <= best <= narrow.upper_bound
    wide = solve_dual(grid, budget, Search(gap=0.0))
    assert wide.path == "frontier"
    assert wide.value == pytest.approx(best)


@pytest.mark.parametrize("shape", SHAPES)
def test_mini_buckets_of_any_shape_give_valid_bounds(shape: str) -> None:
    from halpiee.selection.grid import Search, Term, normalise
    from halpiee.selection.lagrangian import solve_dual

    rng = np.random.default_rng([12, SHAPES.index(shape)])
    split = 0
    for _ in range(80):
        problem = random_problem(rng, shape)
        best, _ = problem.enumerate()
        grid = normalise(problem.values, [Term(*t) for t in problem.terms], problem.widths)
        try:
            found = solve_dual(grid, problem.budget, Search(), limit=6)
        except BudgetError:
            continue  # the relaxed search for the cheapest choice is not exact either
        split += found.path == "mini-bucket"
        assert found.cost <= problem.budget + 1e-9 * abs(problem.budget)
        assert found.value <= best + 1e-9
        assert found.upper_bound >= best - 1e-9
    assert split > 5


@pytest.mark.parametrize("shape", SHAPES)
def test_tables_joined_a_slice_at_a_time_give_the_same_optimum(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halpiee.selection.elimination.SLICE", 5)
    rng = np.random.default_rng([13, SHAPES.index(shape)])
    for _ in range(60):
        problem = random_problem(rng, shape)
        best, _ = problem.enumerate()
        assert solve(problem, gap=0.0).value == pytest.approx(best, abs=1e-8)


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
def test_a_problem_that_does_not_fit_is_refused_by_name(
    values: list[Any], terms: list[Any], more: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        solve_grid(values, terms, 5.0, **more)


def test_a_nan_budget_is_refused() -> None:
    with pytest.raises(UsageError, match="the budget is NaN"):
        solve_grid([[0.0, 1.0]], ONE, float("nan"))


def test_an_infinite_budget_takes_the_most_valuable_options() -> None:
    assert solve_grid([[0.0, 1.0]], ONE, float("inf")).choice.tolist() == [1]


@pytest.mark.parametrize("solver", ["joint", "cpsat", "linear"])
def test_a_budget_below_the_minimum_says_the_minimum(solver: Solver) -> None:
    text = "a budget of 0.5 was asked; the cheapest choice costs 1; ask for at least 1"
    with pytest.raises(BudgetError, match=text) as error:
        solve_grid([[0.0, 1.0]], ONE, 0.5, solver=solver)
    assert error.value.minimum == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_name_their_group(bad: float) -> None:
    cost = LatencyCost(residual(), FormulaProfile(conv=lambda i, o: i * o, linear=lambda i, o: i))
    scores = {"stream": torch.ones(8), "a": torch.tensor([1.0, 1.0, bad, 1.0, 1.0, 1.0, 1.0, 1.0])}
    with pytest.raises(UsageError, match=rf"scores\['a'\] holds {bad} at unit 2; every score must be finite"):
        select(scores, cost, 100.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_latencies_that_are_not_finite_name_their_layer_and_groups(bad: float) -> None:
    def broken(c_in: FloatArray, c_out: FloatArray) -> FloatArray:
        return np.where((c_in == 8) & (c_out == 5), bad, c_in * c_out)

    cost = LatencyCost(residual(), FormulaProfile(conv=broken, linear=lambda i, o: i))
    text = rf"a latency of block\.conv1 \(groups stream → a\) was asked at 8 → 5 channels; the profile says {bad} µs"
    with pytest.raises(ProfileError, match=text):
        select({"stream": torch.ones(8), "a": torch.ones(8)}, cost, 100.0)


def test_a_network_without_anything_to_choose_is_whole_or_over_budget() -> None:
    cost = LatencyCost(residual(), FormulaProfile(conv=lambda i, o: i * o, linear=lambda i, o: i))
    assert choose({}, cost, cost.dense_us).counts == {"stream": 8, "a": 8}
    with pytest.raises(BudgetError, match=r"the narrowest network allowed takes 160\.0 µs"):
        choose({}, cost, 159.0)


def chain(n: int = 30, k: int = 40) -> Any:
    rng = np.random.default_rng(9)
    values = [np.cumsum(rng.random(k)) for _ in range(n)]
    terms = [(g - 1 if g else None, g, rng.random((k if g else 1, k)).cumsum(0).cumsum(1)) for g in range(n)]
    return values, terms


@pytest.mark.parametrize("solver", ["joint", "cpsat", "linear"])
def test_a_time_limit_gives_the_best_answer_so_far_with_its_gap(solver: Solver) -> None:
    values, terms = chain()
    found = solve_grid(values, terms, 3000.0, gap=0.0, time_limit_s=1e-6, solver=solver)
    assert found.path.endswith("+time")
    assert found.gap > 0
    assert found.value <= found.upper_bound
    assert found.own_cost <= 3000.0 * (1 + 1e-9)
    if solver != "linear":
        assert found.meets_budget
