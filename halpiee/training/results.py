"""The last stage: export with proof, time dense and pruned side by side, and write the report.

The report holds a curve, too: what other budgets would have kept of this network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import latency
from halpiee.deploy.calibrate import layer_times, side_by_side, timed
from halpiee.deploy.onnx import PREDICTED, ExportReport, export_onnx, run_metadata, stamp
from halpiee.deploy.sparse import zeros_in
from halpiee.errors import BudgetError, HalpieeError
from halpiee.methods.registry import METHODS
from halpiee.ranges import parse_budget
from halpiee.report import render_html, render_markdown
from halpiee.saliency.magnitude import Magnitude
from halpiee.selection.choose import uniform
from halpiee.selection.cost import LatencyCost
from halpiee.selection.limits import pareto
from halpiee.sparsity.granularity import Channels
from halpiee.structure.explain import explain
from halpiee.structure.groups import Structure, widths
from halpiee.structure.plan import Plan
from halpiee.training import record
from halpiee.training.checkpoint import load_weights, save_json
from halpiee.training.config import Settings
from halpiee.training.job import Run
from halpiee.training.record import read_calibration, read_seconds
from latency.files import write
from latency.timing.benchmark import Comparison


def write_report(run: Run, dense: Mapping[str, Any] | None, pruned: Mapping[str, Any]) -> None:
    """Exports and measures both networks, and writes the report as numbers, page and Markdown.

    The results of the dense stage are ``None`` without a baseline.
    """
    begun = time.perf_counter()
    exported = _export(run)
    notes = [note for done in exported.values() for note in done.notes]
    if not run.has_dense:
        notes.insert(
            0, "no dense network was trained: dense.onnx has its initial weights, and is there to be timed"
        )
    for note in notes:
        run.talk.note(note)
    notes += run.data_notes
    run.talk.note("timing dense and pruned side by side")
    found = _side_by_side(run)
    report = {
        "schema": record.SCHEMA,
        **_asked(run),
        **_latencies(run, found, pruned),
        **_sizes(run, pruned),
        **_trained(run, dense, pruned),
        "onnx_rel_l2": exported["pruned"].rel_l2,
        "onnx_max_abs_error": exported["pruned"].max_abs_error,
        "fixed_batch": exported["pruned"].fixed_batch,
        "pareto": curve(run),
        "layers": layers(run),
        "frozen": frozen(run.structure),
        "densities": densities(run.folder),
        "zeros": {label: asdict(zeros_in(done.path)) for label, done in exported.items()},
        "preprocess": run.data.preprocess,
        "notes": notes,
        "files": _files(run),
    }
    path = run.folder / "seconds.json"
    seconds = read_seconds(path) if path.is_file() else {}
    seconds["export"] = seconds.get("export", 0.0) + time.perf_counter() - begun
    report |= {"seconds": sum(seconds.values()), "seconds_by_stage": seconds}
    plan, digest = run.folder / "plan.json", run.settings.digest
    for label, trained in (("dense", run.has_dense), ("pruned", True)):
        facts = run_metadata(report, plan=plan, run=digest, side=label, trained=trained)
        stamp(run.folder / f"{label}.onnx", facts)
    write(run.folder / "report.html", render_html(report), overwrite=True)
    write(run.folder / "report.md", render_markdown(report), overwrite=True)
    save_json(run.folder / "report.json", report)


def _export(run: Run) -> dict[str, ExportReport]:
    """Exports the dense and the pruned network."""
    models, facts = {"dense": run.dense(), "pruned": run.compact()}, {"run": run.settings.digest}
    return {
        label: export_onnx(model, run.example, run.folder / f"{label}.onnx", overwrite=True, metadata=facts)
        for label, model in models.items()
    }


def _asked(run: Run) -> dict[str, Any]:
    """Returns what was asked for, and where."""
    s = run.settings
    return {
        "model": s.model if s.width is None else f"{s.model} ×{s.width:g}",
        "data": s.data,
        "task": s.task,
        "figure": run.task.title,
        "method": s.method,
        "budget": s.goal,
        "backend": run.target.backend,
        "precision": run.target.dtype,
        "batch": s.batch,
        "threads": s.threads,
        "environment": {key: _words(value) for key, value in run.target.environment.items()},
        "weights_dense": "given" if s.weights else "trained" if run.has_dense else "initial",
        "settings": s.as_dict(),
    }


def _latencies(run: Run, found: Comparison, pruned: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the latencies, measured, predicted and allowed, and whether the promise is kept.

    The machine's clock may have moved since the profile: a share is of the dense latency measured now, and the
    prediction is brought to the same clock.
    """
    s = run.settings
    side = {label: found[label] for label in ("dense", "pruned")}
    dense_us, measured_us = side["dense"].median_us, side["pruned"].median_us
    ratio = found.ratio("dense", "pruned")
    predicted: dict[str, Any] = {"budget_us": None, "predicted_us": None, "next_step_us": None}
    if s.budget is not None:
        drift = dense_us / pruned["dense_us"]
        us, fraction = parse_budget(s.budget)
        budget_us = us if us is not None else (fraction or 1.0) * dense_us
        next_step_us = (math.nan if pruned["next_step_us"] is None else pruned["next_step_us"]) * drift
        predicted = {
            "budget_us": budget_us,
            **{key: pruned[key] * drift for key in PREDICTED if key in pruned},
            "next_step_us": next_step_us,
            "clock_drift": drift,
        }
        # A small dense network is not measured and chosen again: it may fall short of the budget, never pass it.
        # Neither need a network use the budget that another limit holds back.
        held = bool(s.also) and (budget_us - predicted["predicted_us"]) > next_step_us
        least = 0.0 if s.method == "small-dense" or held else None
        kept = record.promise(measured_us, budget_us, next_step_us, least=least)
        for one in pruned.get("limits", []):
            if one["measured"] is not None and one["measured"] > 1.03 * one["most"]:
                text = f"{kept['text']}; {one['limit']}: measured {one['measured']:.0f}, at most {one['most']:.0f}"
                kept = {**kept, "met": False, "text": text}
    else:
        kept = _kept(s, pruned["sparsity"], ratio.median)
    return {
        "dense_us": dense_us,
        **predicted,
        "measured_us": measured_us,
        "dense_iqr_us": side["dense"].iqr_us,
        "measured_iqr_us": side["pruned"].iqr_us,
        "contention": max((m.contention for m in side.values() if m.contention is not None), default=None),
        "clock": side["dense"].clock,
        "speedup": ratio.median,
        "speedup_ci": [ratio.lo, ratio.hi],
        "fps_dense": s.batch * 1e6 / dense_us,
        "fps_pruned": s.batch * 1e6 / measured_us,
        "promise": kept,
    }


