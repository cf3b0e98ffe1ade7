"""What can be timed as one network: a PyTorch module, compiled or not, an ONNX file on a provider, an engine.

Everything that a runner needs is made before: building it may take minutes (a compilation), a call takes none of that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from halpiee.errors import MissingError, UsageError
from latency.backends.onnxruntime import feeds, session, to_onnx
from latency.backends.onnxruntime.network import check_file
from latency.backends.torch.network import set_arithmetic
from latency.copies import copy_of
from latency.timing.throughput import Load

__all__ = ["Precision", "Runner", "engine_runner", "module_runner", "onnx_runner"]

Precision = Literal["fp32", "fp16", "bf16"]

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Runner:
    """One network, ready to be called.

    Attributes:
        runtime: what runs it: ``torch``, ``torch.compile``, ``onnxruntime cpu``, ``tensorrt`` ….
        precision: of its weights.
        device: ``cpu`` or ``cuda``.
        run: one inference, the answer included.
        load: one inference that may still be under way, and the wait for it; for throughput.
    """

    runtime: str
    precision: str
    device: str
    run: Callable[[], object]
    load: Load


def module_runner(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    compiled: bool = False,
    precision: Precision = "fp32",
    device: str = "cpu",
    threads: int = 1,
) -> Runner:
    """Returns a PyTorch module to be called eagerly or compiled; the one that was passed is left alone.

    Args:
        model: any module.
        example_inputs: of the batch that is timed.
        compiled: whether ``torch.compile`` makes it first.
        precision: of weights, inputs and arithmetic.
        device: ``cpu`` or ``cuda``.
        threads: of PyTorch, on the CPU.

    Raises:
        MissingError: no CUDA device, or no compiler for ``torch.compile``.
        UsageError: the module cannot take the inputs, or cannot be compiled.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingError(
            "--device cuda was asked, and PyTorch finds no CUDA device; check nvidia-smi and the build of torch, "
            "or use --device cpu"
        )
    if compiled and device == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise MissingError(
            "torch.compile was asked for on the CPU, and there is no C++ compiler; install g++, or leave @compile out"
        )
    if device == "cpu":
        torch.set_num_threads(threads)
    else:
        set_arithmetic(precision)  # float32 is float32, as in a profile and in the papers' figures
    dtype = DTYPES[precision]
    placed = copy_of(model).eval().to(device=device, dtype=dtype)
    inputs = tuple(
        x.detach().to(device=device, dtype=dtype if x.is_floating_point() else x.dtype)
        for x in example_inputs
    )
    call: Callable[..., object] = torch.compile(placed) if compiled else placed

    def start() -> object:
        with torch.inference_mode():
            return call(*inputs)

    def run() -> object:
        answer = start()
        if device == "cuda":
            torch.cuda.synchronize()
        return answer

    try:
        run()
    except Exception as error:  # whatever the module or the compiler raises
        shapes = ", ".join("×".join(map(str, x.shape)) for x in inputs)
        raise UsageError(
            f"{type(model).__name__} was to be run on {shapes} in {precision}"
            f"{' by torch.compile' if compiled else ''} and raised {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0][:200] if str(error).strip() else 'nothing more'}; "
            "give the size it takes with --size, or another --precision"
        ) from error
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    return Runner("torch.compile" if compiled else "torch", precision, device, run, Load(start, finish))


