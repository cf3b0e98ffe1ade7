"""What an exported file says of itself: who made it, from which plan, for which budget and device, how fast it was."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halpiee.structure.plan import Plan

if TYPE_CHECKING:
    import onnx

__all__ = ["plan_hash", "plan_metadata", "read_metadata", "run_metadata", "write_metadata"]

KEPT = ("model", "method", "budget", "backend", "batch", "threads", "budget_us", "dense_us")
"""Keys of a run's report that go into the file as they are."""

PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""What a profile's dtype is called in a file."""


def plan_hash(path: Path) -> str:
    """Returns the SHA-256 of a plan file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plan_metadata(plan: Plan, path: Path, *, precision: str = "fp32") -> dict[str, str]:
    """Returns what a file made from a plan says of itself.

    Args:
        plan: the plan.
        path: the file it came from.
        precision: of the file; a latency that was predicted for another one is left out.
    """
    target = plan.target
    values = {"model": plan.model, "budget_us": plan.budget_us, "plan_sha256": plan_hash(path)}
    values |= {key: target.get(key) for key in ("device", "backend", "batch", "threads")}
    dtype = str(target.get("dtype", "float32"))
    if PRECISIONS.get(dtype, dtype) == precision:
        values["predicted_us"] = plan.latency_us
    return _texts(values)


def run_metadata(
    report: Mapping[str, Any],
    *,
    plan: Path,
    run: str,
    side: str,
    precision: str = "fp32",
    trained: bool = True,
) -> dict[str, str]:
    """Returns what a file of a run says of itself.

    Args:
        report: the run's report; values that it lacks are left out.
        plan: the run's plan file.
        run: digest of its settings.
        side: ``pruned`` or ``dense``; the plan and its latencies belong to the pruned network only.
        precision: of the file; latencies of another one are left out.
        trained: whether the network has weights that were trained or given, not its initial ones.
    """
    dtype = str(report.get("precision", "float32"))
    same = PRECISIONS.get(dtype, dtype) == precision
    values: dict[str, Any] = {key: report.get(key) for key in KEPT}
    environment = report.get("environment") or {}
    values |= {"device": environment.get("device"), "network": side, "run": run}
    if not same:
        values = {
            key: value for key, value in values.items() if not key.endswith("_us") or key == "budget_us"
        }
    if side == "pruned":
        values["plan_sha256"] = plan_hash(plan) if plan.is_file() else None
    if side == "pruned" and same:
        values |= {key: report.get(key) for key in ("predicted_us", "measured_us")}
    elif same:
        values["measured_us"] = report.get("dense_us")
    if not trained:
        values["weights"] = "initial"
    return _texts(values)


def write_metadata(model: onnx.ModelProto, values: Mapping[str, str]) -> None:
    """Adds names and values to a model's metadata, in place; those of the same name are replaced."""
    import onnx

    found = {entry.key: entry.value for entry in model.metadata_props} | dict(values)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, found)


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of an ONNX file.

    Raises:
        UsageError: the file is no ONNX file.
    """
    from latency.backends.onnxruntime.network import check_file

    return {entry.key: entry.value for entry in check_file(path).metadata_props}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in values.items():
        if value is None or value == "":
            continue
        found[key] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return found
