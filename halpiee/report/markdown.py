"""A report as Markdown: for a README, a pull request or a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from halpiee.report.values import comparison, facts, latency, number, percent, title

__all__ = ["render_markdown"]


def render_markdown(report: Mapping[str, Any]) -> str:
    """Returns the report of a run as GitHub-flavoured Markdown.

    Args:
        report: the keys of ``report.json``; any may be missing or ``None``.
    """
    promise = report.get("promise") or {}
    parts = [f"# {_plain(title(report))}"]
    if promise.get("met") is not None:
        word = "Promise kept" if promise["met"] else "Promise missed"
        parts.append(f"**{word}**: {_plain(str(promise.get('text') or ''))}")
    rows = [(r.label, r.dense, r.pruned, r.ratio) for r in comparison(report)]
    parts.append(_table(("", "Dense", "Pruned", "Ratio"), rows))
    kept, dense = report.get("widths") or {}, report.get("widths_dense") or {}
    if kept or dense:
        names = list(dense) or list(kept)
        widths = [(name, _whole(number(dense, name)), _whole(number(kept, name))) for name in names]
        parts += ["## Channels per layer", _table(("Layer", "Dense", "Pruned"), widths)]
    layers = [row for row in report.get("layers") or [] if isinstance(row, Mapping)]
    if layers:
        times = [
            (str(row.get("layer")), latency(number(row, "dense_us")), latency(number(row, "pruned_us")))
            for row in layers
        ]
        parts += ["## Time per layer", _table(("Layer", "Dense", "Pruned"), times)]
    curve = report.get("pareto") or {}
    if curve.get("points"):
        points = [
            (percent(number(p, "share"), 1), percent(number(p, "kept"), 1))
            for p in (*curve["points"], curve.get("run"))
        ]
        points[-1] = (f"{points[-1][0]} (this run)", points[-1][1])
        parts += ["## Other budgets", _table(("Share of the dense latency", "Scores kept"), points)]
    events = [e for e in report.get("events") or [] if isinstance(e, Mapping)]
    if events:
        lines = [
            (
                _whole(number(e, "step")),
                str(e.get("event") or "–"),
                latency(number(e, "used_us")),
                latency(number(e, "budget_us")),
                latency(number(e, "slack_us")),
            )
            for e in events
        ]
        parts += ["## Pruning and growing", _table(("Step", "Event", "Used", "Budget", "Slack"), lines)]
    parts += ["## Circumstances", _table(("", ""), facts(report))]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Returns text that Markdown shows as it is: no tags, no table cells, no emphasis."""
    for mark in "\\`*_[]|#":
        text = text.replace(mark, f"\\{mark}")
    return escape(text, quote=False).replace("\n", " ")


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
