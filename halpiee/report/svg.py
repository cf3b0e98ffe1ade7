"""A line chart as one self-contained SVG, coloured by the page's CSS so that it follows light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

__all__ = ["Band", "Series", "chart", "ticks"]

WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 12, 44


@dataclass(frozen=True)
class Series:
    """One set of points.

    Attributes:
        name: for the legend and the tooltips.
        points: (x, y) in order of x.
        css: class that gives the colour.
        kind: joined by lines, by steps that hold a value until the next point, a rule across the chart
            at the first point's y, or not joined.
        marker: drawn at every point: a dot, triangles, a square, a dash, or nothing.
    """

    name: str
    points: Sequence[tuple[float, float]]
    css: str
    kind: Literal["line", "step", "rule", "points"] = "line"
    marker: Literal["dot", "up", "down", "square", "dash", ""] = ""


@dataclass(frozen=True)
class Band:
    """A range of y that is marked across the chart, open ends as infinities."""

    name: str
    low: float
    high: float
    css: str


def chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    form: Callable[[float], str] = lambda y: f"{y:g}",
    x_form: Callable[[float], str] = lambda x: f"{x:,.0f}",
    bands: Sequence[Band] = (),
    whole_x: bool = False,
) -> str:
    """Returns a figure of HTML: a legend and an SVG that scales with its container.

    Args:
        series: what is drawn, in drawing order; those without points are left out.
        x_label: of the x axis, with its unit.
        y_label: of the y axis, with its unit; it doubles as the chart's name for screen readers.
        form: y → text of a tick or tooltip.
        x_form: likewise for x.
        bands: drawn behind everything.
        whole_x: whether ticks of x are whole numbers.

    Returns:
        HTML; empty where no series has points.
    """
    series = [s for s in series if s.points]
    if not series:
        return ""
    xs = [x for s in series if s.kind != "rule" for x, _ in s.points] or [0.0, 1.0]
    ys = [y for s in series for _, y in s.points]
    ys += [end for band in bands for end in (band.low, band.high) if math.isfinite(end)]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 6, whole=whole_x), ticks(min(ys), max(ys), 5)
    pad = 0.5 if whole_x else 0.0
    x_low, x_high = min(xs) - pad, max(xs) + pad
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [_band(band, at, y_low, y_high) for band in bands]
    for y in y_ticks:
        _, py = at(x_low, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{py + 4:.1f}">{escape(form(y))}</text>')
    for x in x_ticks:
        if x_low <= x <= x_high:
            px, _ = at(x, y_low)
            parts.append(
                f'<text class="tick mid" x="{px:.1f}" y="{HEIGHT - BOTTOM + 18}">{escape(x_form(x))}</text>'
            )
    parts.append(
        f'<text class="axis mid" x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 6}">{escape(x_label)}</text>'
    )
    for s in series:
        parts += _drawn(s, at, x_low, x_high, form, x_form)
    samples = [(_sample(s), s.name) for s in series]
    samples += [(f'<rect class="band {b.css}" x="2" y="1" width="18" height="10"/>', b.name) for b in bands]
    legend = "".join(
        f'<span class="key"><svg viewBox="0 0 22 12" aria-hidden="true">{sample}</svg>{escape(name)}</span>'
        for sample, name in samples
    )
    label = escape(f"{y_label} over {x_label}", quote=True)
    body = "".join(parts)
    return (
        f'<figure><figcaption><span class="y">{escape(y_label)}</span>{legend}</figcaption>'
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>'
        "</figure>"
    )


def ticks(low: float, high: float, n: int, *, whole: bool = False) -> list[float]:
    """Returns about ``n`` round numbers that enclose a range: steps of 1, 2 or 5 times a power of ten."""
    if low == high:
        low, high = (low - abs(low) * 0.1 or -0.5), (high + abs(high) * 0.1 or 0.5)
    rough = (high - low) / max(n - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, float(round(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


Place = Callable[[float, float], tuple[float, float]]


def _band(band: Band, at: Place, y_low: float, y_high: float) -> str:
    top, bottom = at(0, min(band.high, y_high))[1], at(0, max(band.low, y_low))[1]
    width, height = WIDTH - LEFT - RIGHT, max(0.0, bottom - top)
    return f'<rect class="band {band.css}" x="{LEFT}" y="{top:.1f}" width="{width}" height="{height:.1f}"/>'


def _drawn(
    s: Series,
    at: Place,
    x_low: float,
    x_high: float,
    form: Callable[[float], str],
    x_form: Callable[[float], str],
) -> list[str]:
    points = [(x_low, s.points[0][1]), (x_high, s.points[0][1])] if s.kind == "rule" else list(s.points)
    placed = [at(x, y) for x, y in points]
    parts = []
    if s.kind != "points":
        moves = [f"M{placed[0][0]:.1f} {placed[0][1]:.1f}"]
        for px, py in placed[1:]:
            moves.append(f"H{px:.1f}V{py:.1f}" if s.kind == "step" else f"L{px:.1f} {py:.1f}")
        parts.append(f'<path class="line {s.css}" d="{"".join(moves)}"/>')
    if s.marker:
        for (x, y), (px, py) in zip(points, placed, strict=True):
            tip = escape(f"{s.name}: {form(y)} at {x_form(x)}")
            parts.append(f'<g class="mark {s.css}"><title>{tip}</title>{_marker(s.marker, px, py)}</g>')
    return parts


def _marker(kind: str, x: float, y: float) -> str:
    if kind == "dot":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    if kind == "square":
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    if kind == "dash":
        return f'<rect x="{x - 9:.1f}" y="{y - 1.2:.1f}" width="18" height="2.4"/>'
    tip, base = (y - 5, y + 4) if kind == "up" else (y + 5, y - 4)
    return f'<path d="M{x:.1f} {tip:.1f}L{x + 5:.1f} {base:.1f}H{x - 5:.1f}Z"/>'


def _sample(s: Series) -> str:
    line = "" if s.kind == "points" else f'<path class="line {s.css}" d="M1 6H21"/>'
    mark = f'<g class="mark {s.css}">{_marker(s.marker, 11, 6)}</g>' if s.marker else ""
    return line + mark
