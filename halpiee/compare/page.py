"""A comparison as one page: accuracy over latency, intervals over seeds, gains by pairs, and what training cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from halpiee.compare.comparison import DENSE
from halpiee.compare.rows import Difference, Row, Standing, difference, standings
from halpiee.report.page import templates
from halpiee.report.plots import Series, chart
from halpiee.report.values import DASH

__all__ = ["REFERENCE", "lines", "render_html", "render_markdown", "settings_in"]

REFERENCE = "uniform"
"""Whom all others are compared with."""

COLOURS = ("pruned", "limit", "predicted", "grow", "prune", "init", "target", "other")

HEAD = (
    "Contestant",
    "Budget",
    "Seeds",
    "Top-1 %",
    "Gain over uniform, points",
    "Of dense latency",
    "Training, s",
    "Training GMACs",
)


def settings_in(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Returns setting → its rows, in the order of their first rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.setting, []).append(row)
    return found


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Returns the cells of a table of one setting, under ``HEAD``: a line a contestant and budget."""
    found: list[tuple[str, ...]] = []
    for s in standings(rows):
        gain = None if s.contestant == REFERENCE else difference(rows, s.contestant, REFERENCE, s.budget)
        found.append(
            (
                s.contestant,
                f"{s.budget:g}",
                ", ".join(map(str, s.seeds)),
                _with_half(100 * s.accuracy, 100 * s.half),
                _gain(gain),
                f"{s.share:.3f}",
                _spent(s),
                DASH if math.isnan(s.train_macs) else f"{s.train_macs / 1e9:,.0f}",
            )
        )
    return found


def render_markdown(rows: Sequence[Row]) -> str:
    """Returns the tables of all settings as GitHub-flavoured Markdown."""
    parts = []
    for setting, these in settings_in(rows).items():
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines(these))
        parts.append(
            f"**{_title(setting, these)}**\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}\n{body}\n\n{_origin(these)}"
        )
    return "\n\n".join(parts) + "\n"


def render_html(rows: Sequence[Row]) -> str:
    """Returns the page: no network, no scripts."""
    settings = [
        {
            "title": _title(setting, these),
            "origin": _origin(these),
            "chart": _chart(these),
            "lines": lines(these),
        }
        for setting, these in settings_in(rows).items()
    ]
    return templates().get_template("comparison.html").render(settings=settings, head=HEAD)


def _chart(rows: Sequence[Row]) -> str:
    """Returns the curve of each contestant: mean accuracy over mean measured latency."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for s in standings(rows):
        curves.setdefault(s.contestant, []).append((s.share, 100 * s.accuracy))
    own = {DENSE: "dense", REFERENCE: "uniform"}
    others = [name for name in sorted(curves) if name not in own]
    own |= {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(others)}
    series = [Series(name, sorted(curves[name]), own[name], marker="dot") for name in sorted(curves)]
    return chart(
        series,
        x_label="measured latency over that of the dense network",
        y_label="Top-1 accuracy, %",
        x_form=lambda x: f"{x:.2f}",
    )


def _title(setting: str, rows: Sequence[Row]) -> str:
    return next((row.title for row in rows if row.title), "") or f"setting {setting or DASH}"


def _origin(rows: Sequence[Row]) -> str:
    """Returns where rows are from: machine, dates, commits, versions."""
    machines = ", ".join(sorted({row.machine for row in rows if row.machine})) or DASH
    dates = sorted({row.date for row in rows if row.date})
    commits = ", ".join(sorted({row.commit for row in rows if row.commit})) or DASH
    torch = ", ".join(sorted({row.versions["torch"] for row in rows if "torch" in row.versions})) or DASH
    when = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else DASH
    return f"{len(rows)} trainings; machine {machines}; {when}; commits {commits}; torch {torch}."


def _with_half(value: float, half: float) -> str:
    return f"{value:.1f}" if math.isnan(half) else f"{value:.1f} ± {half:.1f}"


def _gain(found: Difference | None) -> str:
    if found is None:
        return DASH
    half = "" if math.isnan(found.half) else f" ± {100 * found.half:.1f}"
    return f"{100 * found.accuracy:+.1f}{half} ({found.wins} of {found.pairs})"


def _spent(s: Standing) -> str:
    own = DASH if math.isnan(s.seconds) else f"{s.seconds:,.0f}"
    return f"{s.start_seconds:,.0f} + {own}" if s.start_seconds else own
