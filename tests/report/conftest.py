"""A report small enough to check by hand."""

from typing import Any

import pytest


@pytest.fixture
def report() -> dict[str, Any]:
    return {
        "schema": 1,
        "model": "resnet20",
        "data": "digits",
        "method": "iee",
        "budget": "0.5",
        "backend": "onnxruntime",
        "precision": "float32",
        "batch": 1,
        "threads": 1,
        "environment": {"device": "a CPU", "versions": {"torch": "2.15"}},
        "dense_us": 520.0,
        "budget_us": 260.0,
        "predicted_us": 258.36,
        "measured_us": 262.91,
        "next_step_us": 7.4,
        "dense_iqr_us": 12.0,
        "measured_iqr_us": 4.4,
        "speedup": 1.98,
        "speedup_ci": [1.95, 2.01],
        "accuracy_dense": 0.99,
        "accuracy_pruned": 0.985,
        "top5_dense": 1.0,
        "top5_pruned": 0.9975,
        "train_flops_ratio": {"paper": 0.551, "strict": 0.6125},
        "onnx_rel_l2": 3.1e-7,
        "onnx_max_abs_error": 4.2e-6,
        "fps_dense": 1923.0,
        "fps_pruned": 3846.0,
        "macs_dense": 40_800_000,
        "macs_pruned": 10_200_000,
        "params_dense": 272_000,
        "params_pruned": 68_000,
        "widths": {"conv1": 16, "conv2": 8, "fc": 10},
        "widths_dense": {"conv1": 16, "conv2": 32, "fc": 10},
        "seconds": 3725.0,
        "seconds_by_stage": {"profile": 30.0, "dense": 90.0, "pruned": 60.0},
        "events": [
            {
                "step": 0,
                "event": "init",
                "budget_us": 260.0,
                "used_us": 259.0,
                "omega_us": 0.0,
                "slack_us": 1.0,
            },
            {
                "step": 10,
                "event": "prune",
                "budget_us": 260.0,
                "used_us": 180.0,
                "omega_us": 78.0,
                "slack_us": 2.0,
            },
            {
                "step": 20,
                "event": "grow",
                "budget_us": 260.0,
                "used_us": 258.0,
                "omega_us": 78.0,
                "slack_us": 2.0,
            },
        ],
        "history": {
            "dense": [{"epoch": 1, "step": 20, "loss": 1.0, "accuracy": 0.9, "seconds": 5.0}],
            "pruned": [
                {"epoch": 1, "step": 20, "loss": 1.1, "accuracy": 0.8, "seconds": 4.0, "latency_us": 258.0}
            ],
        },
        "closed_loop": [
            {"round": 1, "predicted_us": 258.0, "measured_us": 270.0, "lower_us": 252.0, "upper_us": 265.2},
            {"round": 2, "predicted_us": 248.0, "measured_us": 259.0, "lower_us": 252.0, "upper_us": 265.2},
        ],
        "calibration": {"a_us": 12.1, "b": 0.981, "worst": 0.031, "points": []},
        "gap": 1.2e-4,
        "promise": {"met": True, "text": "measured 263 µs is 101.1% of the budget"},
        "layers": [
            {"layer": "conv1", "dense_us": 40.0, "pruned_us": 40.0},
            {"layer": "conv2", "dense_us": 80.0, "pruned_us": 20.0},
            {"layer": "(ReorderOutput)", "dense_us": 5.5, "pruned_us": 4.5},
        ],
        "pareto": {
            "scores": "magnitudes",
            "points": [
                {"share": 0.25, "kept": 0.5, "gap": 0.0},
                {"share": 0.5, "kept": 0.9, "gap": 0.0},
                {"share": 1.0, "kept": 1.0, "gap": 0.0},
            ],
            "run": {"share": 0.496, "kept": 0.85},
        },
        "zeros": {
            "dense": {"share": 0.0, "size_bytes": 1_090_000, "zipped_bytes": 1_010_000},
            "pruned": {"share": 0.0, "size_bytes": 280_000, "zipped_bytes": 260_000},
        },
        "files": {"onnx": "pruned.onnx"},
    }