def _sizes(run: Run, pruned: Mapping[str, Any]) -> dict[str, Any]:
    """Returns MACs, parameters and widths before and after."""
    counts = pruned["counts"]
    return {
        "macs_dense": run.macs({}),
        "macs_pruned": pruned.get("effective_macs") or run.macs(counts),
        "params_dense": sum(p.numel() for p in run.dense().parameters()),
        "params_pruned": pruned["params"],
        "widths": widths(run.structure, counts),
        "widths_dense": widths(run.structure),
        "sparsity": pruned.get("sparsity"),
    }


def _trained(run: Run, dense: Mapping[str, Any] | None, pruned: Mapping[str, Any]) -> dict[str, Any]:
    """Returns accuracies, FLOPs (three passes for an image's training), histories and events."""
    ratio, whole = pruned["train_flops_ratio"], dense or {}
    macs = 3.0 * run.macs({}) * run.total_steps * run.settings.batch_size
    return {
        "accuracy_dense": whole.get("accuracy"),
        "accuracy_pruned": pruned["accuracy"],
        "top5_dense": whole.get("top5"),
        "top5_pruned": pruned["top5"],
        "train_flops_ratio": ratio,
        "train_macs": {"dense": macs, **{accounting: share * macs for accounting, share in ratio.items()}},
        "train_cost": record.train_cost(run.settings, ratio),
        "seconds_training": {"dense": whole.get("seconds"), "pruned": pruned["seconds"]},
        "events": pruned["events"],
        "history": {"dense": whole.get("history", []), "pruned": pruned["history"]},
        **{name: pruned.get(name, []) for name in ("closed_loop", "limits")},
        **{name: pruned.get(name) for name in ("gap", "calibration", "repaired")},
    }


def _files(run: Run) -> dict[str, str]:
    """Returns what lies in the folder, by what it is."""
    found = {"plan": "plan.json", "mask": "mask.safetensors"}
    return {
        "onnx": "pruned.onnx",
        "dense_onnx": "dense.onnx",
        **{what: name for what, name in found.items() if (run.folder / name).is_file()},
        "weights": "pruned.safetensors",
        "page": "report.html",
        "markdown": "report.md",
        "numbers": "report.json",
    }


