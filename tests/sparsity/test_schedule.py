"""Curves against the values that METHODS of the papers give."""

from __future__ import annotations

import pytest

from halpiee.errors import UsageError
from halpiee.sparsity import Cosine, Cubic, Exponential


def test_cubic_is_gmps_schedule() -> None:
    curve = Cubic(0.0, 0.9, 0, 75)
    found = [curve(k) for k in (0, 1, 18, 37, 56, 74, 75)]
    assert found[:5] == pytest.approx([0, 0.0355, 0.5049, 0.7829, 0.8854], abs=5e-5)
    assert found[5] == pytest.approx(0.9 - 0.9 / 75**3, abs=1e-12)
    assert found[6] == 0.9
    half = Cubic(0.5, 0.9, 0, 75)
    assert [half(k) for k in (0, 1, 18, 37, 56)] == pytest.approx(
        [0.5, 0.5158, 0.7244, 0.8480, 0.8935], abs=5e-5
    )


def test_cosine_is_rigls_drop_fraction_and_granets_regeneration() -> None:
    rigl = Cosine(0.3, 0.0, 1)
    assert [rigl(t) for t in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(
        [0.3, 0.2561, 0.15, 0.0439, 0], abs=5e-5
    )
    granet = Cosine(0.5, 0.005, 1)
    expected = [0.5, 0.4275, 0.2525, 0.0775, 0.005]
    assert [granet(t) for t in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(expected, abs=5e-5)


def test_exponential_is_halps_target_list() -> None:
    # Targets of a 55 % budget removed in 30 steps: 0.980 after the first, 0.742 half-way, 0.55 at the end.
    curve = Exponential(1.0, 0.55, 30)
    assert [round(curve(k), 3) for k in (1, 2, 15, 30)] == [0.980, 0.961, 0.742, 0.550]


def test_an_exponential_needs_a_floor() -> None:
    with pytest.raises(UsageError, match="give a floor above 0, or use a cosine"):
        Exponential(0.3, 0.0, 10)
