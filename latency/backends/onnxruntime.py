"""ONNX Runtime on CPU: ops as twins, whole models as sessions, and the one way from PyTorch to ONNX.

Constants of every session, for ops and networks alike: sequential execution, all graph optimisations, initialisers
constant (else the runtime leaves its blocked layout), ``threads`` intra-op threads, each on a core of its own.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latency.backends import Built
from latency.backends.onnx_file import check_file
from latency.backends.onnx_graph import OPSET, copies_of, twin
from latency.device import environment
from latency.errors import MissingError, UsageError
from latency.op import Op, weight_bytes
from latency.timing.clock import Clock, CpuClock, WallClock

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort
    from torch import nn

__all__ = ["OnnxRuntime", "feeds", "fixed_batch", "session", "to_onnx"]


class OnnxRuntime:
    """Ops on ONNX Runtime's CPU provider.

    Args:
        threads: intra-op threads. One is timed by CPU time, several by the wall clock.
    """

    name = "onnxruntime"
    builds = 3
    """Of one cell at least: a session's buffers lie where they happen to."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.evicts = threads == 1
        """Whether weights are to be read from memory; one thread can empty no other core's caches."""

    def environment(self) -> dict[str, Any]:
        """Returns the circumstances of everything this backend measures."""
        return environment("onnxruntime", self.threads, optimization="all")

    def clock(self) -> Clock:
        """Returns the CPU clock for one thread, the wall clock for several."""
        return CpuClock() if self.threads == 1 else WallClock()

    def anchor(self) -> Callable[[], object]:
        """Returns a checksum of 16 KB, about 5 µs.

        It is slow where someone shares the core, and as the core's clock. A convolution of 12 µs took 1.15 to 1.25
        times as long after a network of 6 ms whose own time did not change, on a processor with AVX-512; this did not.
        """
        data = bytes(range(256)) * 64
        return lambda: zlib.crc32(data)

    def reads(self, op: Op) -> int:
        """Returns the bytes of weights that a turn of a build of an op reads: those of all its copies, and of one."""
        return (copies_of(op) + 1) * weight_bytes(op)

    def build(self, op: Op) -> Built:
        """Builds an op as a twin: three copies minus one, of some ops more, of those with many weights two.

        Raises:
            UnsupportedOpError: an op, precision or layout that is not built here.
        """
        most = copies_of(op)
        many, one = (
            _runner(session(twin(op, copies, most), threads=self.threads, merge=False))
            for copies in (most, 1)
        )
        return Built(run=many, minus=one, copies=most - 1, method="twin")


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


def _runner(runtime: ort.InferenceSession) -> Callable[[], object]:
    inputs = feeds(runtime)
    return lambda: runtime.run(None, inputs)


