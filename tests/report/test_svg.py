"""A chart puts points where they belong."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halpiee.report.svg import Band, Series, chart, ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_enclose_the_range_evenly_in_round_steps(low: float, extent: float) -> None:
    high = low + extent
    if not high > low or high - low < 1e-9 * abs(low):
        return
    marks = ticks(low, high, 5)
    step = marks[1] - marks[0]
    assert marks[0] <= low + 1e-6 * step
    assert marks[-1] >= high - 1e-6 * step
    assert 2 <= len(marks) <= 8
    digits = float(f"{step:.0e}".split("e")[0])
    assert digits in (1, 2, 5)


def test_ticks_of_one_value_still_span_a_range() -> None:
    assert ticks(0.0, 0.0, 5)[0] < 0 < ticks(0.0, 0.0, 5)[-1]
    assert ticks(7.0, 7.0, 5)[0] < 7 < ticks(7.0, 7.0, 5)[-1]


def test_whole_ticks_are_whole_numbers() -> None:
    assert ticks(1, 2, 6, whole=True) == [1.0, 2.0]


def test_points_lie_in_proportion_between_the_axes() -> None:
    # x from 0 to 10 over 62 … 536; y ticks 0 to 1 over 236 … 12.
    html = chart([Series("a", [(0, 0), (5, 0.5), (10, 1)], "a", marker="dot")], x_label="x", y_label="y")
    circles = re.findall(r'<title>[^<]*</title><circle cx="([\d.]+)" cy="([\d.]+)"', html)
    assert circles == [("62.0", "236.0"), ("299.0", "124.0"), ("536.0", "12.0")]
    assert '<path class="line a" d="M62.0 236.0L299.0 124.0L536.0 12.0"/>' in html


def test_steps_hold_their_value_until_the_next_point() -> None:
    html = chart([Series("a", [(0, 0), (10, 1)], "a", "step")], x_label="x", y_label="y")
    assert 'd="M62.0 236.0H536.0V12.0"' in html


def test_a_rule_goes_right_across() -> None:
    series = [Series("a", [(0, 0), (10, 1)], "a"), Series("limit", [(3, 1)], "limit", "rule")]
    assert 'd="M62.0 12.0L536.0 12.0"' in chart(series, x_label="x", y_label="y")


def test_a_band_covers_its_range() -> None:
    html = chart(
        [Series("a", [(0, 0), (10, 1)], "a")], x_label="x", y_label="y", bands=[Band("ok", 0.25, 0.75, "ok")]
    )
    # 224 pixels for 0 … 1: from 236 − 168 to 236 − 56
    assert '<rect class="band ok" x="62" y="68.0" width="474" height="112.0"/>' in html


@pytest.mark.parametrize("series", [[], [Series("a", [], "a")]])
def test_a_chart_of_nothing_is_nothing(series: list[Series]) -> None:
    assert chart(series, x_label="x", y_label="y") == ""


def test_a_single_point_is_drawn() -> None:
    html = chart([Series("a", [(3, 4)], "a", marker="dot")], x_label="x", y_label="y")
    assert "nan" not in html
    assert "<title>a: 4 at 3</title>" in html


def test_names_are_escaped() -> None:
    html = chart([Series("<b>", [(0, 0)], "a", marker="up")], x_label="<x>", y_label='"y"')
    assert "<b>" not in html
    assert "<x>" not in html
    assert 'aria-label="&quot;y&quot; over &lt;x&gt;"' in html
