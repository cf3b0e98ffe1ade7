"""Names the extra that installs a missing package. One table, so that every verb gives the same answer."""

from __future__ import annotations

from halpiee.errors import MissingError

__all__ = ["EXTRAS", "missing"]

EXTRAS = {
    "profile": ("onnx", "onnxruntime"),
    "train": ("torch", "torchvision", "accelerate", "onnxscript", "safetensors", "sklearn", "pyarrow", "PIL"),
    "tasks": ("torchmetrics", "pycocotools"),
    "datasets": ("datasets",),
    "report": ("matplotlib", "jinja2"),
    "cpsat": ("ortools",),
    "tensorrt": ("tensorrt",),
    "rtx": ("tensorrt_rtx",),
    "pycuda": ("pycuda",),
    "cuda": ("cuda",),
}
"""Modules that each extra of pyproject.toml installs, by the name they are imported under."""


def missing(error: ModuleNotFoundError) -> MissingError | None:
    """Returns what to type for a module of an extra, or None for a module that belongs to none.

    Args:
        error: the failed import.
    """
    module = (error.name or "").split(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return MissingError(
                f"this needs the package {module}, which is not installed; type pip install 'halpiee[{extra}]'"
            )
    return None
