"""A chart puts points where they belong, in the page's colours."""

import re
from pathlib import Path

import pytest

from halpiee.report.plots import COLOURS, Band, Series, chart


def lines(html: str, colour: str) -> list[list[tuple[float, float]]]:
    """Returns the corners of every line of one colour, in the SVG's units; y grows downwards."""
    drawn = re.findall(r'<path d="([^"]+)"[^>]*stroke: var\(--(\w+)\)', html)
    pairs = [re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path) for path, name in drawn if name == colour]
    return [[(float(x), float(y)) for x, y in points] for points in pairs if points]


def test_points_lie_in_proportion_between_the_axes() -> None:
    html = chart([Series("a", [(0, 0), (2.5, 0.5), (10, 1)], "dense")], x_label="x", y_label="y")
    [[(x0, y0), (x1, y1), (x2, y2)]] = lines(html, "dense")
    assert x2 > x0
    assert y2 < y0  # up is towards 0
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.25, abs=1e-4)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(0.5, abs=1e-4)


def test_two_series_share_the_axes() -> None:
    series = [Series("a", [(0, 0), (10, 1)], "dense"), Series("b", [(0, 0.5), (10, 0.5)], "pruned")]
    html = chart(series, x_label="x", y_label="y")
    [a], [b] = lines(html, "dense"), lines(html, "pruned")
    assert b[0][1] == pytest.approx((a[0][1] + a[1][1]) / 2, abs=1e-3)
    assert [x for x, _ in a] == pytest.approx([x for x, _ in b], abs=1e-3)


def test_steps_hold_their_value_until_the_next_point() -> None:
    [[first, corner, last]] = lines(
        chart([Series("a", [(0, 0), (10, 1)], "dense", "step")], x_label="x", y_label="y"), "dense"
    )
    assert corner == (last[0], first[1])


def test_a_rule_goes_right_across() -> None:
    series = [Series("a", [(0, 0), (10, 1)], "dense"), Series("limit", [(3, 1)], "limit", "rule")]
    html = chart(series, x_label="x", y_label="y")
    [a], [rule] = lines(html, "dense"), lines(html, "limit")
    assert rule[0][1] == rule[1][1] == a[1][1]
    assert rule[0][0] <= a[0][0] < a[1][0] <= rule[1][0]


def test_a_band_covers_its_range() -> None:
    html = chart(
        [Series("a", [(0, 0), (10, 1)], "dense")],
        x_label="x",
        y_label="y",
        bands=[Band("ok", 0.25, 0.75, "accepted")],
    )
    [[(_, bottom), (_, top)]] = lines(html, "dense")
    [path] = re.findall(r'<path d="([^"]+)" style="fill: var\(--accepted\)', html)
    heights = {float(y) for y in re.findall(r"[ML] [-\d.]+ ([-\d.]+)", path)}
    assert sorted((bottom - y) / (bottom - top) for y in heights) == pytest.approx([0.25, 0.75], abs=1e-4)


@pytest.mark.parametrize("rounds", [[1], [1, 2, 3]])
def test_rounds_have_one_tick_each(rounds: list[int]) -> None:
    points = [(float(n), 100.0 + n) for n in rounds]
    html = chart([Series("a", points, "dense", marker="dot")], x_label="round", y_label="y", whole_x=True)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", html)
    assert [text for text in texts if text in ("1", "2", "3", "4")] == [str(n) for n in rounds]


@pytest.mark.parametrize("series", [[], [Series("a", [], "dense")]])
def test_a_chart_of_nothing_is_nothing(series: list[Series]) -> None:
    assert chart(series, x_label="x", y_label="y") == ""


def test_a_single_point_is_drawn_and_its_value_is_text() -> None:
    html = chart([Series("a", [(3, 4)], "dense", marker="dot")], x_label="x", y_label="y")
    assert "nan" not in html
    assert "<li>a: 4 at 3</li>" in html
    assert len(re.findall("<use ", html)) == 1


def test_names_are_escaped() -> None:
    html = chart([Series("<b>", [(0, 0)], "dense", marker="up")], x_label="<x>", y_label='"y"')
    assert "<b>" not in html
    assert "<x>" not in html
    assert 'aria-label="&quot;y&quot; over &lt;x&gt;"' in html


def test_every_colour_is_one_of_the_page_in_light_and_dark() -> None:
    series = [Series(name, [(0, i), (1, i)], name) for i, name in enumerate(COLOURS)]
    html = chart(series, x_label="x", y_label="y")
    assert not re.search(r"#[0-9a-f]{6}\b", html)
    style = (Path(__file__).parents[2] / "halpiee/report/templates/style.css").read_text()
    light, dark = re.findall(r":root\{(.*?)\}", style, re.DOTALL)
    for name in re.findall(r"var\(--(\w+)\)", html):
        assert f"--{name}:" in light
        assert f"--{name}:" in dark


def test_charts_of_one_page_share_no_names_and_a_chart_is_always_the_same() -> None:
    one = [chart([Series("a", [(0, 0)], "dense", marker="dot")], x_label="x", y_label="y") for _ in range(2)]
    other = chart([Series("b", [(0, 0)], "dense", marker="dot")], x_label="x", y_label="y")
    assert one[0] == one[1]
    assert not set(re.findall(r' id="([^"]+)"', one[0])) & set(re.findall(r' id="([^"]+)"', other))


def test_a_point_with_a_name_has_it_beside_it_and_in_the_values() -> None:
    html = chart(
        [Series("Runs", [(1.0, 2.0), (3.0, 4.0)], "pruned", "points", labels=["one", ""])],
        x_label="x",
        y_label="y",
    )
    assert len(re.findall(r">\s*one\s*</text>", html)) == 1
    assert "<li>Runs, one: 2 at 1</li><li>Runs: 4 at 3</li>" in html
