"""A comparison as one page: accuracy over latency, intervals over seeds, gains by pairs, and what training cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from halpiee.compare.comparison import DENSE
from halpiee.compare.rows import Row, Standing, difference, standings
from halpiee.report.page import templates
from halpiee.report.plots import Series, chart
from halpiee.report.values import DASH

REFERENCE = "uniform"
"""The contestant that all others are compared with."""

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
    return [
        (
            s.contestant,
            f"{s.budget:g}",
            ", ".join(map(str, s.seeds)),
            f"{100 * s.accuracy:.1f}{_half(s.half)}",
            DASH if s.contestant == REFERENCE else _gain(rows, s),
            f"{s.share:.3f}",
            _spent(s),
            DASH if math.isnan(s.train_macs) else f"{s.train_macs / 1e9:,.0f}",
        )
        for s in standings(rows)
    ]


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
        {"title": _title(name, of), "origin": _origin(of), "chart": _chart(of), "lines": lines(of)}
        for name, of in settings_in(rows).items()
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
    machines, commits = _listed(row.machine for row in rows), _listed(row.commit for row in rows)
    torch = _listed(row.versions.get("torch", "") for row in rows)
    dates = sorted({row.date for row in rows if row.date})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else DASH
    return f"{len(rows)} trainings; machine {machines}; {when}; commits {commits}; torch {torch}."


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(sorted({*texts} - {""})) or DASH


def _half(half: float) -> str:
    return "" if math.isnan(half) else f" ± {100 * half:.1f}"


def _gain(rows: Sequence[Row], s: Standing) -> str:
    found = difference(rows, s.contestant, REFERENCE, s.budget)
    if found is None:
        return DASH
    return f"{100 * found.accuracy:+.1f}{_half(found.half)} ({found.wins} of {found.pairs})"


def _spent(s: Standing) -> str:
    own = DASH if math.isnan(s.seconds) else f"{s.seconds:,.0f}"
    return f"{s.start_seconds:,.0f} + {own}" if s.start_seconds else own
