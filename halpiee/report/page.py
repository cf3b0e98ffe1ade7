"""A report for people: one self-contained HTML page (no scripts, light and dark, phone), a site, Markdown, a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from halpiee.report import plots
from halpiee.report.values import DASH, comparison, facts, figure, latency, number, percent, seconds, title

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.table import Table


def render_html(
    report: Mapping[str, Any],
    *,
    others: Mapping[str, Mapping[str, Any]] | None = None,
    home: str | None = None,
) -> str:
    """Returns the page of a run.

    Args:
        report: the keys of ``report.json``; any may be missing or ``None``.
        others: name → report of further runs on the same network and data, drawn beside this one.
        home: link to the page that lists all runs.
    """
    compared = {row.label: row for row in comparison(report)}
    tradeoff = plots.tradeoff_chart({**(others or {}), "": report}, this="")
    return (
        templates()
        .get_template("page.html")
        .render(
            title=title(report),
            home=home,
            promise=_promise(report),
            tiles=_tiles(report, compared),
            rows=compared.values(),
            budget=_budget(report),
            layers=list(_layers(report)),
            skipped=_mapping(report, "pareto").get("skipped"),
            charts={
                "tradeoff": tradeoff,
                "pareto": plots.pareto_chart(report),
                "accuracy": plots.accuracy_chart(report),
                "loss": plots.loss_chart(report),
                "events": plots.events_chart(report),
                "overlap": plots.overlap_chart(report),
                "flops": plots.flops_chart(report),
                "loop": plots.loop_chart(report),
            },
            facts=facts(report),
            preprocess=_flat(_mapping(report, "preprocess")),
            stages=_stages(report),
            files=_flat(_mapping(report, "files")),
            linked=home is None,
            environment=_flat(_mapping(report, "environment")),
            schema=DASH if report.get("schema") is None else report["schema"],
        )
    )


def render_site(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns the pages of a static site of several runs: file name → HTML; ``index.html`` compares and lists them.

    Args:
        reports: name of a run (letters, digits, ``.``, ``_``, ``-``) → its report.
    """
    kinds: dict[tuple[Any, Any], dict[str, Mapping[str, Any]]] = {}
    for name, report in reports.items():
        kinds.setdefault((report.get("model"), report.get("data")), {})[name] = report
    pages = {}
    for group in kinds.values():
        for name, report in group.items():
            others = {other: one for other, one in group.items() if other != name}
            pages[f"{name}.html"] = render_html(report, others=others, home="index.html")
    shown = [
        {
            "title": f"{model if model is not None else DASH} on {data if data is not None else DASH}",
            "chart": plots.tradeoff_chart(group),
            "runs": [line_of_run(name, report) for name, report in group.items()],
        }
        for (model, data), group in kinds.items()
    ]
    pages["index.html"] = (
        templates().get_template("site.html").render(kinds=shown, n=len(reports), heads=HEADS)
    )
    return pages


def render_markdown(report: Mapping[str, Any]) -> str:
    """Returns the report of a run as GitHub-flavoured Markdown.

    Args:
        report: the keys of ``report.json``; any may be missing or ``None``.
    """
    curve = _mapping(report, "pareto")
    points = [(_share(p, "share"), _share(p, "kept")) for p in curve.get("points") or []]
    if points:
        points.append(
            (f"{_share(curve.get('run') or {}, 'share')} (this run)", _share(curve.get("run") or {}, "kept"))
        )
    events = []
    for e in report.get("events") or []:
        if isinstance(e, Mapping):
            times = (latency(number(e, key)) for key in ("used_us", "budget_us", "slack_us"))
            events.append((_whole(number(e, "step")), str(e.get("event") or DASH), *times))
    layers = list(_layers(report))
    return (
        templates()
        .get_template("report.md")
        .render(
            title=title(report),
            promise=_promise(report),
            rows=comparison(report),
            widths=[one for one in layers if one.channels],
            times=[one for one in layers if one.time],
            frozen=[one for one in layers if one.frozen],
            points=points,
            events=events,
            facts=facts(report),
        )
    )


def render_card(report: Mapping[str, Any], *, load: str) -> str:
    """Returns a model card, as the Hugging Face hub shows it: YAML first, then Markdown.

    Args:
        report: the keys of ``report.json``; any may be missing or ``None``.
        load: what ``halpiee.load`` is called with: a folder or a name on the hub.
    """
    found = dict(facts(report))
    names = ("Measured with", "Precision", "Batch", "Threads")
    device = _mapping(report, "environment").get("device")
    return (
        templates()
        .get_template("card.md")
        .render(
            title=title(report),
            promise=_promise(report),
            rows=[(r.label, r.dense, r.pruned, r.ratio) for r in comparison(report)],
            circumstances=[
                ("Device", DASH if device is None else str(device)),
                *((n, found[n]) for n in names),
            ],
            load=re.sub(r'["\\\n`]', "", load),
            preprocess=_flat(_mapping(report, "preprocess")),
        )
    )