def to_onnx(
    model: nn.Module,
    example_inputs: Sequence[Any],
    *,
    dynamic_batch: bool = True,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Converts a model to ONNX, in evaluation mode and with batch norm folded into the convolutions.

    Inputs are named ``input`` (``input_0`` … if several), outputs ``output`` alike. A mean over all positions
    becomes GlobalAveragePool, which ONNX Runtime computes in its own layout (ReduceMean: after a change of it).

    Args:
        model: any module; it keeps its mode, device and weights.
        example_inputs: tensors that give shapes and dtypes. What is no tensor is a constant of the graph; None and
            numbers among the outputs are left out of it.
        dynamic_batch: whether the first dimension of all inputs is free, and named ``batch``. Inputs of another first
            dimension than the first one's, and scalars, keep their shape. Where the model has the batch in it (anchors
            made for it once), the graph has that of the examples, as ``fixed_batch`` says.
        opset: version of the operator set.

    Raises:
        UsageError: PyTorch cannot export the model.
    """
    if not dynamic_batch:
        return _converted(model, example_inputs, False, opset)
    try:
        proto = _converted(model, example_inputs, True, opset)
    except UsageError as error:
        try:
            return _converted(model, example_inputs, False, opset)
        except UsageError:
            raise error from error.__cause__
    return proto if fixed_batch(proto) is None else _converted(model, example_inputs, False, opset)


def fixed_batch(proto: onnx.ModelProto) -> int | None:
    """Returns the only batch that a model takes: the first dimension of its first input with one; None: any batch."""
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims:
            return int(dims[0].dim_value) if dims[0].HasField("dim_value") else None
    return None


def _converted(
    model: nn.Module, example_inputs: Sequence[Any], dynamic_batch: bool, opset: int
) -> onnx.ModelProto:
    """Returns a model as ONNX, with a free batch or with that of the examples.

    Raises:
        UsageError: PyTorch cannot export it.
    """
    import torch

    from latency.backends.torch_values import (
        batch_of,
        filled,
        is_batched,
        tensors_given,
        tensors_in,
        tensors_only,
    )
    from latency.copies import copy_of

    inputs = tuple(x.detach().cpu() for x in tensors_in(example_inputs))
    batch = batch_of(inputs)
    batched = [dynamic_batch and is_batched(x, batch) for x in inputs]
    if batch == 1:
        # torch.export takes a batch of one for a constant where code asks for memory layouts (ConvNeXt).
        inputs = tuple(torch.cat([x, x]) if free else x for x, free in zip(inputs, batched, strict=True))
    trained = copy_of(model).cpu().eval()
    names = ["input"] if len(inputs) == 1 else [f"input_{i}" for i in range(len(inputs))]
    shapes = tuple({0: torch.export.Dim("batch")} if free else {} for free in batched)
    with _quiet(), torch.no_grad():
        try:
            given = filled(example_inputs, inputs)
            result = trained(*given)
            count = len(tensors_given(result))
            tensors_only(trained, given, result)
            program = torch.onnx.export(
                trained,
                inputs,
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=opset,
                input_names=names,
                output_names=["output"] if count == 1 else [f"output_{i}" for i in range(count)],
                dynamic_shapes=shapes if any(batched) else None,
            )
        except UsageError:
            raise
        except Exception as error:  # the exporter raises what its passes raise
            raise UsageError(
                f"{type(model).__name__} was to be exported to ONNX and PyTorch could not: {_root_of(error)}; "
                "try torch.onnx.export on it by itself, and rewrite the op it names"
            ) from error
    assert program is not None
    proto = program.model_proto
    _use_global_pools(proto)
    return proto


def _root_of(error: BaseException) -> str:
    """Returns the first line of what an error came from: its own is the same for every failed export."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()]
    return f"{type(error).__name__}: {' '.join(line for line in lines if line)[:300]}"


def _use_global_pools(proto: onnx.ModelProto) -> None:
    """Replaces means over the positions of a feature map [N, C, H, W] by GlobalAveragePool, in place."""
    from onnx import helper, numpy_helper

    constants = {t.name: t for t in proto.graph.initializer}
    maps = {n.output[0] for n in proto.graph.node if n.op_type in ("Conv", "MaxPool", "AveragePool")}
    for node in proto.graph.node:
        # What is known to have four dimensions: convolutions and pools, and what is computed element by element.
        if node.op_type in (
            "Relu",
            "Clip",
            "Add",
            "Mul",
            "HardSwish",
            "Sigmoid",
            "BatchNormalization",
            "Concat",
        ):
            maps |= {node.output[0]} if any(name in maps for name in node.input) else set()
    for node in proto.graph.node:
        if node.op_type != "ReduceMean" or node.input[0] not in maps or len(node.input) < 2:
            continue
        if node.input[1] not in constants:
            continue
        axes = sorted(int(a) % 4 for a in numpy_helper.to_array(constants[node.input[1]]).reshape(-1))
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if axes == [2, 3] and keep == 1:
            node.CopyFrom(
                helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]], name=node.name)
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress lines and warnings away from the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
