"""A run's report: one flat dict of numbers, written as report.json and read by every table, page and check."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from halpiee.analysis.flops import FlopsMeter
from halpiee.methods.history import Event
from latency.predict import Calibration

__all__ = [
    "SCHEMA",
    "effective_macs",
    "events",
    "line_of",
    "line_values",
    "plain_events",
    "promise",
    "promise_of_units",
    "train_flops",
]

SCHEMA = 1


def events(reports: Iterable[Event]) -> list[dict[str, Any]]:
    """Returns the events of a latency budget as JSON values, in µs."""
    return [
        {
            "step": e.step,
            "event": e.event,
            "budget_us": e.budget,
            "used_us": e.used,
            "omega_us": e.omega,
            "gap": e.gap,
            "slack_us": e.slack,
            "next_step_us": e.next_step,
            "iou": e.iou,
            "skipped": e.skipped,
            "counts": e.counts,
        }
        for e in reports
    ]


def plain_events(reports: Iterable[Event]) -> list[dict[str, Any]]:
    """Returns the events of a budget of units as JSON values; nothing in them is a latency."""
    return [
        {
            "step": e.step,
            "event": e.event,
            "budget_us": None,
            "used_us": None,
            "omega_us": None,
            "gap": None,
            "slack_us": None,
            "budget": e.budget,
            "used": e.used,
            "omega": e.omega,
            "iou": e.iou,
            "skipped": e.skipped,
            "counts": e.counts,
        }
        for e in reports
    ]


def line_values(calibration: Calibration) -> dict[str, Any]:
    """Returns a calibration as JSON values, with its worst residual."""
    return {**asdict(calibration), "worst": calibration.worst}


def line_of(values: Mapping[str, Any]) -> Calibration:
    """Returns the calibration that some JSON values hold."""

    def pairs(found: Iterable[Sequence[float]]) -> Any:
        return tuple((x, y) for x, y in found)

    bend = values.get("bend")
    return Calibration(values["a_us"], values["b"], pairs(values["points"]), bend and pairs(bend))


def promise(
    measured_us: float, budget_us: float, next_step_us: float, *, least: float | None = None
) -> dict[str, Any]:
    """Returns whether a measured latency keeps the budget and uses it.

    Kept: ``measured ≤ 1.03 · budget``. Used: ``measured ≥ min(0.93, 1 − 1.5 · next_step/budget) · budget``; with
    everything active there is no next step and nothing more to use. ``least`` is the share to use instead.
    """
    step = 0.0 if math.isnan(next_step_us) else next_step_us / budget_us
    share = measured_us / budget_us
    if least is None:
        least = 0.0 if math.isnan(next_step_us) else min(0.93, 1 - 1.5 * step)
    met = least <= share <= 1.03
    text = f"measured {measured_us:.0f} µs is {share:.1%} of the budget of {budget_us:.0f} µs"
    if share > 1.03:
        text += ": over it (at most 103% is promised)"
    elif share < least:
        text += f": more than a step is left unused (at least {least:.1%} is promised)"
    return {"met": met, "text": text, "share": share, "least": least, "most": 1.03}


def promise_of_units(kept: int, asked: int, total: int) -> dict[str, Any]:
    """Returns whether exactly as many units are kept as were asked for."""
    share = kept / total
    text = f"kept {kept:,} of {total:,}, {1 - share:.2%} removed"
    if kept != asked:
        text += f"; {asked:,} were asked for"
    return {"met": kept == asked, "text": text, "share": kept / asked, "least": 1.0, "most": 1.0}


def effective_macs(macs: Mapping[str, int], density: Mapping[str, float]) -> int:
    """Returns the multiply-accumulates with a weight that is not zero.

    Args:
        macs: layer → those of its dense forward; a second call of a layer is ``layer#2``.
        density: weight or layer name → share that is active; a layer that is not named is dense.
    """
    share = {name.removesuffix(".weight"): d for name, d in density.items()}
    return round(sum(n * share.get(name.partition("#")[0], 1.0) for name, n in macs.items()))


def train_flops(
    log: Sequence[tuple[int, str, Mapping[str, int]]],
    macs: Callable[[Mapping[str, int]], float],
    dense_steps: int,
    *,
    compact_macs: float | None = None,
    paper_charges_gradient: bool = True,
) -> dict[str, float]:
    """Returns the training FLOPs as a multiple of the dense network's, by both accountings.

    Args:
        log: (steps, kind, active units per name), see ``halpiee.methods.phases.Train.kind``.
        macs: active units → multiply-accumulates of one forward; none named: dense.
        dense_steps: steps of the dense training it is compared with; what the log lacks of them was trained compact.
        compact_macs: of the compact network's forward.
        paper_charges_gradient: whether the paper charges dense weight gradients that growing reads.
    """
    meter, dense = FlopsMeter(), macs({})
    for steps, kind, counts in log:
        active = macs(counts)
        if kind == "explore":
            meter.explore(steps, active, dense)
        elif kind == "explore_all":
            meter.add(steps, dense, dense, dense)
        elif kind == "gradient":
            meter.add(
                steps, active, active, dense, paper_macs=None if paper_charges_gradient else 3.0 * active
            )
        else:
            meter.train(steps, active)
    rest = dense_steps - sum(steps for steps, _, _ in log)
    if rest > 0:
        meter.train(rest, dense if compact_macs is None else compact_macs)
    return meter.ratio(dense, dense_steps)
