"""The plots of a report: widths, accuracy and latency over steps, prune and grow events, the closed loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from halpiee.report.svg import Band, Series, chart
from halpiee.report.values import latency, number, seconds

__all__ = [
    "accuracy_plot",
    "budget_plot",
    "events_plot",
    "layers_plot",
    "loop_plot",
    "loss_plot",
    "pareto_plot",
    "stages_plot",
    "widths_plot",
]

SIDES = (("dense", "Dense"), ("pruned", "Pruned"))
EVENTS = (("init", "square"), ("prune", "down"), ("grow", "up"), ("shrink", "square"))


def budget_plot(report: Mapping[str, Any]) -> str:
    """Returns bars of the dense, predicted and measured latency with the budget as a line across them."""
    rows = [
        ("Dense, measured", number(report, "dense_us"), number(report, "dense_iqr_us"), "dense"),
        ("Pruned, predicted", number(report, "predicted_us"), None, "predicted"),
        ("Pruned, measured", number(report, "measured_us"), number(report, "measured_iqr_us"), "pruned"),
    ]
    budget = number(report, "budget_us")
    largest = max(
        [value for _, value, _, _ in rows if value is not None] + ([budget] if budget else []), default=0.0
    )
    if largest <= 0:
        return ""
    line = ""
    if budget is not None:
        line = (
            '<div class="row line"><span class="name"></span><span class="track bare"><span class="budget" '
            f'style="left:{100 * budget / largest:.2f}%"></span></span><span class="value"></span></div>'
        )
    bars = "".join(_bar(name, value, largest, css, latency(value, iqr)) for name, value, iqr, css in rows)
    note = (
        f'<p class="note"><span class="swatch"></span>budget {latency(budget)}</p>'
        if budget is not None
        else ""
    )
    return f'<div class="bars budgeted">{bars}{line}</div>{note}'


def widths_plot(report: Mapping[str, Any]) -> str:
    """Returns a bar per layer: channels kept, in front of the channels it had."""
    kept, dense = report.get("widths") or {}, report.get("widths_dense") or {}
    names = list(dense) or list(kept)
    largest = max((number(dense, name) or number(kept, name) or 0.0 for name in names), default=0.0)
    if not largest:
        return ""
    rows = []
    for name in names:
        after, before = number(kept, name), number(dense, name)
        whole = 100 * (before or after or 0.0) / largest
        part = 0.0 if after is None or not (before or after) else 100 * after / (before or after or 1.0)
        text = f"{'–' if after is None else f'{after:.0f}'} / {'–' if before is None else f'{before:.0f}'}"
        rows.append(
            f'<div class="row"><span class="name mono"><bdi>{escape(name)}</bdi></span>'
            f'<span class="track bare"><span class="whole" style="width:{whole:.2f}%">'
            f'<span class="part" style="width:{min(part, 100.0):.2f}%"></span></span></span>'
            f'<span class="value">{text}</span></div>'
        )
    return f'<div class="bars widths">{"".join(rows)}</div>'


def layers_plot(report: Mapping[str, Any]) -> str:
    """Returns a bar per layer: its time in the pruned network, in front of that in the dense one."""
    rows = [row for row in report.get("layers") or [] if isinstance(row, Mapping)]
    times = [(str(row.get("layer")), number(row, "dense_us"), number(row, "pruned_us")) for row in rows]
    largest = max((us for _, *both in times for us in both if us is not None), default=0.0)
    if largest <= 0:
        return ""
    bars = []
    for name, dense, pruned in times:
        before, after = (100 * (us or 0.0) / largest for us in (dense, pruned))
        bars.append(
            f'<div class="row"><span class="name mono"><bdi>{escape(name)}</bdi></span>'
            f'<span class="track bare"><span class="over" style="width:{before:.2f}%"></span>'
            f'<span class="over part" style="width:{after:.2f}%"></span></span>'
            f'<span class="value">{_micro(pruned)} / {_micro(dense)}</span></div>'
        )
    return f'<div class="bars widths">{"".join(bars)}</div>'


def pareto_plot(report: Mapping[str, Any]) -> str:
    """Returns the share of the scores that the best selection keeps at each latency, and the run's own network."""
    found = report.get("pareto") or {}
    chosen = found.get("run") or {}
    return chart(
        [
            Series(
                "Best selection",
                _points(found.get("points") or [], "share", "kept"),
                "predicted",
                marker="dot",
            ),
            Series("This run", _points([chosen], "share", "kept"), "pruned", "points", "square"),
        ],
        x_label="share of the dense latency",
        y_label="Share of the scores kept",
        form=_share,
        x_form=_share,
    )


