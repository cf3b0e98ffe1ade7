"""Reads ``report.json``, and writes its numbers as text for the table on screen, the page and the Markdown.

Any value may be missing (an interrupted run, no baseline) or not finite: it becomes a dash, never a guess. A
latency is written with the digits that its spread supports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict

from latency.files import read_json, sound

DASH = "–"
LARGEST = 1e18
"""What is larger is no number of a run, and what is smaller than its inverse is zero: no axis has room for it."""


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    label: str  # what is compared
    dense: str = DASH  # its value for the dense network
    pruned: str = DASH  # for the pruned one
    ratio: str = DASH  # pruned over dense, or the difference in percentage points


def number(report: Mapping[str, Any], *path: str | int) -> float | None:
    """Returns a number of a report, ``None`` where it is missing, not one, or beyond all bounds."""
    value: Any = report
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
        return None
    return float(value) if abs(value) * LARGEST > 1 else 0.0


def title(report: Mapping[str, Any]) -> str:
    """Returns the one line that says what the run was."""
    budget = _text(report, "budget")
    with suppress(ValueError):  # a time with its unit stays as it was given
        budget = f"{100 * float(budget):g}% of the dense latency"
    return f"{_text(report, 'model')} on {_text(report, 'data')}, budget {budget}"


def figure(report: Mapping[str, Any]) -> str:
    """Returns what the run's ``accuracy`` is: that of classes, or what another task counts."""
    found = report.get("figure")
    return found if isinstance(found, str) and found else "Top-1 accuracy"


def unit_of(*values_us: float | None) -> str:
    """Returns the unit of latencies that stand side by side: ``ms`` if the largest is 10 ms or more, else ``µs``."""
    return "ms" if max((abs(us) for us in values_us if us is not None), default=0.0) >= 1e4 else "µs"


def latency(value_us: float | None, spread_us: float | None = None, unit: str | None = None) -> str:
    """Returns a latency with the digits its spread supports: its two leading ones, or else three of its own.

    Args:
        value_us: in µs.
        spread_us: its interquartile range in µs.
        unit: ``µs`` or ``ms``; None: by the value.
    """
    if value_us is None:
        return DASH
    unit = unit or unit_of(value_us)
    scale = 1e3 if unit == "ms" else 1.0
    value = value_us / scale
    if spread_us is not None and spread_us > 0:
        decimals = 1 - math.floor(math.log10(spread_us / scale))
    else:
        decimals = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(decimals, 0), 3)}f} {unit}"


def percent(share: float | None, decimals: int = 2) -> str:
    """Returns a fraction as a percentage."""
    return DASH if share is None else f"{100 * share:.{decimals}f}%"


def count(value: float | None) -> str:
    """Returns a count with three digits and a unit: 40.8 M."""
    if value is None:
        return DASH
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            scaled = value / scale
            return f"{scaled:.{max(0, 2 - math.floor(math.log10(abs(scaled))))}f} {unit}"
    return f"{value:.0f}"


