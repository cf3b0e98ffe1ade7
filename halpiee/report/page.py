"""A report as one self-contained HTML page: no network, no scripts, light and dark, readable on a phone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from halpiee.report import plots
from halpiee.report.style import STYLE
from halpiee.report.values import DASH, comparison, facts, latency, number, percent, title

__all__ = ["render_html"]


def render_html(report: Mapping[str, Any]) -> str:
    """Returns the page of a run.

    Args:
        report: the keys of ``report.json``; any may be missing or ``None``.
    """
    name = escape(title(report))
    schema = DASH if report.get("schema") is None else str(report["schema"])
    sections = [
        _section("Latency", _text_of("latency"), plots.budget_plot(report)),
        _section("Dense and pruned side by side", "", _table(report)),
        _section("Channels per layer", _text_of("widths"), plots.widths_plot(report)),
        _section("Time per layer", _text_of("layers"), plots.layers_plot(report)),
        _pair(
            _section("Accuracy", "", plots.accuracy_plot(report)),
            _section("Loss", "", plots.loss_plot(report)),
        ),
        _pair(
            _section("Pruning and growing", _text_of("events"), plots.events_plot(report)),
            _section("Closed loop", _text_of("loop"), plots.loop_plot(report)),
        ),
        _section("Other budgets", _text_of("pareto"), plots.pareto_plot(report) or _skipped(report)),
        _pair(
            _section("Circumstances", "", _list(facts(report))),
            _section("Time spent", "", plots.stages_plot(report))
            + _section("Files", "", _links(_flat(report.get("files") or {}))),
        ),
        _section("Environment", "", _list(_flat(report.get("environment") or {}))),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{name}</title><style>{STYLE}</style></head><body><main>"
        f"{_header(report, name)}{''.join(sections)}"
        f"<footer>halpiee report, schema {escape(schema)}. Ratios are pruned over "
        "dense; latencies are medians, end to end; a dash stands for a value this run does not have.</footer>"
        "</main></body></html>\n"
    )


def _header(report: Mapping[str, Any], name: str) -> str:
    promise = report.get("promise") or {}
    met = promise.get("met") if isinstance(promise, Mapping) else None
    badge = ""
    if met is not None:
        word, css = ("Promise kept", "good") if met else ("Promise missed", "bad")
        badge = f'<span class="badge {css}">{word}</span>'
    text = promise.get("text") if isinstance(promise, Mapping) else None
    line = f"<p>{badge}{escape(str(text or ''))}</p>" if badge or text else ""
    return f"<header><h1>{name}</h1>{line}{_tiles(report)}</header>"


def _tiles(report: Mapping[str, Any]) -> str:
    def get(*path: str) -> float | None:
        return number(report, *path)

    budget, measured, speedup = get("budget_us"), get("measured_us"), get("speedup")
    if speedup is None and measured and get("dense_us"):
        speedup = (get("dense_us") or 0.0) / measured
    share = (
        f"{100 * measured / budget:.1f}% of the budget"
        if measured and budget
        else "budget " + latency(budget)
    )
    dense, pruned = get("accuracy_dense"), get("accuracy_pruned")
    change = next(row.ratio for row in comparison(report) if row.label == "Top-1 accuracy")
    macs = next(row for row in comparison(report) if row.label == "MACs per image")
    tiles = [
        ("Measured latency", latency(measured, get("measured_iqr_us")), share),
        (
            "Speed-up",
            DASH if speedup is None else f"{speedup:.2f}×",
            f"dense {latency(get('dense_us'), get('dense_iqr_us'))}",
        ),
        ("Top-1 accuracy", percent(pruned), DASH if dense is None else f"{change} to dense"),
        ("MACs", macs.pruned, DASH if macs.ratio == DASH else f"{macs.ratio} of {macs.dense}"),
    ]
    cells = "".join(
        f'<div class="tile"><span>{escape(label)}</span><strong>{escape(value)}</strong>'
        f"<small>{escape(note)}</small></div>"
        for label, value, note in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _table(report: Mapping[str, Any]) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(row.label)}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in (row.dense, row.pruned, row.ratio))
        + "</tr>"
        for row in comparison(report)
    )
    head = "<tr><th></th><th>Dense</th><th>Pruned</th><th>Ratio</th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _section(name: str, text: str, body: str) -> str:
    """Returns a titled card; nothing where there is nothing to show."""
    note = f"<p>{text}</p>" if text else ""
    return f"<section><h2>{escape(name)}</h2>{note}{body}</section>" if body else ""


def _pair(first: str, second: str) -> str:
    if not (first and second):
        return first + second
    return f'<div class="pair"><div>{first}</div><div>{second}</div></div>'


def _list(items: list[tuple[str, str]]) -> str:
    rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in items)
    return f"<dl>{rows}</dl>" if rows else ""


def _links(items: list[tuple[str, str]]) -> str:
    """Returns a list whose plain file names lead to the files beside the page; anything else stays text."""
    rows = []
    for key, value in items:
        shown = escape(value)
        if re.fullmatch(r"\w[\w.-]*", value):
            shown = f'<a href="{shown}">{shown}</a>'
        rows.append(f"<div><dt>{escape(key)}</dt><dd>{shown}</dd></div>")
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def _skipped(report: Mapping[str, Any]) -> str:
    """Returns why there is no curve, where that is known."""
    reason = (report.get("pareto") or {}).get("skipped")
    return f'<p class="note">not drawn: {escape(str(reason))}</p>' if reason else ""


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns nested keys as dotted names with their values as text."""
    items: list[tuple[str, str]] = []
    for key, part in value.items():
        name = f"{prefix}{key}"
        if isinstance(part, Mapping):
            items += _flat(part, f"{name}.")
        else:
            items.append((name, DASH if part is None else str(part)))
    return items


def _text_of(section: str) -> str:
    return {
        "latency": "End to end, median of interleaved rounds. The line is the budget.",
        "widths": "Kept of the channels the layer was built with.",
        "layers": "µs in the pruned network / in the dense one, from the runtime's own profiler, which slows the "
        "network somewhat; in brackets, what belongs to no layer.",
        "pareto": "What the best selection keeps at each latency, scored by the magnitudes of the dense network's "
        "trained weights, and this run's network by the same scores.",
        "events": "The active network's predicted latency. A prune makes room, exploring trains what is out, "
        "a grow fills the budget again.",
        "loop": "The candidate is shrunk and measured, and solved again until it lies in the accepted range.",
    }[section]
