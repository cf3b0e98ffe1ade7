"""What ends a command: the error tree of ``latency.errors`` under its public names, missing packages, and signals."""

from __future__ import annotations

import signal

from latency.errors import *  # noqa: F403
from latency.errors import HoldoutWarning as HoldoutWarning
from latency.errors import MissingError
from latency.errors import __all__ as __all__
from latency.errors import need as need
from latency.errors import said as said
from latency.errors import unknown as unknown


class ScoreWarning(UserWarning):
    """A score that cannot tell units apart was used: they are ranked by index."""


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
    """Returns what to type for a module of an extra, or ``None`` for a module that belongs to none."""
    module = (error.name or "").split(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return MissingError(
                f"this needs the package {module}, which is not installed; type pip install 'halpiee[{extra}]'"
            )
    return None


def ending_signals() -> tuple[signal.Signals, ...]:
    """Returns SIGINT and SIGTERM, and SIGHUP unless it is ignored, as ``nohup`` has it."""
    found = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        found.append(hangup)
    return tuple(found)