def seconds(value: float | None) -> str:
    """Returns a duration: 8.3 s, 2 min 05 s, 1 h 10 min."""
    if value is None:
        return DASH
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def comparison(report: Mapping[str, Any]) -> list[Row]:
    """Returns dense | pruned | ratio, row by row; top-5 only where there are more than five classes."""

    def get(*path: str | int) -> float | None:
        return number(report, *path)

    dense_us, budget_us, predicted_us = get("dense_us"), get("budget_us"), get("predicted_us")
    unit = unit_of(dense_us, get("measured_us"), budget_us)
    rows = [
        Row("Latency, budget", DASH, latency(budget_us, None, unit), _ratio(budget_us, dense_us)),
        Row("Latency, predicted", DASH, predicted(report, unit), _ratio(predicted_us, dense_us)),
        Row(
            "Latency, measured",
            _with_spread(dense_us, get("dense_iqr_us"), unit),
            _with_spread(get("measured_us"), get("measured_iqr_us"), unit),
            _ratio(get("measured_us"), dense_us),
        ),
        Row("Speed-up, side by side", DASH, _interval(report), DASH),
        Row("Images per second", *_pair(get("fps_dense"), get("fps_pruned"), "{:,.0f}".format)),
        Row("MACs per image", *_pair(get("macs_dense"), get("macs_pruned"), count)),
        Row("Parameters", *_pair(get("params_dense"), get("params_pruned"), count)),
        Row(figure(report), *_shares(get("accuracy_dense"), get("accuracy_pruned"))),
    ]
    if get("top5_dense") is not None or get("top5_pruned") is not None:
        rows.append(Row("Top-5 accuracy", *_shares(get("top5_dense"), get("top5_pruned"))))
    for accounting in ("paper", "strict"):
        cost = get("train_flops_ratio", accounting)
        known = (DASH, DASH) if cost is None else ("1", f"{cost:.3f}")
        rows.append(Row(f"Training FLOPs, {accounting}", *known, _times(cost)))
    spent = [get("seconds_training", side) or get("seconds_by_stage", side) for side in ("dense", "pruned")]
    rows.append(Row("Training time", *_pair(spent[0], spent[1], seconds)))
    return rows


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what else a reader wants to know, as (name, value)."""

    def get(*path: str | int) -> float | None:
        return number(report, *path)

    rel, largest = get("onnx_rel_l2"), get("onnx_max_abs_error")
    gap, step, worst = get("gap"), get("next_step_us"), get("calibration", "worst")
    network = [get("calibration", name) for name in ("a_us", "b")]
    bent = get("calibration", "bend", 0, 1)
    items = [
        ("Method", _text(report, "method")),
        ("Measured with", _text(report, "backend")),
        ("Precision", _text(report, "precision")),
        ("Batch", _text(report, "batch")),
        ("Threads", _text(report, "threads")),
        ("ONNX against PyTorch, relative L2", DASH if rel is None else f"{rel:.1e}"),
        ("ONNX against PyTorch, largest difference", DASH if largest is None else f"{largest:.1e}"),
        ("Next step of the selection", latency(step)),
        ("Certified gap of the selection", DASH if gap is None else f"{100 * gap:.2g}%"),
        (
            "Network = a + b · sum of layers",
            DASH
            if None in network
            else f"a = {latency(network[0])}, b = {network[1]:.3f}"
            + ("" if bent is None else f" up to {latency(bent)}, a line to the dense network beyond"),
        ),
        ("Worst residual of that fit", percent(worst, 1)),
        ("Dense file", _file(report, "dense")),
        ("Pruned file", _file(report, "pruned")),
        ("Whole run", seconds(get("seconds"))),
    ]
    if report.get("weights_dense") == "initial":
        items.insert(-3, ("Weights of the dense file", "initial: no dense network was trained"))
    batch = get("fixed_batch")
    if batch is not None:
        items.insert(-3, ("Batches that the files take", f"{batch:g} only"))
    zeros = get("zeros", "pruned", "share")
    if zeros is not None and zeros >= 0.01:
        items.insert(
            -1, ("Zeros in the pruned file", f"{percent(zeros, 1)} of the weights; no speed from them here")
        )
    return [(name, value) for name, value in items]


def _file(report: Mapping[str, Any], side: str) -> str:
    whole, zipped = (number(report, "zeros", side, key) for key in ("size_bytes", "zipped_bytes"))
    return DASH if whole is None or zipped is None else f"{whole / 1e6:.2f} MB, zipped {zipped / 1e6:.2f} MB"


def _text(report: Mapping[str, Any], key: str) -> str:
    value = report.get(key)
    return DASH if value is None or (isinstance(value, float) and not math.isfinite(value)) else str(value)


def _with_spread(value_us: float | None, spread_us: float | None, unit: str) -> str:
    if value_us is None or spread_us is None:
        return latency(value_us, None, unit)
    text, unit = latency(value_us, spread_us, unit).rsplit(" ", 1)
    scale = 1e3 if unit == "ms" else 1.0
    decimals = len(text.partition(".")[2])
    return f"{text} {unit} (IQR {spread_us / scale:.{decimals}f})"


def predicted(report: Mapping[str, Any], unit: str) -> str:
    """Returns the predicted latency with the range that holds nine of ten measurements, where the run knows one."""
    values = (number(report, f"predicted_{which}us") for which in ("", "low_", "high_"))
    us, low, high = (latency(value, None, unit).removesuffix(f" {unit}") for value in values)
    return us if us == DASH else f"{us} {unit}" + ("" if DASH in (low, high) else f" (90%: {low} to {high})")


def _interval(report: Mapping[str, Any]) -> str:
    ratio, low, high = (
        number(report, "speedup"),
        number(report, "speedup_ci", 0),
        number(report, "speedup_ci", 1),
    )
    if ratio is None:
        return DASH
    return _times(ratio) if low is None or high is None else f"{_times(ratio)} (95%: {low:.2f} to {high:.2f})"


def _pair(dense: float | None, pruned: float | None, form: Any) -> tuple[str, str, str]:
    shown = (DASH if value is None else form(value) for value in (dense, pruned))
    return *shown, _ratio(pruned, dense)  # type: ignore[return-value]


def _shares(dense: float | None, pruned: float | None) -> tuple[str, str, str]:
    if dense is None or pruned is None:
        return percent(dense), percent(pruned), DASH
    points = 100 * (pruned - dense)
    return percent(dense), percent(pruned), f"{'−' if points < 0 else '+'}{abs(points):.2f} points"


def _ratio(pruned: float | None, dense: float | None) -> str:
    return DASH if pruned is None or not dense else _times(pruned / dense)


def _times(ratio: float | None) -> str:
    return DASH if ratio is None else f"{ratio:.2f}×"


class Promise(TypedDict, total=False):
    """Whether the run kept what it promised, and the sentence that says so."""

    met: bool | None
    text: Required[str]


class Pareto(TypedDict, total=False):
    """The curve of other budgets, or why there is none."""

    skipped: str | None
    points: list[dict[str, Any]] | None
    uniform: list[dict[str, Any]] | None
    run: dict[str, Any] | None


class History(TypedDict, total=False):
    """One entry per epoch, of each side."""

    dense: list[dict[str, Any]] | None
    pruned: list[dict[str, Any]] | None


class Prepared(TypedDict, total=False):
    """What images were brought to; all of it, or the classes alone."""

    resize: list[int] | None
    size: list[int]
    mean: list[float]
    std: list[float]
    classes: list[str]


class Report(TypedDict, total=False):
    """What is read of a report by more than its number."""

    promise: Required[Promise]
    widths: dict[str, Any] | None
    widths_dense: dict[str, Any] | None
    layers: list[dict[str, Any]] | None
    frozen: dict[str, Any] | None
    densities: dict[str, Any] | None
    events: list[dict[str, Any]] | None
    closed_loop: list[dict[str, Any]] | None
    history: History | None
    pareto: Pareto | None
    seconds_by_stage: dict[str, Any] | None
    files: dict[str, Any] | None
    environment: dict[str, Any] | None
    preprocess: Prepared | None


def read_report(folder: Path) -> dict[str, Any]:
    """Returns the report of a finished run.

    Args:
        folder: of the run.

    Raises:
        UsageError: it is no report of a run; the message names the field.
    """
    path = folder / "report.json"
    advice = f"delete it, and `halpiee train --resume --out {folder}` writes it again"
    what = f"{path} is no report of a run: it"
    report = read_json(path, dict[str, Any], what=what, advice=advice)
    sound(report, Report, what=what, advice=advice)
    return report
