"""The charts of a report as SVG for a web page, and the curve of ``halpiee plan --plot`` as a file, by matplotlib.

Colours are names of CSS variables of the page (``templates/style.css``): the same chart follows light and dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halpiee.report.values import figure, latency, number
from latency.files import write

if TYPE_CHECKING:
    from torch import Tensor

    from halpiee.selection.cost import LatencyCost
    from halpiee.structure.plan import Selection


COLOURS = [
    "ink",
    "soft",
    "line",
    "dense",
    "pruned",
    "predicted",
    "uniform",
    "limit",
    "prune",
    "grow",
    "init",
    "shrink",
    "target",
    "accepted",
    "other",
]
"""CSS variables of the page that a chart may use."""

_STAND_IN = {name: f"#0{i:x}00{i:02x}" for i, name in enumerate(COLOURS, 1)}
"""Colour that matplotlib writes for each of them; replaced by ``var(--name)`` afterwards."""

MARKERS = {"dot": "o", "up": "^", "down": "v", "square": "s", "dash": "_", "diamond": "D"}

Marker = Literal["dot", "up", "down", "square", "dash", "diamond", ""]

SIDES = (("dense", "Dense"), ("pruned", "Pruned"))
EVENTS = (("init", "square"), ("prune", "down"), ("grow", "up"), ("shrink", "square"))


@dataclass(frozen=True)
class Series:
    """One set of points."""

    name: str  # for the legend and the table of values
    points: Sequence[tuple[float, float]]  # (x, y) in order of x
    colour: str  # one of ``COLOURS``
    # joined by lines, by steps that hold a value until the next, a rule at the first point's y, or not joined
    kind: Literal["line", "step", "rule", "points"] = "line"
    marker: Marker = ""  # at every point; empty: none
    dashed: bool = False
    labels: Sequence[str] = ()  # names of the points, beside them


@dataclass(frozen=True)
class Band:
    """A range of y that is shaded across the chart; infinite ends reach the axes."""

    name: str
    low: float
    high: float
    colour: str


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
    """Returns an HTML figure: a legend, an SVG that scales with its container, and a table of the values, folded.

    Args:
        series: what is drawn, in drawing order; those without points are left out.
        x_label: of the x axis, with its unit.
        y_label: of the y axis, with its unit; also the chart's name for screen readers.
        form: y → text of a tick or a value.
        x_form: likewise for x.
        bands: drawn behind everything.
        whole_x: whether ticks of x are whole numbers.

    Returns:
        HTML; empty where no series has points.
    """
    series = [s for s in series if s.points]
    if not series:
        return ""
    svg = _svg(series, x_label, form, x_form, bands, whole_x)
    keys = "".join(
        [_key(f"mark {s.marker or 'rule'}", s.colour, s.name) for s in series]
        + [_key("swatch", band.colour, band.name) for band in bands]
    )
    named = [
        (", ".join(filter(None, (s.name, label))), p)
        for s in series
        for p, label in zip_longest(s.points, s.labels)
    ]
    values = "".join(f"<li>{escape(f'{name}: {form(y)} at {x_form(x)}')}</li>" for name, (x, y) in named)
    label = escape(f"{y_label} over {x_label}", quote=True)
    return (
        f'<figure><figcaption><span class="y">{escape(y_label)}</span>{keys}</figcaption>'
        f'{svg.replace("<svg ", f"""<svg class="chart" role="img" aria-label="{label}" """, 1)}'
        f"<details><summary>values</summary><ul>{values}</ul></details></figure>"
    )


def _key(look: str, colour: str, name: str) -> str:
    """Returns one entry of a legend."""
    return f'<span class="key"><i class="{look}" style="color:var(--{colour})"></i>{escape(name)}</span>'


def _svg(
    series: Sequence[Series],
    x_label: str,
    form: Callable[[float], str],
    x_form: Callable[[float], str],
    bands: Sequence[Band],
    whole_x: bool,
) -> str:
    """Returns the SVG of a chart, without anything that is meant for a file of its own."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    soft, line = _STAND_IN["soft"], _STAND_IN["line"]
    figure = Figure(figsize=(5.8, 2.9), layout="constrained")
    axes = figure.add_subplot()
    for band in bands:
        low, high = (end if math.isfinite(end) else None for end in (band.low, band.high))
        ends = [y for s in series for _, y in s.points]
        axes.axhspan(
            min(ends) if low is None else low,
            max(ends) if high is None else high,
            facecolor=_STAND_IN[band.colour],
            alpha=0.14,
            clip_on=False,
        )
    for s in series:
        xs, ys = zip(*s.points, strict=True)
        look: dict[str, Any] = {"color": _STAND_IN[s.colour], "linewidth": 1.8, "clip_on": False}
        if s.dashed or s.kind == "rule":
            look["linestyle"] = (0, (4, 3))
        if s.kind == "rule":
            axes.axhline(ys[0], **look)
            continue
        look |= {"marker": MARKERS.get(s.marker, ""), "markersize": 5.5 if s.marker != "dash" else 9}
        if s.kind == "points":
            look["linestyle"] = "none"
        axes.plot(xs, ys, drawstyle="steps-post" if s.kind == "step" else "default", zorder=3, **look)
        for point, label in zip(s.points, s.labels, strict=False):
            axes.annotate(label, point, (6, -3), textcoords="offset points", color=soft)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: x_form(x)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: form(y)))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole_x, steps=[1, 2, 5, 10]))
    whole = sorted({x for s in series for x, _ in s.points})
    if whole_x and len(whole) <= 8:
        axes.set_xticks(whole)
        axes.set_xlim(whole[0] - 0.5, whole[-1] + 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_xlabel(x_label, color=soft)
    axes.tick_params(colors=soft, length=0)
    axes.grid(axis="y", color=line, linewidth=0.9, clip_on=False)
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    if all(s.kind == "points" for s in series):
        axes.margins(0.1, 0.15)
    axes.set_facecolor("none")
    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": x_label + "".join(s.name for s in series)}):
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _for_page(out.getvalue())


def _for_page(text: str) -> str:
    """Returns matplotlib's SVG without its header, metadata, global styles and unused ids, in the page's colours."""
    text = text[text.index("<svg") :]
    for pattern in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->", r"\s*<defs>\s*</defs>"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    text = re.sub(r' (?:xmlns(?::\w+)?|version|clip-path)="[^"]*"', "", text).replace("xlink:href", "href")
    used = set(re.findall(r'href="#([^"]+)"', text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    head, rest = text.split(">", 1)
    text = re.sub(r' (?:width|height)="[^"]*"', "", head) + ">" + rest
    for name, colour in _STAND_IN.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def pareto_chart(report: Mapping[str, Any]) -> str:
    """Returns the share of the scores kept at each latency: the best selection, uniform widths, the run's network."""
    found = report.get("pareto") or {}
    return chart(
        [
            Series(
                "Uniform widths", _points(found.get("uniform") or [], "share", "kept"), "uniform", dashed=True
            ),
            Series(
                "Best selection",
                _points(found.get("points") or [], "share", "kept"),
                "predicted",
                marker="dot",
            ),
            Series(
                "This run", _points([found.get("run") or {}], "share", "kept"), "pruned", "points", "square"
            ),
        ],
        x_label="share of the dense latency",
        y_label="Share of the scores kept",
        form=_share,
        x_form=_share,
    )


def tradeoff_chart(reports: Mapping[str, Mapping[str, Any]], this: str | None = None) -> str:
    """Returns measured latency against accuracy of several runs; dense and uniform networks have marks of their own.

    Args:
        reports: name of a run → its report. Runs of other networks or data belong into a chart of their own.
        this: the run whose page this is; None: all are alike.
    """
    found: dict[str, dict[tuple[float, float], str]] = {"dense": {}, "uniform": {}, "others": {}, "own": {}}
    for name, report in reports.items():
        kind = "uniform" if report.get("method") == "small-dense" else "others"
        found["dense"] |= dict.fromkeys(_points([report], "dense_us", "accuracy_dense"), "")
        after = _points([report], "measured_us", "accuracy_pruned")
        found["own" if name == this else kind] |= dict.fromkeys(after, "" if name == this else name)
    others = ("Pruned", "pruned") if this is None else ("Other runs", "other")

    def shown(kind: str, name: str, colour: str, marker: Marker) -> Series:
        points = sorted(found[kind])
        return Series(name, points, colour, "points", marker, labels=[found[kind][point] for point in points])

    return chart(
        [
            shown("dense", "Dense", "dense", "dot"),
            shown("uniform", "Uniform widths", "uniform", "diamond"),
            shown("others", *others, "square"),
            shown("own", "This run", "pruned", "square"),
        ],
        x_label="measured latency",
        y_label=figure(next(iter(reports.values()), {})),
        form=lambda y: f"{100 * y:.4g}%",
        x_form=latency,
    )


def accuracy_chart(report: Mapping[str, Any]) -> str:
    """Returns top-1 accuracy over steps, dense and pruned."""
    return chart(
        [Series(name, _history(report, side, "accuracy"), side, marker="dot") for side, name in SIDES],
        x_label="training step",
        y_label=figure(report),
        form=lambda y: f"{100 * y:.4g}%",
    )


def loss_chart(report: Mapping[str, Any]) -> str:
    """Returns the training loss over steps, dense and pruned."""
    return chart(
        [Series(name, _history(report, side, "loss"), side, marker="dot") for side, name in SIDES],
        x_label="training step",
        y_label="Training loss",
        form=lambda y: f"{y:.3g}",
    )


def events_chart(report: Mapping[str, Any]) -> str:
    """Returns predicted latency, or units kept, of the active network over steps, with every prune and grow."""
    events = [e for e in report.get("events") or [] if isinstance(e, Mapping)]
    timed = bool(_points(events, "step", "used_us"))
    unit = "_us" if timed else ""
    used = _points(events, "step", f"used{unit}")
    if not used:
        return ""
    last = max([x for x, _ in used] + [x for x, _ in _history(report, "pruned", "accuracy")])
    target = []
    for event in events:
        step, whole, omega = (number(event, key) for key in ("step", f"budget{unit}", f"omega{unit}"))
        if event.get("event") == "prune" and step is not None and whole is not None and omega is not None:
            target.append((step, whole - omega))
    budget = _points(events, "step", f"budget{unit}")
    series = [
        Series("Active network", [*used, (last, used[-1][1])], "pruned", "step"),
        Series("Budget Ψ", budget[:1], "limit", "rule")
        if len({y for _, y in budget}) == 1
        else Series("Budget", budget, "limit", "step", dashed=True),
        Series("Prune target Ψ − Ω", target, "target", "points", "dash"),
    ]
    for kind, marker in EVENTS:
        points = _points([e for e in events if e.get("event") == kind], "step", f"used{unit}")
        series.append(Series(kind.capitalize(), points, kind, "points", marker))  # type: ignore[arg-type]
    label = "Predicted latency" if timed else "Units kept"
    return chart(
        series, x_label="training step", y_label=label, form=latency if timed else lambda y: f"{y:,.0f}"
    )


def overlap_chart(report: Mapping[str, Any]) -> str:
    """Returns how much of a mask stays from one change to the next, and of what was grown, over steps."""
    events = [e for e in report.get("events") or [] if isinstance(e, Mapping)]
    return chart(
        [
            Series("Consecutive masks", _points(events, "step", "iou"), "pruned", marker="dot"),
            Series("Survival of what was grown", _points(events, "step", "survival"), "grow", marker="up"),
        ],
        x_label="training step",
        y_label="Share that stays",
        form=lambda y: f"{y:.3g}",
    )


def flops_chart(report: Mapping[str, Any]) -> str:
    """Returns the share of units that is active and the training FLOPs of as many dense steps, over steps."""
    sides = report.get("history")
    entries = sides.get("pruned") if isinstance(sides, Mapping) else None
    found = [e for e in entries or [] if isinstance(e, Mapping)]
    spent = [
        {"step": e.get("step"), "spent": e["train_flops"].get("paper")}
        for e in found
        if isinstance(e.get("train_flops"), Mapping)
    ]
    return chart(
        [
            Series("Active units", _points(found, "step", "density"), "pruned", marker="dot"),
            Series(
                "Training FLOPs so far, of dense", _points(spent, "step", "spent"), "limit", marker="square"
            ),
        ],
        x_label="training step",
        y_label="Share",
        form=lambda y: f"{100 * y:.3g}%",
    )


def loop_chart(report: Mapping[str, Any]) -> str:
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


def draw_curve(
    path: Path,
    points: Sequence[Selection],
    scores: Mapping[str, Tensor],
    cost: LatencyCost,
    *,
    protect: Collection[str],
    chosen: tuple[float, Mapping[str, int]],
    title: str,
) -> None:
    """Draws the share of the scores that each latency keeps into a file, beside uniform networks and one plan.

    Args:
        path: ending in .svg or .png.
        points: the best selections, by latency; their values leave out the groups in ``protect``.
        scores: of every prunable group, [size].
        cost: predicted latency.
        protect: groups that stay whole.
        chosen: latency in µs and counts of the plan.
        title: above the picture.
    """
    from matplotlib.figure import Figure

    total = sum(float(score.double().sum()) for score in scores.values())
    whole = sum(float(scores[name].double().sum()) for name in protect if name in scores)
    same = [
        (cost.total_us(counts), _share_kept(scores, counts)) for counts in _uniform(points, cost, protect)
    ]
    unit, scale = ("ms", 1e-3) if cost.dense_us >= 2000 else ("µs", 1.0)
    dense = cost.dense_us * scale
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(
        [p.budget_us * scale for p in points],
        [(p.value + whole) / total for p in points],
        [(p.upper_bound + whole) / total for p in points],
        color="#c2410c",
        alpha=0.35,
        linewidth=0,
        label=f"what could be missed (at most {max(p.gap for p in points):.2%})",
    )
    lines = (
        ([(p.latency_us, (p.value + whole) / total) for p in points], "o-", "#0b7a75", "joint selection"),
        (same, "s--", "#8694a5", "same share of every group"),
        ([(chosen[0], _share_kept(scores, chosen[1]))], "D", "#c0267e", "this plan"),
    )
    for pairs, look, colour, label in lines:
        if pairs:
            xs, ys = zip(*pairs, strict=True)
            size = 8 if look == "D" else 3.5
            axes.plot(
                [x * scale for x in xs], ys, look, color=colour, markersize=size, linewidth=1.6, label=label
            )
    axes.set(
        xlabel=f"predicted latency ({unit})",
        ylabel="share of all scores kept",
        ylim=(0, 1.03),
        xlim=(0, 1.03 * dense),
    )
    _share_axis(axes, dense)
    axes.legend(loc="lower right", frameon=False)
    figure.suptitle(title, fontsize=11)
    kind, content = path.suffix[1:], io.BytesIO()
    figure.savefig(content, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write(path, content.getvalue())


def _share_kept(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> float:
    """Returns the share of all scores that the best units of each group hold."""
    best = {name: score.double().sort(descending=True).values for name, score in scores.items()}
    total = sum(float(values.sum()) for values in best.values())
    return sum(float(best[name][:k].sum()) for name, k in counts.items()) / total


def _uniform(
    points: Sequence[Selection], cost: LatencyCost, protect: Collection[str]
) -> Iterator[dict[str, int]]:
    """Yields the widest uniform network of each point's budget, where one fits."""
    from halpiee.errors import BudgetError
    from halpiee.selection.choose import uniform

    for point in points:
        with suppress(BudgetError):
            yield uniform(cost, point.budget_us, protect=protect)


def _share_axis(axes: Any, dense: float) -> None:
    """Writes shares on the left axis and, of the dense latency, on an axis at the top."""
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(color="#e2e6eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)

    def share_of(us: Any) -> Any:
        return us / dense

    def time_of(part: Any) -> Any:
        return part * dense

    shares = axes.secondary_xaxis("top", functions=(share_of, time_of))
    shares.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    shares.spines["top"].set_visible(False)
    shares.set_xlabel("share of the dense latency")


def _share(value: float) -> str:
    return f"{100 * value:.4g}%"


def _history(report: Mapping[str, Any], side: str, key: str) -> list[tuple[float, float]]:
    return _points((report.get("history") or {}).get(side) or [], "step", key)


def _points(entries: Sequence[Any], x: str, y: str) -> list[tuple[float, float]]:
    """Returns (x, y) of the entries that have both."""
    pairs = ((number(entry, x), number(entry, y)) for entry in entries)
    return [(a, b) for a, b in pairs if a is not None and b is not None]
