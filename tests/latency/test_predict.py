"""Lines through measured networks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency.errors import UsageError
from latency.predict import Calibration, fit

times = st.floats(1.0, 1e5)


def test_points_on_a_line_give_the_line() -> None:
    found = fit([(100.0, 125.0), (200.0, 235.0), (400.0, 455.0)])
    assert (found.a_us, found.b) == pytest.approx((15.0, 1.1))
    assert found.worst < 1e-9


@given(st.lists(st.tuples(times, times), min_size=1, max_size=6), st.tuples(times, times))
def test_a_line_with_an_anchor_goes_through_it(
    points: list[tuple[float, float]], anchor: tuple[float, float]
) -> None:
    assert fit(points, anchor=anchor).apply(anchor[0]) == pytest.approx(anchor[1], rel=1e-9)


def test_the_anchor_alone_gives_a_proportional_line() -> None:
    found = fit([], anchor=(100.0, 120.0))
    assert (found.a_us, found.b) == pytest.approx((0.0, 1.2))


def test_a_single_point_gives_a_proportional_line() -> None:
    found = fit([(100.0, 120.0)])
    assert (found.a_us, found.b) == pytest.approx((0.0, 1.2))


def test_with_an_anchor_points_decide_the_slope() -> None:
    found = fit([(50.0, 70.0)], anchor=(100.0, 120.0))
    assert (found.a_us, found.b) == pytest.approx((20.0, 1.0))


SHRUNK = [(100.0, 110.0), (200.0, 210.0), (300.0, 310.0)]
"""10 + Σ, on which a dense network of (500, 600) does not lie."""


def test_enough_networks_have_their_own_line_which_bends_to_the_dense_one() -> None:
    found = fit(SHRUNK, anchor=(500.0, 600.0))
    assert (found.a_us, found.b) == pytest.approx((10.0, 1.0))
    # half way from 300 to 500: half way from 310 to 600; beyond 500 as steep as below 300
    told = {150.0: 160.0, 300.0: 310.0, 400.0: 455.0, 500.0: 600.0, 600.0: 700.0}
    assert {x: found.apply(x) for x in told} == pytest.approx(told)
    assert found.worst < 1e-9


@pytest.mark.parametrize(
    "points",
    [
        SHRUNK[:2],
        [*SHRUNK[:2], (480.0, 490.0)],  # beyond 95 % of the dense network's sum
        [(300.0 + x, 310.0 + x) for x in (0.0, 40.0, 90.0)],  # a fifth of it would be 100
        [(100.0, 110.0), (200.0, 310.0), (300.0, 610.0)],  # above the dense network
    ],
)
def test_few_or_close_networks_share_a_line_with_the_dense_one(points: list[tuple[float, float]]) -> None:
    found = fit(points, anchor=(500.0, 600.0))
    assert found.bend is None
    assert found.apply(500.0) == pytest.approx(600.0)


def test_a_bend_off_the_line_is_refused() -> None:
    with pytest.raises(UsageError, match="a point off its line 10 \\+ 1·Σ"):
        Calibration(10.0, 1.0, (), ((300.0, 290.0), (500.0, 600.0)))


def test_a_bend_that_falls_is_refused() -> None:
    with pytest.raises(UsageError, match="both must rise"):
        Calibration(10.0, 1.0, (), ((300.0, 310.0), (500.0, 300.0)))


def test_residuals_are_relative() -> None:
    line = Calibration(10.0, 1.0, ((90.0, 100.0), (90.0, 80.0)))
    assert line.residuals == pytest.approx((0.0, 0.25))
    assert line.worst == pytest.approx(0.25)


def test_a_line_adds_what_a_call_takes_to_its_share_of_the_sum() -> None:
    assert Calibration(10.0, 1.5).apply(100.0) == 160.0


def test_the_identity_changes_nothing() -> None:
    assert Calibration.identity().apply(123.0) == 123.0


@pytest.mark.parametrize("points", [[(0.0, 1.0)], [(1.0, -1.0)], [(1.0, float("nan"))]])
def test_times_that_cannot_be_are_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(UsageError, match="sums and latencies are positive µs"):
        fit(points)


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(UsageError, match="without any measured network"):
        fit([])


def test_a_falling_line_is_refused() -> None:
    with pytest.raises(UsageError, match="the slope must be positive"):
        Calibration(10.0, -1.0)
