"""Whole networks on ONNX Runtime: a module, which is exported, an ONNX model, or the path of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latency.errors import UsageError

__all__ = ["is_module", "network_call"]


def network_call(
    model: Any, example_inputs: Sequence[Any] | None, *, threads: int = 1, batch: int = 1
) -> Callable[[], object]:
    """Returns a call of a whole network.

    Args:
        model: a torch module, an ONNX model, its bytes or its path.
        example_inputs: what it reads; an ONNX model without them reads random inputs.
        threads: of the runtime.
        batch: images per call where there are no example inputs.

    Raises:
        UsageError: a module without inputs, something else than a network, or as many inputs as it does not read.
    """
    from latency.backends.onnxruntime import feeds, session, to_onnx

    if is_module(model):
        if example_inputs is None:
            raise UsageError(
                f"the latency of {type(model).__name__} was asked for without inputs; pass example_inputs, a tuple"
            )
        model = to_onnx(model, example_inputs)
    elif not isinstance(model, str | Path | bytes) and not hasattr(model, "SerializeToString"):
        raise UsageError(
            f"the latency of a {type(model).__name__} was asked for; pass a torch module, an ONNX model or a path"
        )
    runtime = session(model, threads=threads)
    inputs = feeds(runtime, batch=batch)
    if example_inputs is not None:
        if len(example_inputs) != len(inputs):
            raise UsageError(
                f"{len(example_inputs)} example inputs were passed; the model reads {len(inputs)} "
                f"({', '.join(inputs)}); pass as many"
            )
        inputs = {name: _array(x) for name, x in zip(inputs, example_inputs, strict=True)}
    return lambda: runtime.run(None, inputs)


def is_module(model: object) -> bool:
    """Returns whether an object is a torch module, without importing torch."""
    return any(
        cls.__module__ == "torch.nn.modules.module" and cls.__name__ == "Module"
        for cls in type(model).__mro__
    )


def _array(x: Any) -> Any:
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
