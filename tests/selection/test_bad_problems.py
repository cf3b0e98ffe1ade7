"""What solve_grid refuses, and how it says so."""

from __future__ import annotations

import numpy as np
import pytest

from halpiee.errors import UsageError
from halpiee.selection.problem import solve_grid

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
