"""From a PyTorch model to an ONNX file that is shown to compute the same and that says where it comes from.

Export (the one PyTorch → ONNX step is the ONNX Runtime backend's), batch norm folded, metadata, the checker,
then PyTorch against ONNX Runtime on random batches of several sizes. The file appears under its name only
when all of that holds: it is written beside it and renamed. Its metadata say who made it, from which plan, for which
budget and device, and how fast it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from halpiee import __version__
from halpiee.deploy.folding import fold_batch_norm, fold_constants
from halpiee.deploy.verify import (
    ROUNDING,
    Comparison,
    Proved,
    image_size,
    other_sizes,
    outputs,
    proved,
    reference,
    written_shapes,
)
from halpiee.errors import MismatchError, UsageError
from halpiee.structure.plan import Plan
from halpiee.structure.records import random_like
from halpiee.structure.surroundings import Surroundings, random_states
from halpiee.structure.verification import relative_l2
from latency.backends.onnxruntime.model import fixed_batch, to_onnx
from latency.backends.onnxruntime.naming import checked_names
from latency.backends.onnxruntime.network import session
from latency.backends.torch.modules import constants, copy_of, filled, left_out, tensors_given, tensors_in
from latency.backends.torch.modules import input_names as names_of_inputs
from latency.files import check_place, write

if TYPE_CHECKING:
    import onnx

    from halpiee.selection.cost import LatencyCost


Precision = Literal["fp32", "fp16"]

TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-5, "fp16": 1e-2}
"""Largest relative L2 error: ResNet-50 in fp32 comes out at 4e-7, with fp16 weights at 6e-4."""

MAX_BYTES = 2**31 - 1
"""Largest ONNX file without external data: the limit of its serialisation."""


@dataclass(frozen=True)
class ExportReport:
    """What was written and how far it is from PyTorch.

    Attributes:
        path: the file.
        size_bytes: its size.
        precision: precision of the weights.
        rel_l2: ‖a − b‖₂ / ‖b‖₂ of ONNX Runtime's outputs against float32 PyTorch, the worst batch. Where the
            weights let nothing through (a head that begins at zero), or float32 does not determine what they give
            (a note says so), of the same network with others in their place.
        max_abs_error: largest difference of one output.
        top1_agreement: share of inputs for which the largest output is the same one.
        batch_sizes: batch sizes that were compared.
        opset: ONNX operator set of the file.
        lone_norms: batch norms that had no layer to fold into and became one of their own.
        fixed_batch: the only batch that the file takes; None: any.
        notes: what the user should know of its inputs and outputs.
        inputs: names of the inputs, in order.
        outputs: names of the outputs, in order.
        sizes: (height, width) of the first image that were compared, where they are free.
    """

    path: Path
    size_bytes: int
    precision: Precision
    rel_l2: float
    max_abs_error: float
    top1_agreement: float
    batch_sizes: tuple[int, ...]
    opset: int
    lone_norms: int = 0
    fixed_batch: int | None = None
    notes: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()


class FileOptions(TypedDict, total=False):
    """What a file takes and gives, and how it is compared with its network; all are optional.

    Attributes:
        fp32_io: whether an fp16 file takes and gives float32; by default it does.
        tolerance: largest relative L2 error; by default 1e-5 for fp32, 1e-2 for fp16.
        batches: batch sizes to compare on; by default 1, 2 and 5.
        dynamic_size: whether the file takes images ``[N, C, H, W]`` of any height and width; it is compared on the
            examples' and on two others.
        input_names: names of the inputs, in order, instead of the arguments'.
        output_names: names of the outputs, in order, instead of the keys.
    """

    fp32_io: bool
    tolerance: float | None
    batches: Sequence[int]
    dynamic_size: bool
    input_names: Sequence[str] | None
    output_names: Sequence[str] | None


def export_onnx(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    precision: Precision = "fp32",
    seed: int = 0,
    overwrite: bool = False,
    **how: Unpack[FileOptions],
) -> ExportReport:
    """Exports a model with a free batch dimension; the file gets its name once it is shown to equal PyTorch.

    A model that has a batch in it gets a file of that one, which says so. A model of half or double precision is
    written in the precision asked, and compared in float32. Inputs have the names of forward's arguments, outputs the
    keys of the dict that it returns.

    Args:
        model: any module; its mode, device and weights are left alone.
        example_inputs: tensors ``[N, …]`` that give shapes and dtypes; scalars and what is no tensor as they are.
        path: the file to write; folders above it are made.
        metadata: names and values for the file's metadata; ``halpiee_version`` is added.
        precision: ``fp32``, or ``fp16`` for half-precision weights and arithmetic.
        seed: of the random inputs.
        overwrite: whether an existing file may be replaced.
        **how: see `FileOptions`.

    Raises:
        OutputInUseError: the file exists.
        MismatchError: the outputs differ by more than the tolerance; no file is written.
        UsageError: the model's outputs are no tensors, it is too large for one file, it takes one size only where any
            was asked, or names that do not fit.
    """
    if strange := how.keys() - FileOptions.__annotations__.keys():
        raise TypeError(f"export_onnx takes no {', '.join(strange)}; see halpiee.deploy.onnx.FileOptions")
    fp32_io, dynamic_size, tolerance = (
        how.get("fp32_io", True),
        how.get("dynamic_size", False),
        how.get("tolerance"),
    )
    names: dict[str, Any] = {side: how.get(side) or None for side in ("input_names", "output_names")}
    path = Path(path)
    check_place(path, overwrite=overwrite)
    allowed = TOLERANCE[precision] if tolerance is None else tolerance
    trusted = reference(model)
    tensors = [_cast(x.detach().cpu(), torch.float32) for x in tensors_in(example_inputs)]
    inputs = filled(example_inputs, tensors)
    result = _try(model, trusted, inputs)
    remarks = {"constants": "; ".join(constants(inputs)), "left_out": "; ".join(left_out(result))}
    written = {"halpiee_version": __version__, **(metadata or {}), "precision": precision}
    written |= {key: text for key, text in remarks.items() if text}
    also = other_sizes(trusted, inputs) if dynamic_size else []
    taken = checked_names(names_of_inputs(model, example_inputs), names["input_names"], "input")
    written["input_shapes"] = written_shapes(taken, tensors)
    dtype = torch.float16 if precision == "fp16" and not fp32_io else torch.float32

    def build(network: nn.Module, free: bool) -> tuple[onnx.ModelProto, int]:
        sizes = {"dynamic_batch": free, "dynamic_size": dynamic_size}
        proto = converted(network, inputs, precision=precision, fp32_io=fp32_io, **sizes, **names)
        return proto, _finish(proto, path, written)

    def run(proto: onnx.ModelProto) -> Callable[[tuple[Any, ...]], list[NDArray[Any]]]:
        call = onnx_outputs(proto)
        return lambda x: call(tuple(_cast(t, dtype) for t in tensors_in(x)))

    done = proved(build, run, trusted, inputs, how.get("batches", (1, 2, 5)), allowed, seed, also=also)
    _refuse_mismatch(path, precision, done.comparison, allowed)
    write(path, done.graph.SerializeToString(), overwrite=overwrite)
    sizes = tuple(image_size(x) for x in (inputs, *also)) if dynamic_size else ()
    return _report(path, precision, done, remarks, sizes)


def _report(
    path: Path,
    precision: Precision,
    done: Proved,
    remarks: Mapping[str, str],
    sizes: tuple[tuple[int, int], ...],
) -> ExportReport:
    """Returns what is said of a file that was written."""
    compared = done.comparison
    return ExportReport(
        path=path,
        size_bytes=path.stat().st_size,
        precision=precision,
        rel_l2=compared.rel_l2,
        max_abs_error=compared.max_abs_error,
        top1_agreement=compared.top1_agreement,
        batch_sizes=compared.batch_sizes,
        opset=next(o.version for o in done.graph.opset_import if o.domain in ("", "ai.onnx")),
        lone_norms=done.lone_norms,
        fixed_batch=done.batch,
        notes=tuple(_notes(path, done, remarks)),
        inputs=tuple(value.name for value in done.graph.graph.input),
        outputs=tuple(value.name for value in done.graph.graph.output),
        sizes=sizes,
    )


def _finish(proto: onnx.ModelProto, path: Path, written: Mapping[str, str]) -> int:
    """Folds, writes the metadata and checks, in place; returns the number of lone batch norms."""
    import onnx

    fold_constants(proto)
    lone = fold_batch_norm(proto)
    batch = fixed_batch(proto)
    write_metadata(proto, written if batch is None else {**written, "fixed_batch": str(batch)})
    if proto.ByteSize() > MAX_BYTES:
        raise UsageError(
            f"{path} would hold {proto.ByteSize() / 1e9:.1f} GB, one ONNX file at most 2.1 GB; "
            "export with precision fp16, or prune further"
        )
    onnx.checker.check_model(proto, full_check=True)
    return lone


def _notes(path: Path, done: Proved, remarks: Mapping[str, str]) -> Iterator[str]:
    """Yields what the user of a file should know of its inputs and outputs."""
    if done.comparison.rounding is not None:
        yield (
            f"float32 does not determine what {path} gives: on random inputs PyTorch itself is a relative "
            f"{done.comparison.rounding:.2g} from float64, so the graph was proved with other weights; norms that "
            "still hold statistics of their first steps are often why: train longer"
        )
    if done.batch is not None:
        yield (
            f"{path} takes batches of {done.batch} only: the network has the batch of its example inputs in it "
            "(anchors, a state); export it once for each batch that is needed, or make them from the input"
        )
    if remarks["constants"]:
        yield f"{path} is made for these inputs, which are no tensors: {remarks['constants']}"
    if remarks["left_out"]:
        yield f"{path} leaves out what is no tensor of the outputs: {remarks['left_out']}"


def converted(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    precision: str = "fp32",
    fp32_io: bool = True,
    **how: Any,
) -> onnx.ModelProto:
    """Returns a model as ONNX in fp32, fp16 or bf16; ``fp32_io`` keeps its inputs and outputs float32.

    Free sizes and names are keywords of ``to_onnx``.
    """
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    inputs = filled(example_inputs, [_cast(x, dtype) for x in tensors_in(example_inputs)])
    same = all(p.dtype == dtype for p in model.parameters() if p.is_floating_point())
    placed = model if precision == "fp32" and same else copy_of(model).to(dtype)
    proto = to_onnx(placed, inputs, **how)
    if precision != "fp32" and fp32_io:
        _take_float32(proto)
    return proto


def stamp(path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Adds to the metadata of a file that is there, such as the latency it was measured to have."""
    import onnx

    model = onnx.load(str(path))
    write_metadata(model, _texts(metadata))
    write(path, model.SerializeToString(), overwrite=True)