def accuracy_plot(report: Mapping[str, Any]) -> str:
    """Returns top-1 accuracy over steps, dense and pruned."""
    return chart(
        [Series(name, _history(report, side, "accuracy"), side, marker="dot") for side, name in SIDES],
        x_label="training step",
        y_label="Top-1 accuracy",
        form=lambda y: f"{100 * y:.4g}%",
    )


def loss_plot(report: Mapping[str, Any]) -> str:
    """Returns the training loss over steps, dense and pruned."""
    return chart(
        [Series(name, _history(report, side, "loss"), side, marker="dot") for side, name in SIDES],
        x_label="training step",
        y_label="Training loss",
        form=lambda y: f"{y:.3g}",
    )


def events_plot(report: Mapping[str, Any]) -> str:
    """Returns the predicted latency of the active network over steps, with every prune and grow."""
    events = [e for e in report.get("events") or [] if isinstance(e, Mapping)]
    used = _points(events, "step", "used_us")
    if not used:
        return ""
    budget = _points(events, "step", "budget_us")
    last = max([x for x, _ in used] + [x for x, _ in _history(report, "pruned", "accuracy")])
    target = []
    for event in events:
        step, whole, omega = (number(event, key) for key in ("step", "budget_us", "omega_us"))
        if event.get("event") == "prune" and step is not None and whole is not None and omega is not None:
            target.append((step, whole - omega))
    series = [
        Series("Active network", [*used, (last, used[-1][1])], "pruned", "step"),
        Series("Budget Ψ", [*budget[:1]], "limit", "rule"),
        Series("Prune target Ψ − Ω", target, "target", "points", "dash"),
    ]
    for kind, marker in EVENTS:
        points = _points([e for e in events if e.get("event") == kind], "step", "used_us")
        series.append(Series(kind.capitalize(), points, kind, "points", marker))  # type: ignore[arg-type]
    return chart(series, x_label="training step", y_label="Predicted latency", form=latency)


def loop_plot(report: Mapping[str, Any]) -> str:
    """Returns predicted and measured latency of each round of the closed loop, and the range that ends it."""
    rounds = [r for r in report.get("closed_loop") or [] if isinstance(r, Mapping)]
    bands = []
    if rounds:
        low, high = number(rounds[-1], "lower_us"), number(rounds[-1], "upper_us")
        if low is not None and high is not None:
            bands.append(Band("Accepted range", low, high, "accepted"))
    return chart(
        [
            Series("Predicted", _points(rounds, "round", "predicted_us"), "predicted", marker="square"),
            Series("Measured", _points(rounds, "round", "measured_us"), "pruned", marker="dot"),
        ],
        x_label="round",
        y_label="Latency of the candidate",
        form=latency,
        bands=bands,
        whole_x=True,
    )


def stages_plot(report: Mapping[str, Any]) -> str:
    """Returns a bar per stage of the run: its wall time."""
    spent = {name: number(report, "seconds_by_stage", name) for name in report.get("seconds_by_stage") or {}}
    largest = max((value for value in spent.values() if value is not None), default=0.0)
    if largest <= 0:
        return ""
    bars = "".join(
        _bar(name.capitalize(), value, largest, "dense", seconds(value)) for name, value in spent.items()
    )
    return f'<div class="bars">{bars}</div>'


def _bar(name: str, value: float | None, largest: float, css: str, text: str) -> str:
    share = 0.0 if value is None else 100 * value / largest
    return (
        f'<div class="row"><span class="name">{escape(name)}</span><span class="track">'
        f'<span class="fill {css}" style="width:{share:.2f}%"></span></span>'
        f'<span class="value">{escape(text)}</span></div>'
    )


def _micro(value_us: float | None) -> str:
    """Returns µs without their unit: whole ones, tenths below ten."""
    return "–" if value_us is None else f"{value_us:,.{0 if value_us >= 10 else 1}f}"


def _share(value: float) -> str:
    return f"{100 * value:.4g}%"


def _history(report: Mapping[str, Any], side: str, key: str) -> list[tuple[float, float]]:
    return _points((report.get("history") or {}).get(side) or [], "step", key)


def _points(entries: Sequence[Any], x: str, y: str) -> list[tuple[float, float]]:
    """Returns (x, y) of the entries that have both."""
    pairs = ((number(entry, x), number(entry, y)) for entry in entries)
    return [(a, b) for a, b in pairs if a is not None and b is not None]
