"""TensorRT's library: its module, and what it complains of."""

from __future__ import annotations

from typing import Any

from latency.errors import MissingError

__all__ = ["import_tensorrt", "new_logger"]


def import_tensorrt() -> Any:
    """Returns the ``tensorrt`` module.

    Raises:
        MissingError: it is not installed, or its libraries cannot be loaded.
    """
    try:
        import tensorrt
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingError(
            f"TensorRT was asked for, and it cannot be imported ({error}); install it with `pip install tensorrt` on a "
            "machine with an NVIDIA GPU, or use ONNX Runtime"
        ) from error
    return tensorrt


def new_logger(trt: Any) -> tuple[Any, list[str]]:
    """Returns a logger for TensorRT and the list that its errors go to."""
    errors: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors; the rest of TensorRT's talk is dropped."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            """Takes one line."""
            if getattr(severity, "name", "") in ("ERROR", "INTERNAL_ERROR"):
                errors.append(str(msg).strip())

    return Logger(), errors