def onnx_outputs(model: onnx.ModelProto | Path) -> Callable[[tuple[Tensor, ...]], list[NDArray[Any]]]:
    """Returns what runs a model through ONNX Runtime on this CPU: input tensors → output arrays."""
    runtime = session(model)
    names = [i.name for i in runtime.get_inputs()]

    def run(inputs: tuple[Tensor, ...]) -> list[NDArray[Any]]:
        arrays = runtime.run(None, {n: x.detach().cpu().numpy() for n, x in zip(names, inputs, strict=True)})
        return [a.astype(np.float32) if a.dtype == np.float16 else a for a in arrays]

    return run


def _try(model: nn.Module, trusted: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """Runs a model once, so that what it cannot take or gives is said before the export says so obscurely."""
    try:
        with torch.no_grad(), random_states():  # what the network keeps of its example inputs, it keeps
            result = trusted(*inputs)
    except Exception as error:  # whatever the model raises
        shapes = ", ".join("×".join(map(str, x.shape)) or "one number" for x in tensors_in(inputs))
        first = (str(error).strip().splitlines() or ["nothing more"])[0]
        own = sorted(
            {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
        )
        way = "give the size it takes with --size"
        if own and own != ["float32"]:
            way = (
                f"its weights are {' and '.join(own)} and were made float32, in which it is compared: if its forward "
                "casts to another type, cast to that of its weights"
            )
        raise UsageError(
            f"{type(model).__name__} was to be exported with inputs of {shapes} and raised "
            f"{type(error).__name__} on them: {first[:200]}; {way}"
        ) from error
    tensors_given(result)
    _refuse_noise(trusted, inputs)
    return result


def _refuse_noise(trusted: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Refuses a network that draws random numbers; what one keeps from batch to batch is no noise."""
    drawn = random_like(inputs, torch.Generator().manual_seed(0))
    with Surroundings(trusted).kept():
        try:
            noise = relative_l2(*(outputs(copy_of(trusted), drawn) for _ in range(2)))
        except Exception:  # inputs that it does not take: what it draws then shows in the comparison
            return
    if noise > ROUNDING:
        raise UsageError(
            f"{type(trusted).__name__} gives other outputs for the same inputs each time it runs in eval mode "
            f"(relative L2 {noise:.2g}): it draws random numbers, which no other runtime draws alike, so that no file "
            "can be shown to equal it; switch the noise off in eval mode and export again"
        )


def _take_float32(proto: onnx.ModelProto) -> None:
    """Puts a cast behind every half-precision input and before every such output, in place."""
    from onnx import TensorProto, helper

    inner: dict[str, str] = {}
    casts: list[list[Any]] = [[], []]
    for side, values in enumerate((proto.graph.input, proto.graph.output)):
        for value in values:
            half = value.type.tensor_type.elem_type
            if half not in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
                continue
            inner[value.name] = f"{value.name}.half"
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            ends = [value.name, inner[value.name]]
            source, target = ends if side == 0 else ends[::-1]
            to = (half, TensorProto.FLOAT)[side]
            casts[side].append(helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=to))
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [inner.get(name, name) for name in names]
    nodes = [*casts[0], *proto.graph.node, *casts[1]]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def _refuse_mismatch(path: Path, precision: str, result: Comparison, allowed: float) -> None:
    if not result.within(allowed):
        raise MismatchError(
            f"{path} was not written: in {precision} the exported model differs from PyTorch by a relative "
            f"L2 error of {result.rel_l2:.2g}, {allowed:.2g} is allowed (largest difference "
            f"{result.max_abs_error:.2g}, top-1 agreement {result.top1_agreement:.1%}); "
            "try precision fp32, or allow more by a tolerance",
            result.rel_l2,
        )


KEPT = ("model", "method", "budget", "backend", "batch", "threads", "budget_us", "dense_us")
"""Keys of a run's report that go into the file as they are."""

PREDICTED = ("predicted_us", "predicted_low_us", "predicted_high_us")
"""Keys of a prediction, in a report and in a file: the latency, and the range that holds 90 % of measurements."""

PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8"}
"""What a profile's dtype is called in a file."""


def plan_hash(plan: Plan | Path) -> str:
    """Returns the SHA-256 of a plan file, or of the file that a plan would be saved as."""
    data = plan.read_bytes() if isinstance(plan, Path) else plan.text().encode()
    return hashlib.sha256(data).hexdigest()


def metadata_of(
    plan: Plan, cost: LatencyCost | None = None, *, measured_us: float | None = None, precision: str = "fp32"
) -> dict[str, str]:
    """Returns what a file from your own loop says of itself, for ``export_onnx(…, metadata=…)``.

    Args:
        plan: of what the method kept: ``Plan.from_selection(structure, iee)``.
        cost: what the method was given: tells the device, runtime, threads and batch that were profiled, the dense
            latency, and the predicted one where the plan holds none.
        measured_us: latency of the pruned network there, end to end, if you measured it; ``stamp`` adds it later.
        precision: of the file; latencies of another one are left out.
    """
    target, saved = dict(plan.target), plan
    if cost is not None:
        facts = getattr(cost.profile, "environment", {})
        target |= {key: facts.get(key) for key in ("device", "backend", "dtype", "threads")}
        target["batch"] = next((timed.op.batch for timed in cost.structure.ops), 1)
        plan = replace(
            plan,
            target=target,
            latency_us=plan.latency_us if plan.latency_us is not None else cost.total_us(plan.counts),
        )
        within = cost.interval(plan.counts)
        if within is not None:
            target |= {"low_us": within.low_us, "high_us": within.high_us}
            plan = replace(plan, target=target)
    found = plan_metadata(plan, saved, precision=precision)
    dtype = str(target.get("dtype") or "float32")
    if PRECISIONS.get(dtype, dtype) == precision:
        found |= _texts({"dense_us": None if cost is None else cost.dense_us, "measured_us": measured_us})
    return found


def plan_metadata(plan: Plan, path: Path | Plan, *, precision: str = "fp32") -> dict[str, str]:
    """Returns what a file made from a plan says of itself; latencies of another precision are left out."""
    target = plan.target
    values = {"model": plan.model, "budget_us": plan.budget_us, "plan_sha256": plan_hash(path)}
    values |= {key: target.get(key) for key in ("device", "backend", "batch", "threads")}
    dtype = str(target.get("dtype") or "float32")
    if PRECISIONS.get(dtype, dtype) == precision:
        values["predicted_us"] = plan.latency_us
        values |= {f"predicted_{end}_us": target.get(f"{end}_us") for end in ("low", "high")}
    return _texts(values)


def run_metadata(
    report: Mapping[str, Any],
    *,
    plan: Path,
    run: str,
    side: str,
    precision: str = "fp32",
    trained: bool = True,
) -> dict[str, str]:
    """Returns what a file of a run says of itself.

    The plan and its latencies belong to the pruned network (``side``), and latencies of another precision are left out;
    ``trained`` says that the weights are not initial.
    """
    dtype = str(report.get("precision", "float32"))
    same = PRECISIONS.get(dtype, dtype) == precision
    values: dict[str, Any] = {key: report.get(key) for key in KEPT}
    values["preprocess"] = json.dumps(report["preprocess"]) if report.get("preprocess") else None
    environment = report.get("environment") or {}
    values |= {"device": environment.get("device"), "network": side, "run": run}
    if not same:
        values = {
            key: value for key, value in values.items() if not key.endswith("_us") or key == "budget_us"
        }
    if side == "pruned":
        values["plan_sha256"] = plan_hash(plan) if plan.is_file() else None
    if side == "pruned" and same:
        values |= {key: report.get(key) for key in (*PREDICTED, "measured_us")}
    elif same:
        values["measured_us"] = report.get("dense_us")
    if not trained:
        values["weights"] = "initial"
    return _texts(values)


def write_metadata(model: onnx.ModelProto, values: Mapping[str, str]) -> None:
    """Adds names and values to a model's metadata, in place; those of the same name are replaced."""
    import onnx

    found = {entry.key: entry.value for entry in model.metadata_props} | dict(values)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, found)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in values.items():
        if value is None or value == "":
            continue
        found[key] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return found
