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

    module = None
    if is_module(model):
        if example_inputs is None:
            raise UsageError(
                f"the latency of {type(model).__name__} was asked for without inputs; pass example_inputs, a tuple"
            )
        _check_precision(model, example_inputs)
        from latency.backends.torch_values import tensors_in

        module, given = model, example_inputs
        model, example_inputs = to_onnx(module, given), tensors_in(given)
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
    try:
        runtime.run(None, inputs)
    except Exception as error:  # its exceptions share no base class
        if module is None:
            raise UsageError(
                f"the model was to be run and ONNX Runtime refused: {str(error).splitlines()[0][:300]}; give inputs "
                "that it takes, or another batch"
            ) from error
        # The module has a batch in it, and the graph that of the export's own try.
        runtime = session(to_onnx(module, given, dynamic_batch=False), threads=threads)
    return lambda: runtime.run(None, inputs)


def _check_precision(module: Any, example_inputs: Sequence[Any]) -> None:
    """Refuses what ONNX Runtime has no kernels for on the CPU.

    Raises:
        UsageError: a module or inputs of bfloat16.
    """
    values = [*module.parameters(), *example_inputs]
    if any(str(getattr(x, "dtype", "")) == "torch.bfloat16" for x in values):
        raise UsageError(
            f"the latency of {type(module).__name__} in bfloat16 was asked of ONNX Runtime, which has no such kernels "
            "on the CPU; measure model.float() with inputs of float32, or with backend='torch'"
        )


def is_module(model: object) -> bool:
    """Returns whether an object is a torch module, without importing torch."""
    return any(
        cls.__module__ == "torch.nn.modules.module" and cls.__name__ == "Module"
        for cls in type(model).__mro__
    )


def _array(x: Any) -> Any:
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
