"""What would other budgets have kept? The whole curve of a run's network, from its own profile and trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import latency
from halpiee.errors import HalpieeError
from halpiee.saliency.magnitude import Magnitude
from halpiee.selection.cost import LatencyCost
from halpiee.selection.limits import pareto
from halpiee.sparsity.granularity import Channels
from halpiee.structure.plan import Plan
from halpiee.training.records import read_calibration

if TYPE_CHECKING:
    from halpiee.training.run import Run

__all__ = ["curve"]

SHARES = tuple(0.1 + 0.05 * i for i in range(19))
"""Budgets along the curve, as shares of the dense latency."""


def curve(run: Run) -> dict[str, Any]:
    """Returns the best selections of many budgets and where the run's own network lies, or why there are none.

    Scores are the magnitudes of the dense network's trained weights: the same for every point, and known for every
    channel; the run itself chose by what it met while training.

    Args:
        run: finished, with its profile, calibration, plan and dense weights in the folder.

    Returns:
        ``{"scores", "points": [{"share", "kept", "gap"}], "run": {"share", "kept"}}``, shares of the dense latency and
        of the summed scores, or ``{"skipped": reason}``.
    """
    if not (run.folder / "dense.safetensors").is_file():
        return {"skipped": "the run has no trained dense network that channels could be scored on"}
    try:
        cost = _cost(run)
        model = run.dense()
        units = Channels(model, run.structure, trainable_only=False)
        scores = Magnitude()(units, dict(model.named_parameters()).get, lambda _: None)
        points = pareto(scores, cost, [share * cost.dense_us for share in SHARES])
        plan = Plan.load(run.folder / "plan.json")
    except HalpieeError as error:
        return {"skipped": str(error)}
    total = sum(float(score.double().sum()) for score in scores.values())
    if not total:
        return {"skipped": "the magnitudes of the dense network's weights are all zero"}
    kept = sum(
        float(score.double()[plan.keep[name]].sum()) for name, score in scores.items() if name in plan.keep
    )
    kept += sum(float(score.double().sum()) for name, score in scores.items() if name not in plan.keep)
    return {
        "scores": "magnitudes of the dense network's trained weights",
        "points": [
            {"share": p.latency_us / cost.dense_us, "kept": p.value / total, "gap": p.gap} for p in points
        ],
        "run": {"share": cost.total_us(plan.counts) / cost.dense_us, "kept": kept / total},
    }


def _cost(run: Run) -> LatencyCost:
    """Returns the run's latency model, calibrated as it was before training."""
    profile = Path(run.settings.profile) if run.settings.profile else run.folder / "profile.jsonl"
    cost = LatencyCost(run.structure, latency.Profile.load(profile))
    stored = run.folder / "calibration.json"
    if not stored.is_file():
        return cost
    return cost.with_calibration(read_calibration(stored))
