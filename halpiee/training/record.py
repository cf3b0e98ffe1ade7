"""A run's report: one flat dict of numbers, written as report.json and read by every table, page and check."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from halpiee.analysis.flops import FlopsMeter
from halpiee.methods.event import Event
from latency.predict import Calibration

__all__ = ["SCHEMA", "events", "line_values", "promise", "train_flops"]

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


def line_values(calibration: Calibration) -> dict[str, Any]:
    """Returns a calibration as JSON values, with its worst residual."""
    return {**asdict(calibration), "worst": calibration.worst}


def promise(measured_us: float, budget_us: float, next_step_us: float) -> dict[str, Any]:
    """Returns whether a measured latency keeps the budget and uses it.

    Kept: ``measured ≤ 1.03 · budget``. Used: ``measured ≥ min(0.93, 1 − 1.5 · next_step/budget) · budget``; with
    everything active there is no next step and nothing more to use.
    """
    step = 0.0 if math.isnan(next_step_us) else next_step_us / budget_us
    share = measured_us / budget_us
    least = 0.0 if math.isnan(next_step_us) else min(0.93, 1 - 1.5 * step)
    met = least <= share <= 1.03
    text = f"measured {measured_us:.0f} µs is {share:.1%} of the budget of {budget_us:.0f} µs"
    if share > 1.03:
        text += ": over it (at most 103% is promised)"
    elif share < least:
        text += f": more than a step is left unused (at least {least:.1%} is promised)"
    return {"met": met, "text": text, "share": share, "least": least, "most": 1.03}


def train_flops(
    log: Sequence[tuple[int, str, Mapping[str, int]]],
    macs: Callable[[Mapping[str, int]], int],
    dense_steps: int,
) -> dict[str, float]:
    """Returns the training FLOPs as a multiple of the dense network's, by both accountings.

    Args:
        log: (steps, ``train`` | ``explore`` | ``compact``, active units per group).
        macs: counts → multiply-accumulates of one forward; no counts: dense.
        dense_steps: steps of the dense training it is compared with.
    """
    meter, dense = FlopsMeter(), macs({})
    for steps, kind, counts in log:
        if kind == "explore":
            meter.explore(steps, macs(counts), dense)
        else:
            meter.train(steps, macs(counts))
    return meter.ratio(dense, dense_steps)
