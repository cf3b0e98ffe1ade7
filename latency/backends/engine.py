"""An engine file opened to be run: loaded if it may be, its inputs filled with random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latency.backends.cuda import Cuda
from latency.backends.engine_file import read_engine
from latency.backends.tensorrt_runtime import EngineRunner, load_engine
from latency.errors import UsageError

__all__ = ["open_engine"]


def open_engine(
    path: Path, trt: Any, cuda: Cuda, *, batch: int | None = None, trust: bool = False
) -> EngineRunner:
    """Returns an engine with random inputs, ready to run.

    Args:
        path: an engine that halpiee built here, or any with ``trust``: engines are executable.
        trt: TensorRT's module.
        cuda: where its memory comes from.
        batch: of inputs whose first dimension is open; by default 1.
        trust: whether an engine of unknown origin is loaded.

    Raises:
        UsageError: an engine of another version or GPU, of unknown origin, or that does not take the batch.
    """
    engine = load_engine(trt, read_engine(path, trust=trust))
    if engine is None:
        raise UsageError(
            f"{path} was to be loaded, and TensorRT {trt.__version__} refuses it: it belongs to another version or "
            "GPU; build it here from its ONNX file with `halpiee export FILE.onnx --format tensorrt --out …`"
        )
    shapes = {}
    for i in range(engine.handle.num_io_tensors):
        name = engine.handle.get_tensor_name(i)
        if engine.handle.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            shape = tuple(int(d) for d in engine.handle.get_tensor_shape(name))
            first = batch if batch is not None else (shape[0] if shape[0] != -1 else 1)
            shapes[name] = (first, *shape[1:])
    runner = EngineRunner(trt, engine, cuda, shapes=shapes)
    runner.fill()
    return runner
