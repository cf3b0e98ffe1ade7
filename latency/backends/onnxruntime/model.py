"""ONNX models: the one way from PyTorch to ONNX, and the check of every file before a runtime sees it.

A file's weights may lie in files beside it, and are read only from its own folder: a location that leads out of it, by
``..``, an absolute path or a link, is refused, whatever the runtime would do.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from latency.backends import is_module
from latency.backends.onnxruntime.naming import checked_names, name_ends, name_sizes
from latency.backends.onnxruntime.ops import OPSET
from latency.errors import UsageError

if TYPE_CHECKING:
    import onnx
    from torch import nn


def to_onnx(
    model: nn.Module,
    example_inputs: Sequence[Any],
    *,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """Converts a model to ONNX, in evaluation mode and with batch norm folded into the convolutions.

    Inputs have the names of forward's arguments, outputs the keys of the dict that it returns; a tensor alone is
    ``output``, those of a tuple are ``output_0`` …. A mean over all positions becomes GlobalAveragePool, which ONNX
    Runtime computes in its own layout (ReduceMean: after a change of it).

    Args:
        model: any module; it keeps its mode, device and weights.
        example_inputs: tensors that give shapes and dtypes. What is no tensor is a constant of the graph; None and
            numbers among the outputs are left out of it.
        dynamic_batch: whether the first dimension of all inputs is free, and named ``batch``. Inputs of another first
            dimension than the first one's, and scalars, keep their shape. Where the model has the batch in it (anchors
            made for it once), the graph has that of the examples, as ``fixed_batch`` says.
        dynamic_size: whether height and width of all inputs ``[N, C, H, W]`` are free, and named ``height`` and
            ``width``; of inputs of another size than the first one's ``height_1`` ….
        input_names: names of the inputs, in order; by default the arguments'.
        output_names: names of the outputs, in order; by default their keys.

    Raises:
        UsageError: PyTorch cannot export the model, or not with a free size; names that do not fit.
    """

    def converted(free: bool) -> onnx.ModelProto:
        names = (input_names, output_names)
        return _converted(model, example_inputs, free, dynamic_size, names)

    if not dynamic_batch:
        return converted(False)
    try:
        proto = converted(True)
    except UsageError as error:
        try:
            return converted(False)
        except UsageError:
            raise error from error.__cause__
    return proto if fixed_batch(proto) is None else converted(False)


def exported(model: Any, example_inputs: Sequence[Any] | None, *, dtype: str = "float32") -> Any:
    """Returns the ONNX model of a module with weights, inputs and outputs of ``dtype``; other models as they are.

    Raises:
        UsageError: a module without inputs, or one that PyTorch cannot export.
    """
    if not is_module(model):
        return model
    if example_inputs is None:
        raise UsageError(
            f"the latency of {type(model).__name__} was asked for without inputs; pass example_inputs, a tuple"
        )
    if dtype == "float32":
        return to_onnx(model, example_inputs)
    import torch

    from latency.backends.torch.modules import copy_of

    kind = getattr(torch, dtype)
    inputs = [
        x.to(kind) if hasattr(x, "is_floating_point") and x.is_floating_point() else x for x in example_inputs
    ]
    return to_onnx(copy_of(model).cpu().to(kind), inputs)


def fixed_batch(proto: onnx.ModelProto) -> int | None:
    """Returns the only batch that a model takes: the first dimension of its first input with one; None: any batch."""
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims:
            return int(dims[0].dim_value) if dims[0].HasField("dim_value") else None
    return None


def _converted(
    model: nn.Module,
    example_inputs: Sequence[Any],
    dynamic_batch: bool,
    dynamic_size: bool,
    names: tuple[Sequence[str] | None, Sequence[str] | None],
) -> onnx.ModelProto:
    """Returns a model as ONNX, with a free batch or with that of the examples."""
    import torch

    from latency.backends.torch import modules as values

    inputs = tuple(x.detach().cpu() for x in values.tensors_in(example_inputs))
    batch = values.batch_of(inputs)
    batched = [dynamic_batch and values.is_batched(x, batch) for x in inputs]
    if batch == 1:
        # torch.export takes a batch of one for a constant where code asks for memory layouts (ConvNeXt).
        inputs = tuple(torch.cat([x, x]) if free else x for x, free in zip(inputs, batched, strict=True))
    trained = values.copy_of(model).cpu().eval()
    own = values.input_names(model, example_inputs)
    free, shapes = _free(inputs, batched, dynamic_size)
    with _quiet(), torch.no_grad():
        try:
            given = values.filled(example_inputs, inputs)
            result = trained(*given)
            taken = checked_names(own, names[0], "input")
            ends = taken, checked_names(values.output_names(result), names[1], "output", taken)
            values.tensors_only(trained, given, result)
            program = torch.onnx.export(
                trained,
                inputs,
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=OPSET,
                input_names=[f"halpiee_in_{i}" for i in range(len(ends[0]))],
                output_names=[f"halpiee_out_{i}" for i in range(len(ends[1]))],
                dynamic_shapes=shapes if free else None,
            )
        except UsageError:
            raise
        except Exception as error:  # the exporter raises what its passes raise
            sized = " with a free height and width" if dynamic_size else ""
            raise UsageError(
                f"{type(model).__name__} was to be exported to ONNX{sized} and PyTorch could not: {_root_of(error)}; "
                "try torch.onnx.export on it by itself, and rewrite the op it names"
            ) from error
    assert program is not None
    proto = program.model_proto
    name_ends(proto, *ends)
    name_sizes(proto, free)
    _use_global_pools(proto)
    return proto


def _free(
    inputs: Sequence[Any], batched: Sequence[bool], dynamic_size: bool
) -> tuple[dict[tuple[int, int], str], tuple[dict[int, Any], ...]]:
    """Returns the free dimensions, (input, dimension) → name, and as PyTorch's exporter takes them."""
    import torch

    free = {(i, 0): "batch" for i, one in enumerate(batched) if one}
    images = [i for i, x in enumerate(inputs) if x.dim() == 4]
    if dynamic_size and not images:
        raise UsageError(
            "a free height and width was asked of a network without an input [N, C, H, W]; leave it out"
        )
    sizes: list[tuple[int, ...]] = []
    for i in images if dynamic_size else ():
        size = tuple(inputs[i].shape[2:])
        if size not in sizes:
            sizes.append(size)
        number = f"_{sizes.index(size)}" if sizes.index(size) else ""
        free |= {(i, 2): f"height{number}", (i, 3): f"width{number}"}
    shapes: list[dict[int, Any]] = [{} for _ in inputs]
    for i, dim in free:
        # DYNAMIC lets sizes hang together (a skip connection wants multiples of 32); it never makes one constant.
        shapes[i][dim] = torch.export.Dim("batch") if dim == 0 else torch.export.Dim.DYNAMIC
    return free, tuple(shapes)