def _kept(s: Settings, found: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """Returns whether a sparsity is met, and what it does for speed."""
    share, speed = found["kept"] / found["total"], f"{ratio:.2f} times as fast as dense"
    if s.from_run is not None:
        return {"met": True, "text": f"trained on; the network is {speed}", "share": share}
    kind = s.masks.units or METHODS[s.method].sparsity
    if kind == "width":  # whole units: at most what was asked for
        text = f"kept {found['kept']:,} of {found['total']:,} parameters, {1 - share:.2%} removed"
        return {"met": found["kept"] <= found["asked"], "text": text, "share": share}
    kept = record.promise_of_units(found["kept"], found["asked"], found["total"])
    masks = "masks alone bring no speed: measured" if kind == "weights" else "cut out, the network is"
    return {**kept, "text": f"{kept['text']}; {masks} {speed}"}


def layers(run: Run) -> list[dict[str, Any]]:
    """Returns the time of every layer before and after, from the runtime's own profiler; none where it has none."""
    if not run.target.times_layers:
        return []
    paths = {label: run.folder / f"{label}.onnx" for label in ("dense", "pruned")}
    return side_by_side(layer_times(paths, batch=run.settings.batch, threads=run.settings.threads))


def _side_by_side(run: Run) -> Comparison:
    """Times dense and pruned in interleaved rounds, again while the machine is too noisy to tell their ratio."""
    networks: dict[str, Any] = {label: run.folder / f"{label}.onnx" for label in ("dense", "pruned")}
    if ".onnx" not in run.target.files or run.target.dtype != "float32":  # the exports hold float32
        models = {"dense": run.dense(), "pruned": run.compact()}
        networks = {label: run.target.ready(model, run.example) for label, model in models.items()}
    rounds, note = max(30, run.settings.rounds), run.talk.note
    return timed(run.target, networks, run.example, rounds=rounds, seconds=60.0, progress=note)


def _words(value: object) -> str | int | float:
    """Returns a fact about the machine as a page shows it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return value if isinstance(value, int | float) else str(value)


SHARES = tuple(0.1 + 0.05 * i for i in range(19))
"""Budgets along the curve, as shares of the dense latency."""


def curve(run: Run) -> dict[str, Any]:
    """Returns the best selections of many budgets and where a finished run's network lies, or why there are none.

    Scores are the magnitudes of the dense network's trained weights: the same for every point, and known for every
    channel; the run itself chose by the scores of its training.

    Returns:
        ``{"scores", "points": [{"share", "kept", "gap"}], "uniform": [{"share", "kept"}], "run": {"share", "kept"}}``,
        shares of the dense latency and of the summed scores, or ``{"skipped": reason}``.
    """
    if run.settings.budget is None:
        return {"skipped": "the run has no latency budget"}
    if not run.has_dense:
        return {"skipped": "the run has no trained dense network that channels could be scored on"}
    try:
        cost = _cost(run)
        model = run.dense()
        units = Channels(model, run.structure, trainable_only=False)
        scores = Magnitude()(units, dict(model.named_parameters()).get, lambda _: None)
        points = pareto(scores, cost, [share * cost.dense_us for share in SHARES])
        same = []  # where no uniform network fits into a budget, there is no point
        for share in SHARES:
            with suppress(BudgetError):
                same.append(uniform(cost, share * cost.dense_us))
        plan = Plan.load(run.folder / "plan.json")
    except HalpieeError as error:
        return {"skipped": str(error)}
    total = sum(float(score.double().sum()) for score in scores.values())
    if not total:
        return {"skipped": "the magnitudes of the dense network's weights are all zero"}
    kept = sum(float(score.double()[plan.keep.get(name, ...)].sum()) for name, score in scores.items())
    best = {name: score.double().sort(descending=True).values.cumsum(0) for name, score in scores.items()}

    def point(counts: Mapping[str, int], value: float) -> dict[str, float]:
        return {"share": cost.total_us(counts) / cost.dense_us, "kept": value / total}

    return {
        "scores": "magnitudes of the dense network's trained weights",
        "uniform": [
            point(counts, sum(float(best[name][k - 1]) for name, k in counts.items() if k)) for counts in same
        ],
        "points": [
            {"share": p.latency_us / cost.dense_us, "kept": p.value / total, "gap": p.gap} for p in points
        ],
        "run": point(plan.counts, kept),
    }


def frozen(structure: Structure) -> dict[str, list[str]]:
    """Returns layer → why none of its output channels can be removed, for the layers of which that is so."""
    layers = explain(structure).layers
    return {layer.name: list(layer.reasons) for layer in layers if layer.reasons and not layer.out_prunable}


def densities(folder: Path) -> dict[str, float]:
    """Returns the share of the weights that a run's mask keeps, per tensor; empty where the run has no mask."""
    path = folder / "mask.safetensors"
    if not path.is_file():
        return {}
    return {name: float(mask.double().mean()) for name, mask in load_weights(path).items()}


def _cost(run: Run) -> LatencyCost:
    """Returns the run's latency model, calibrated as it was before training."""
    profile = Path(run.settings.profile) if run.settings.profile else run.folder / "profile.jsonl"
    cost = LatencyCost(run.structure, latency.Profile.load(profile))
    stored = run.folder / "calibration.json"
    return cost.with_calibration(read_calibration(stored)) if stored.is_file() else cost
