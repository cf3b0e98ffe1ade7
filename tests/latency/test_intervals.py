"""Prediction intervals against tables of Student's distribution, closed forms, and their coverage of drawn networks."""

import numpy as np
import pytest

from latency.errors import UsageError
from latency.predict import PRIOR, Calibration, fit, interval, student


@pytest.mark.parametrize(
    ("share", "freedom", "t"),
    [(0.9, 1, 6.3138), (0.9, 2, 2.9200), (0.9, 4, 2.1318), (0.95, 10, 2.2281), (0.9, 1000, 1.6464)],
)
def test_the_quantile_is_that_of_the_tables(share: float, freedom: int, t: float) -> None:
    assert student(share, freedom) == pytest.approx(t, abs=1e-4)


def test_without_networks_measured_whole_the_held_out_cells_alone_tell() -> None:
    found = interval(None, 100.0, cells=0.02)
    assert found.us == 100.0
    assert found.high_us == pytest.approx(100 * (1 + student(0.9, PRIOR) * 0.02))
    assert found.low_us == pytest.approx(100 * (1 - student(0.9, PRIOR) * 0.02))


def test_a_line_through_the_dense_network_has_one_free_number() -> None:
    line = fit([(50.0, 61.0), (60.0, 70.0)], anchor=(100.0, 110.0))
    assert line.bend is None
    r = [line.apply(x) / y - 1 for x, y in ((50.0, 61.0), (60.0, 70.0))]
    variance = (PRIOR * 0.01**2 + r[0] ** 2 + r[1] ** 2) / (PRIOR + 1)
    spread = (50 / 61) ** 2 + (40 / 70) ** 2
    us = line.apply(80.0)
    half = student(0.9, PRIOR + 1) * np.sqrt(variance * (1 + (20 / us) ** 2 / spread)) * us
    found = interval(line, 80.0, cells=0.01)
    assert (found.low_us, found.high_us) == pytest.approx((us - half, us + half))


def test_at_the_dense_network_only_the_noise_of_one_measurement_is_left() -> None:
    line = fit([(50.0, 61.0), (60.0, 70.0)], anchor=(100.0, 110.0))
    near, far = (interval(line, x, cells=0.01) for x in (100.0, 20.0))
    assert (far.high_us - far.low_us) / far.us > (near.high_us - near.low_us) / near.us


def test_a_free_line_has_the_leverage_of_weighted_least_squares() -> None:
    points = ((10.0, 21.0), (20.0, 29.0), (30.0, 41.0), (40.0, 50.0))
    line = fit(points)
    rows = np.array([(1 / y, x / y) for x, y in points])
    us = line.apply(25.0)
    own = np.array([1 / us, 25 / us])
    leverage = own @ np.linalg.solve(rows.T @ rows, own)
    r = np.array(line.residuals)
    variance = (PRIOR * 0.03**2 + r @ r) / (PRIOR + 2)
    found = interval(line, 25.0, cells=0.03)
    assert found.high_us / us - 1 == pytest.approx(
        student(0.9, PRIOR + 2) * np.sqrt(variance * (1 + leverage))
    )


def test_nine_of_ten_drawn_networks_lie_within() -> None:
    """Networks whose sums are off by 2 %, cells telling so: over 200 calibrations of 4 networks, coverage is 0.9."""
    generator, held = np.random.default_rng(0), []
    for _ in range(200):
        x = generator.uniform(30, 90, 14)
        y = (5 + 1.1 * x) * (1 + 0.02 * generator.standard_normal(14))
        line = fit(list(zip(x[:4], y[:4], strict=True)), anchor=(100.0, 115.0))
        held += [interval(line, a, cells=0.02).holds(b) for a, b in zip(x[4:], y[4:], strict=True)]
    assert 0.85 <= np.mean(held) <= 0.95


@pytest.mark.parametrize("n", [4, 8])
def test_nine_of_ten_drawn_networks_lie_within_where_no_cell_was_held_out(n: int) -> None:
    """Whatever the spread is, the residuals alone tell it: tables of few cells are measured whole."""
    generator, held = np.random.default_rng(1), []
    for spread in (0.001, 0.03) * 150:
        x = generator.uniform(30, 90, n + 10)
        y = (5 + 1.1 * x) * (1 + spread * generator.standard_normal(n + 10))
        line = fit(list(zip(x[:n], y[:n], strict=True)), anchor=(100.0, 115.0))
        held += [interval(line, a, cells=None).holds(b) for a, b in zip(x[n:], y[n:], strict=True)]
    assert 0.87 <= np.mean(held) <= 0.93


def test_a_line_through_as_many_networks_as_it_has_free_numbers_tells_no_range() -> None:
    with pytest.raises(UsageError, match="measure more networks whole"):
        interval(fit([(50.0, 60.0)], anchor=(100.0, 110.0)), 70.0, cells=None)


@pytest.mark.parametrize(("share", "cells"), [(0.0, 0.1), (1.0, 0.1), (0.9, -1.0), (0.9, float("nan"))])
def test_nonsense_is_refused(share: float, cells: float) -> None:
    with pytest.raises(UsageError, match="give a share between 0 and 1"):
        interval(Calibration(), 1.0, cells=cells, share=share)