def onnx_runner(
    model: Path | tuple[nn.Module, tuple[Tensor, ...]],
    *,
    provider: str = "cpu",
    batch: int = 1,
    shape: Sequence[int] | None = None,
    threads: int = 1,
    precision: Precision | None = None,
    name: str | None = None,
) -> Runner:
    """Returns an ONNX model to be called on one of ONNX Runtime's providers.

    Args:
        model: a file, or a module with example inputs, which is exported in memory.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        batch: images per call.
        shape: (channels, height, width) where the file leaves them open.
        threads: of the runtime.
        precision: that its weights must have; ``None`` takes them as they are.
        name: of the model in messages.

    Raises:
        UsageError: a file that cannot be read, another precision, or inputs that it does not take.
        MissingError: a provider that is not installed.
    """
    if isinstance(model, Path):
        name, proto = name or str(model), check_file(model)
        source: Any = model
    else:
        from halpiee.deploy.onnx import converted

        name = name or type(model[0]).__name__
        source = proto = (
            to_onnx(*model)
            if precision in (None, "fp32")
            else converted(*model, precision=precision or "fp32")
        )
    found = weight_precision(proto)
    if precision is not None and found != precision:
        raise UsageError(
            f"--precision {precision} was asked, and {name} holds {found} weights; leave --precision out, or export "
            f"it again with `halpiee export … --precision {precision}`"
        )
    runtime = session(source, threads=threads, provider=provider)
    inputs = _inputs(runtime, name, batch, shape)
    try:
        runtime.run(None, inputs)
    except Exception as error:  # its exceptions share no base class
        raise UsageError(
            f"{name} was to be run on batch {batch} and ONNX Runtime refused: {str(error).splitlines()[0][:300]}; "
            "give the size it takes with --size, or another --batch"
        ) from error
    device = "cpu" if provider == "cpu" else "cuda"
    if device == "cpu":

        def run() -> object:
            return runtime.run(None, inputs)

    else:
        binding = runtime.io_binding()  # inputs and outputs stay on the GPU, as in an application of its own
        for key, value in inputs.items():
            binding.bind_cpu_input(key, value)
        for output in runtime.get_outputs():
            binding.bind_output(output.name, "cuda")

        def run() -> object:
            runtime.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return None

    return Runner(f"onnxruntime {provider}", found, device, run, Load(run))


def engine_runner(path: Path, *, batch: int = 1, trust: bool = False) -> Runner:
    """Returns a TensorRT engine to be called, its inputs on the GPU.

    Args:
        path: the engine.
        batch: images per call.
        trust: whether an engine that halpiee did not build here is loaded; engines are executable.

    Raises:
        MissingError: no TensorRT, no CUDA library, no GPU.
        UsageError: an engine of another version or GPU, of unknown origin, or that does not take the batch.
    """
    from latency.backends.cuda import open_cuda
    from latency.backends.tensorrt.builder import import_tensorrt
    from latency.backends.tensorrt.network import open_engine

    trt = import_tensorrt()
    cuda = open_cuda("auto", 0)
    engine = open_engine(path, trt, cuda, batch=batch, trust=trust)

    def run() -> object:
        engine.enqueue()
        cuda.synchronize()
        return None

    return Runner("tensorrt", "as built", "cuda", run, Load(engine.enqueue, cuda.synchronize))


def weight_precision(proto: Any) -> str:
    """Returns the precision that most weights of an ONNX model have."""
    from onnx import TensorProto

    words = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    sizes: dict[str, int] = {}
    for tensor in proto.graph.initializer:
        word = words.get(tensor.data_type)
        if word is not None:
            sizes[word] = sizes.get(word, 0) + int(np.prod(tensor.dims, dtype=np.int64))
    return max(sizes, key=lambda word: sizes[word]) if sizes else "fp32"


def _inputs(runtime: Any, name: str, batch: int, shape: Sequence[int] | None) -> dict[str, Any]:
    """Returns random inputs for a session, all open dimensions filled.

    Raises:
        UsageError: a batch or a shape that the model does not take, or open dimensions without a shape.
    """
    sizes: dict[str, list[Any]] = {}
    for value in runtime.get_inputs():
        dims = list(value.shape)
        own = dims[0] if dims and isinstance(dims[0], int) else None
        if not dims or (sizes and own is not None):  # a scalar, or a table beside what has the batch
            sizes |= {value.name: dims} if dims else {}
            continue
        if own is not None and own != batch:
            raise UsageError(
                f"--batch {batch} was asked, and {name} takes batch {own} only; use --batch {own}, or export "
                "it with a free batch dimension (`halpiee export` does, unless the network has its batch in it)"
            )
        full = [batch, *dims[1:]]
        if shape is not None and len(full) == len(shape) + 1:
            clash = [(a, b) for a, b in zip(full[1:], shape, strict=True) if isinstance(a, int) and a != b]
            if clash:
                raise UsageError(
                    f"--size {'x'.join(map(str, shape))} was asked, and {name} takes "
                    f"{'x'.join(map(str, full[1:]))}; leave --size out, or export the model at that size"
                )
            full = [batch, *shape]
        unknown = [d for d in full if not isinstance(d, int)]
        if unknown:
            raise UsageError(
                f"{name} leaves {', '.join(map(str, unknown))} of its input {value.name} open; "
                "give them with --size, such as --size 3x224x224"
            )
        sizes[value.name] = full
    return feeds(runtime, batch=batch, sizes=sizes)
