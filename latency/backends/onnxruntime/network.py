"""Whole networks on ONNX Runtime: sessions, and the files that they run.

Constants of every session, for ops and networks alike: sequential execution, all graph optimisations, initialisers
constant (else the runtime leaves its blocked layout), ``threads`` intra-op threads, each on a core of its own.

A file is looked at before a runtime sees it. Its weights may lie in files beside it, and are read only from its own
folder: a location that leads out of it, by ``..``, an absolute path or a link, is refused, whatever the runtime
would do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latency.errors import MissingError, UsageError

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort


__all__ = ["check_file", "external_files", "feeds", "is_module", "network_call", "session"]


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
    from latency.backends.onnxruntime.export import to_onnx

    module = None
    if is_module(model):
        if example_inputs is None:
            raise UsageError(
                f"the latency of {type(model).__name__} was asked for without inputs; pass example_inputs, a tuple"
            )
        _check_precision(model, example_inputs)
        from latency.backends.torch.values import tensors_in

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


def session(
    model: onnx.ModelProto | bytes | str | Path,
    threads: int = 1,
    *,
    merge: bool = True,
    provider: str = "cpu",
    trace_to: Path | None = None,
) -> ort.InferenceSession:
    """Returns a session with the constants that every measurement here shares.

    Args:
        model: a model or the path of one.
        threads: intra-op threads; beyond one, all but the caller's are tied to a core each.
        merge: whether equal nodes may be merged; not in a twin.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        trace_to: prefix of the file that the runtime's own profiler writes.

    Raises:
        UsageError: a model that cannot be read or run.
        MissingError: a provider that this installation does not have.
    """
    import onnxruntime as ort

    providers = _providers(provider)

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    cores = os.cpu_count() or 1
    if 1 < threads <= cores:
        options.add_session_config_entry(
            "session.intra_op_thread_affinities", ";".join(str(core + 1) for core in range(1, threads))
        )
    if trace_to is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace_to)
    if isinstance(model, str | Path):
        check_file(model)
        source: Any = str(model)
    else:
        source = model if isinstance(model, bytes) else model.SerializeToString()
    without = None if merge else ["CommonSubexpressionElimination"]
    try:
        return ort.InferenceSession(source, options, providers=providers, disabled_optimizers=without)
    except Exception as error:  # its exceptions share no base class with one another
        what = str(model) if isinstance(model, str | Path) else "the model"
        raise UsageError(
            f"ONNX Runtime was asked to run {what} and refused: {str(error).splitlines()[0][:300]}; "
            "check the file with onnx.checker"
        ) from error


PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""Execution providers by the word that asks for them, the first with those it falls back to."""


def _providers(name: str) -> list[str]:
    import onnxruntime as ort

    if name not in PROVIDERS:
        raise UsageError(f"the provider {name!r} was asked for; there are {', '.join(PROVIDERS)}")
    there = ort.get_available_providers()
    if PROVIDERS[name][0] not in there:
        raise MissingError(
            f"ONNX Runtime on {name} was asked for, and this installation has {', '.join(there)}; "
            "install onnxruntime-gpu on a machine with a CUDA device, or use the CPU"
        )
    return [provider for provider in PROVIDERS[name] if provider in there]


def feeds(
    runtime: ort.InferenceSession,
    *,
    batch: int = 1,
    seed: int = 0,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Returns random inputs for a session.

    Args:
        runtime: whose inputs are wanted.
        batch: what free dimensions become.
        seed: of the numbers.
        sizes: shape of every input; by default the model's own.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for value in runtime.get_inputs():
        shape = [d if isinstance(d, int) else batch for d in (sizes or {}).get(value.name, value.shape)]
        dtype = {"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(value.type, np.float32)
        if value.type == "tensor(bool)":
            found[value.name] = np.ones(shape, dtype=np.bool_)
        elif value.type.startswith(("tensor(int", "tensor(uint")):
            found[value.name] = np.zeros(shape, dtype=np.dtype(value.type[7:-1]))
        else:
            found[value.name] = rng.standard_normal(shape).astype(dtype)
    return found


def check_file(path: str | Path) -> onnx.ModelProto:
    """Returns the model, its external weights not loaded.

    Raises:
        UsageError: no such file, a truncated or foreign one, or external weights that are missing, too short or
            outside its folder.
    """
    import onnx

    path = Path(path)
    if not path.is_file():
        raise UsageError(f"the model {str(path)!r} was asked for, and there is no such file; check the path")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own exceptions
        raise _foreign(path, "it cannot be read as one") from error
    if not model.ir_version or not model.graph.output:
        raise _foreign(path, "it holds no graph with an output")
    for tensor_name, location, end in external_files(model):
        _check_location(path, tensor_name, location, end)
    return model


def external_files(model: onnx.ModelProto) -> Iterator[tuple[str, str, int]]:
    """Yields name, location and last byte of every tensor that lies outside the file."""
    from onnx import TensorProto

    attributes = [a for node in model.graph.node for a in node.attribute]
    tensors = [*model.graph.initializer, *(a.t for a in attributes if a.HasField("t"))]
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            facts = {entry.key: entry.value for entry in tensor.external_data}
            end = int(facts.get("offset") or 0) + int(facts.get("length") or 0)
            yield tensor.name, facts.get("location", ""), end


def _check_location(path: Path, tensor: str, location: str, end: int) -> None:
    folder = path.resolve().parent
    target = (folder / location).resolve()
    asked = f"the weight {tensor!r} of {path} lies in {location!r}"
    if not location or Path(location).is_absolute() or not target.is_relative_to(folder):
        raise UsageError(
            f"{asked}, outside the model's folder, and is not read from there; "
            "export the model again as one file, or put its data file beside it"
        )
    if not target.is_file():
        raise UsageError(
            f"{asked}, and there is no such file; copy it from where the model came from, beside the model"
        )
    if target.stat().st_size < end:
        raise UsageError(
            f"{asked}, which ends after {target.stat().st_size} bytes, {end} are needed; copy it again"
        )


def _foreign(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path} ({path.stat().st_size} bytes) was to be read as an ONNX model, and {why}: "
        "it is truncated or no ONNX file; copy or export it again"
    )