def table(report: Mapping[str, Any]) -> Table:
    """Returns dense | pruned | ratio as a table for ``rich``.

    Args:
        report: the keys of ``report.json``; any may be missing or ``None``.
    """
    from rich.table import Table
    from rich.text import Text

    # Text, not markup: a model's name may hold brackets.
    result = Table(title=Text(title(report)), title_justify="left")
    result.add_column("")
    for name in ("Dense", "Pruned", "Ratio"):
        result.add_column(name, justify="right")
    for row in comparison(report):
        result.add_row(*(Text(cell) for cell in (row.label, row.dense, row.pruned, row.ratio)))
    return result


def runs_table(reports: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns several runs as a table for ``rich``, a row each.

    Args:
        reports: name of a run → its report.
    """
    from rich.table import Table
    from rich.text import Text

    result = Table(box=None)
    result.add_column("Run", no_wrap=True)
    for head in (*HEADS, "Promise"):
        result.add_column(head, justify="left" if head == "Method" else "right")
    for name, report in reports.items():
        line = line_of_run(name, report)
        promise = DASH if line["met"] is None else "kept" if line["met"] else "missed"
        result.add_row(*(Text(cell) for cell in (name, *line["cells"], promise)))
    return result


HEADS = (
    "Method",
    "Budget",
    "Predicted, ms",
    "90 % interval, ms",
    "Dense, ms",
    "Pruned, ms",
    "Speed-up, ×",
    "Top-1 dense, %",
    "Top-1 pruned, %",
    "MACs, M",
)
"""What the list of runs says of each, one unit a column."""


def line_of_run(name: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's row in a list of runs: its cells under ``HEADS``, and whether its promise is kept."""

    def get(key: str, scale: float, decimals: int) -> str:
        value = number(report, key)
        return DASH if value is None else f"{value * scale:.{decimals}f}"

    within = [get(f"predicted_{end}_us", 1e-3, 3) for end in ("low", "high")]
    return {
        "name": name,
        "met": _mapping(report, "promise").get("met"),
        "cells": [
            str(report.get("method") or DASH),
            str(report.get("budget") or DASH),
            get("predicted_us", 1e-3, 3),
            DASH if DASH in within else " to ".join(within),
            get("dense_us", 1e-3, 3),
            get("measured_us", 1e-3, 3),
            get("speedup", 1, 2),
            get("accuracy_dense", 100, 2),
            get("accuracy_pruned", 100, 2),
            get("macs_pruned", 1e-6, 1),
        ],
    }


@dataclass(frozen=True)
class Bar:
    """A bar before and after, in per cent of the longest bar."""

    before: float  # of the dense network
    after: float  # of the pruned one
    text: str  # both values


@dataclass(frozen=True)
class Layer:
    """A layer as the page draws it."""

    name: str  # its name
    channels: Bar | None  # output channels, or the share of weights that a mask keeps; None: neither is known
    time: Bar | None  # None: it was not timed alone
    frozen: str  # why channels of it cannot go, or an empty string
    before: str  # output channels of the dense network, as text
    after: str  # of the pruned one
    before_us: str  # time in the dense network, as text with its unit
    after_us: str  # in the pruned one


def _layers(report: Mapping[str, Any]) -> Iterator[Layer]:
    """Yields the layers in the network's order, then what was timed and belongs to no layer."""
    kept, dense, frozen = (_mapping(report, key) for key in ("widths", "widths_dense", "frozen"))
    timed = {str(row.get("layer")): row for row in report.get("layers") or [] if isinstance(row, Mapping)}
    masks = _mapping(report, "densities")
    names = dict.fromkeys([*(dense or kept), *timed])
    widest = max((number(dense, name) or number(kept, name) or 0.0 for name in dense or kept), default=0.0)
    times = {name: (number(row, "dense_us"), number(row, "pruned_us")) for name, row in timed.items()}
    longest = max((us for both in times.values() for us in both if us is not None), default=0.0)
    for name in names:
        before, after = number(dense, name), number(kept, name)
        channels = None
        if (name in dense or name in kept) and widest:
            whole = before or after or 0.0
            part = 100 * after / whole if after is not None and whole else 0.0
            channels = Bar(100 * whole / widest, min(part, 100.0), f"{_whole(after)} / {_whole(before)}")
        share = number(masks, f"{name}.weight")
        if share is not None:
            channels = Bar(
                100 * (before or after or 0.0) / widest if widest else 100.0, 100 * share, f"{share:.1%} on"
            )
        before_us, after_us = times.get(name, (None, None))
        time = None
        if name in times and longest > 0:
            shares = [100 * (us or 0.0) / longest for us in (before_us, after_us)]
            time = Bar(shares[0], shares[1], f"{_micro(after_us)} / {_micro(before_us)}")
        reasons = frozen.get(name) or []
        why = (
            "; ".join(map(str, reasons))
            if isinstance(reasons, Sequence) and not isinstance(reasons, str)
            else str(reasons)
        )
        yield Layer(
            name, channels, time, why, _whole(before), _whole(after), latency(before_us), latency(after_us)
        )


def _promise(report: Mapping[str, Any]) -> dict[str, Any]:
    found = _mapping(report, "promise")
    return {"met": found.get("met"), "text": found.get("text") or ""}


def _tiles(report: Mapping[str, Any], compared: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (what, value, note) of the four figures at the top."""

    def get(*path: str) -> float | None:
        return number(report, *path)

    budget, measured, speedup = get("budget_us"), get("measured_us"), get("speedup")
    if speedup is None and measured and get("dense_us"):
        speedup = (get("dense_us") or 0.0) / measured
    share = (
        f"{100 * measured / budget:.1f}% of the budget"
        if measured and budget
        else f"budget {latency(budget)}"
    )
    accuracy, macs = compared[figure(report)], compared["MACs per image"]
    against = "the given weights" if report.get("weights_dense") == "given" else "dense"
    return [
        ("Measured latency", latency(measured, get("measured_iqr_us")), share),
        (
            "Speed-up",
            DASH if speedup is None else f"{speedup:.2f}×",
            f"dense {latency(get('dense_us'), get('dense_iqr_us'))}",
        ),
        (
            figure(report),
            accuracy.pruned,
            DASH if accuracy.dense == DASH else f"{accuracy.ratio} to {against}",
        ),
        ("MACs", macs.pruned, DASH if macs.ratio == DASH else f"{macs.ratio} of {macs.dense}"),
    ]


def _budget(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the bars of three latencies, the range of the predicted one, and where the budget is, in per cent."""
    rows = [
        ("Dense, measured", number(report, "dense_us"), number(report, "dense_iqr_us"), "dense"),
        ("Pruned, predicted", number(report, "predicted_us"), None, "predicted"),
        ("Pruned, measured", number(report, "measured_us"), number(report, "measured_iqr_us"), "pruned"),
    ]
    budget = number(report, "budget_us")
    ends = [number(report, f"predicted_{end}_us") for end in ("low", "high")]
    largest = max((us for us in [us for _, us, _, _ in rows] + [budget, *ends] if us), default=0.0)
    if largest <= 0:
        return None
    low, high = (None if us is None else max(0.0, 100 * us / largest) for us in ends)
    return {
        "range": None if low is None or high is None else (low, max(0.0, high - low)),
        "bars": [(name, css, 100 * (us or 0.0) / largest, latency(us, iqr)) for name, us, iqr, css in rows],
        "line": None if budget is None else 100 * budget / largest,
        "text": latency(budget),
    }


def _stages(report: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Returns (stage, per cent of the longest, wall time) of each stage."""
    spent = {
        str(name): number(report, "seconds_by_stage", name) for name in _mapping(report, "seconds_by_stage")
    }
    largest = max((value for value in spent.values() if value is not None), default=0.0)
    if largest <= 0:
        return []
    return [
        (name.capitalize(), 100 * (value or 0.0) / largest, seconds(value)) for name, value in spent.items()
    ]


@cache
def templates() -> Environment:
    """Returns the templates of pages; they hold one style sheet."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    found = Environment(
        loader=PackageLoader("halpiee.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"plain": _plain, "linked": _linked}
    return found


def _mapping(report: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = report.get(key)
    return value if isinstance(value, Mapping) else {}


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


def _plain(text: object) -> str:
    """Returns text that Markdown shows as it is: no tags, no table cells, no emphasis."""
    from html import escape

    shown = str(text)
    for mark in "\\`*_[]|#":
        shown = shown.replace(mark, f"\\{mark}")
    return escape(shown, quote=False).replace("\n", " ")


def _linked(text: str) -> bool:
    """Whether a text is a plain file name, which a page may link to."""
    return re.fullmatch(r"\w[\w.-]*", text) is not None


def _whole(value: float | None) -> str:
    return DASH if value is None else f"{value:.0f}"


def _micro(value_us: float | None) -> str:
    """Returns µs without their unit: whole ones, tenths below ten."""
    return DASH if value_us is None else f"{value_us:,.{0 if value_us >= 10 else 1}f}"


def _share(entry: Mapping[str, Any], key: str) -> str:
    return percent(number(entry, key), 1)