def _root_of(error: BaseException) -> str:
    """Returns the message of an error's first cause; the last error reads alike for every failed export."""
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
    with (
        quiet("torch.onnx", "onnxscript", "onnx_ir", "torch.export"),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Keeps from the screen what loggers say below an error; the empty name is that of the root."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def as_proto(model: Any) -> Any:
    """Returns an ONNX model as a message, its external weights not loaded."""
    if isinstance(model, str | Path):
        return check_file(model)
    if not isinstance(model, bytes):
        return model
    import onnx

    try:
        return onnx.ModelProto.FromString(model)
    except Exception as error:
        raise UsageError(
            f"{len(model)} bytes were given, which are no ONNX model; give those of one"
        ) from error


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


def read_metadata(path: str | Path) -> dict[str, str]:
    """Returns the metadata of an ONNX file; raises what `check_file` does."""
    return {entry.key: entry.value for entry in check_file(path).metadata_props}


class ModelInputs:
    """The inputs and the metadata of an ONNX model, with the methods that a session of ONNX Runtime has."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        from onnx import TensorProto

        weights = {tensor.name for tensor in proto.graph.initializer}
        self._inputs, self._metadata = [], {entry.key: entry.value for entry in proto.metadata_props}
        for value in proto.graph.input:
            dims = value.type.tensor_type.shape.dim
            shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
            kind = f"tensor({TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()})"
            if value.name not in weights:
                self._inputs.append(SimpleNamespace(name=value.name, shape=shape, type=kind))

    def get_inputs(self) -> list[SimpleNamespace]:
        """Returns the inputs: name, shape (names of open dimensions as texts) and type such as ``tensor(float)``."""
        return self._inputs

    def get_modelmeta(self) -> SimpleNamespace:
        """Returns the metadata under ``custom_metadata_map``."""
        return SimpleNamespace(custom_metadata_map=self._metadata)


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
    what = f"the weight {tensor!r} of {path} lies in {location!r}"
    if not location or Path(location).is_absolute() or not target.is_relative_to(folder):
        raise UsageError(
            f"{what}, outside the model's folder, and is not read from there; "
            "export the model again as one file, or put its data file beside it"
        )
    if not target.is_file():
        raise UsageError(
            f"{what}, and there is no such file; copy it from where the model came from, beside the model"
        )
    if target.stat().st_size < end:
        raise UsageError(
            f"{what}, which ends after {target.stat().st_size} bytes, {end} are needed; copy it again"
        )


def _foreign(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path} ({path.stat().st_size} bytes) was to be read as an ONNX model, and {why}: "
        "it is truncated or no ONNX file; copy or export it again"
    )


def weight_precision(proto: Any) -> str:
    """Returns the precision that most weights of an ONNX model have."""
    from onnx import TensorProto

    words = {
        TensorProto.FLOAT: "fp32",
        TensorProto.FLOAT16: "fp16",
        TensorProto.BFLOAT16: "bf16",
        TensorProto.INT8: "int8",
    }
    sizes: dict[str, int] = {}
    for tensor in proto.graph.initializer:
        word = words.get(tensor.data_type)
        if word is not None:
            sizes[word] = sizes.get(word, 0) + int(np.prod(tensor.dims, dtype=np.int64))
    return max(sizes, key=lambda word: sizes[word]) if sizes else "fp32"
