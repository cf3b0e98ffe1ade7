"""``halpiee export`` writes a network as ONNX, an engine or a folder for the hub, and compares it with PyTorch.

``halpiee verify`` runs an engine that was built elsewhere on this GPU, beside its ONNX file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halpiee import ranges
from halpiee.cli.export_int8 import ONNX, Quantising, export_quantised
from halpiee.cli.options import SIZES, Answered, Built, input_size, verb
from halpiee.cli.output import answer, say
from halpiee.errors import OutputInUseError, UsageError
from halpiee.inputs import INPUTS, parse_inputs
from halpiee.options import described, option
from halpiee.shared_options import NETWORK, Seeded
from latency.files import check_place

if TYPE_CHECKING:
    from halpiee.cli.networks import Network
    from halpiee.deploy.onnx import ExportReport
    from halpiee.deploy.tensorrt import Batches, EngineReport


ENGINE = "TensorRT engines"  # heading of options

BATCH, LEVEL = "1", 3
"""What an engine is built for where --batch and --builder-level, which no other file has, are left out."""


@dataclass(frozen=True, kw_only=True)
class Export(Built, Quantising):
    """The network that is written, and how."""

    source: str | None = option(
        None, "Folder of a run or a MODEL; for an engine also an ONNX file.", argument=True
    )
    format: Literal["onnx", "tensorrt", "tensorrt-rtx", "hub"] = option(
        "onnx", "What is written; hub: a run as a folder for the Hugging Face hub, with a model card."
    )
    out: Path = field(metadata=described("File to write, or folder for hub; never overwritten."))
    precision: Literal["fp32", "tf32", "fp16", "bf16"] = option(
        "fp32", "Precision; tf32 and bf16: engines only."
    )
    dense: bool = option(False, "A run's dense network instead of the pruned one.", NETWORK)
    plan: Path | None = option(None, "Plan to apply to the network.", NETWORK)
    weights: Path | None = option(
        None, "Safetensors or a state dict (.pth); with --plan of the dense or the compact one.", NETWORK
    )
    size: str | None = option(
        None, f"Image size of a MODEL or plan: {SIZES}.", NETWORK, unset="the plan's; of a MODEL 224"
    )
    inputs: tuple[str, ...] = option((), INPUTS, NETWORK, typed="--input")
    trust_plan: bool = option(
        False, "Let the plan name a package.module:function to call, of any arguments.", NETWORK
    )
    trust_run: bool = option(False, "Let settings.json of a run from elsewhere name such functions.", NETWORK)
    half_io: bool = option(False, "An fp16 file also takes and gives fp16.", ONNX, unset="float32")
    measure: bool = option(False, "Time the file here, on one thread, and write the time into it.", ONNX)
    dynamic_size: bool = option(False, "Let the file take images of any height and width.", ONNX)
    input_names: str | None = option(
        None, "Names of the inputs, in order: image,depth.", ONNX, unset="the arguments' of forward"
    )
    output_names: str | None = option(
        None, "Names of the outputs, in order.", ONNX, unset="the keys of what forward returns"
    )
    batch: str | None = option(
        None, "Batches an engine takes: 8, or smallest:usual:largest, 1:8:32.", ENGINE, unset=BATCH
    )
    builder_level: ranges.Level | None = option(
        None, "Optimisation level of the builder.", ENGINE, unset=f"{LEVEL}"
    )
    compute_capability: str | None = option(
        None, "GPUs that a tensorrt-rtx engine is for, such as 86,89; none needs to be here.", ENGINE
    )
    sparse: bool = option(False, "Allow 2:4 sparse kernels where weights have the pattern.", ENGINE)
    dry_run: bool = option(
        False, "Print the trtexec line that builds the same engine; write nothing.", ENGINE
    )

    @property
    def ends(self) -> dict[str, Any]:
        """How a file's inputs and outputs are named and sized, as ``export_onnx`` takes it."""
        names = (self.input_names, self.output_names)
        inputs, outputs = (
            None if text is None else [part.strip() for part in text.split(",")] for text in names
        )
        return {"dynamic_size": self.dynamic_size, "input_names": inputs, "output_names": outputs}


@verb(
    "export",
    Export,
    examples=(
        "halpiee export runs/demo --out small.onnx",
        "halpiee export runs/demo --dense --out dense.onnx",
        "halpiee export my.module:net --input image=3x128x128 --input depth=1x128x128 --out net.onnx",
        "halpiee export --plan half.json --weights resnet50.safetensors --out half.onnx",
        "halpiee export torchvision/resnet18 --precision fp16 --out resnet18.onnx",
        "halpiee export runs/demo --int8 --out small-int8.onnx",
        "halpiee export resnet20 --weights w.safetensors --size 32 --int8 --data cifar10 --out int8.onnx",
        "halpiee export torchvision/resnet18 --dynamic-size --input-names image --out resnet18.onnx",
        "halpiee export runs/demo --format tensorrt --precision fp16 --batch 1:8:32 --out small.engine",
        "halpiee export small.onnx --format tensorrt --out small.engine --dry-run",
        "halpiee export small.onnx --format tensorrt-rtx --compute-capability 86,89 --out small.engine",
        "halpiee export runs/demo --format hub --out hub/demo",
    ),
)
def command(given: Export) -> None:
    """Write a network as ONNX, or as a TensorRT engine, and prove that it computes what PyTorch computes.

    SOURCE is the folder of a run or a MODEL, for an engine also an ONNX file; with --plan it may be left out.
    """
    _check(given)
    if given.format == "hub":
        _export_hub(given)
        return
    if given.format != "onnx":
        _export_engine(given)
        return
    check_place(given.out)
    if given.int8:
        export_quantised(
            given, given.out, _network(given), named=str(given.source or given.plan), ends=given.ends
        )
        return
    network = _network(given)
    from halpiee.deploy.onnx import export_onnx

    done = export_onnx(
        network.model,
        network.example,
        given.out,
        metadata=network.metadata,
        precision="fp16" if given.precision == "fp16" else "fp32",
        fp32_io=not given.half_io,
        **given.ends,
        seed=given.seed,
    )
    notes = [*network.notes, *done.notes]
    result: dict[str, Any] = {**asdict(done), "masked_rel_l2": network.masked_error, "notes": notes}
    if given.measure:
        result["measured_us"] = _measured_us(given.out, done.fixed_batch or 1)
    answer(result, given.as_json, lambda: _show(given, network, done, result.get("measured_us")))


def _export_hub(given: Export) -> None:
    """Writes a run as a folder for the Hugging Face hub."""
    from halpiee.hub import push

    if given.source is None:
        raise UsageError("--format hub was asked without a run; name the folder of one before --format")
    folder = push(given.source, given.out)
    files = sorted(path.name for path in folder.iterdir())
    text = f"{folder}: {', '.join(files)}; `huggingface-cli upload OWNER/NAME {folder}` uploads it"
    answer({"out": str(folder), "files": files}, given.as_json, lambda: say(text))


def _check(given: Export) -> None:
    """Refuses options of the other kind of file."""
    if given.data is not None and not given.int8:
        raise UsageError(
            "--data was asked of an export that reads no images; add --int8, or leave --data out"
        )
    if given.int8 and (given.format != "onnx" or given.precision != "fp32" or given.half_io):
        raise UsageError(
            "--int8 was asked together with another --format or --precision; leave that out: it writes an ONNX file of "
            "int8 weights and activations"
        )
    portable = given.format == "tensorrt-rtx"
    if portable and given.compute_capability is None:
        raise UsageError(
            "--format tensorrt-rtx was asked without GPUs to build for; add --compute-capability, such as 86,89"
        )
    if not portable and given.compute_capability is not None:
        raise UsageError(
            f"--compute-capability was asked of --format {given.format}; add --format tensorrt-rtx, or leave it out: "
            "TensorRT builds for the GPU that is there"
        )
    if portable and given.dry_run:
        raise UsageError("--dry-run says a trtexec line, which is TensorRT's; leave it out")
    if given.format != "onnx":
        if any(given.ends.values()):
            raise UsageError(
                "--dynamic-size, --input-names and --output-names are for ONNX files; leave them out, or export an "
                "ONNX file with them and build the engine of that"
            )
        if given.half_io or given.measure:
            raise UsageError(
                "--half-io and --measure are for ONNX files; leave them out; `halpiee bench` times engines"
            )
        return
    of_engines = given.batch or given.builder_level is not None or given.sparse or given.dry_run
    if given.precision in ("tf32", "bf16") or of_engines:
        raise UsageError(
            "--batch, --builder-level, --sparse, --dry-run and the precisions tf32 and bf16 are of engines; add "
            "--format tensorrt, or leave them out"
        )
    if given.half_io and given.precision != "fp16":
        raise UsageError("--half-io was asked of an fp32 file; add --precision fp16, or leave it out")


def _measured_us(file: Path, batch: int) -> float:
    """Times a file here, and writes the time into its metadata."""
    import latency
    from halpiee.deploy.onnx import stamp

    found = latency.measure(file)
    facts = {"measured_us": f"{found.median_us:.6g}", "batch": str(batch), "threads": "1"}
    stamp(file, facts | {"device": str(latency.environment()["device"])})
    return found.median_us


def _show(given: Export, network: Network, done: ExportReport, measured_us: float | None) -> None:
    pruned = "" if network.masked_error is None else f"compact equals masked to {network.masked_error:.1e}, "
    say(
        f"{given.out}: {done.size_bytes / 1e6:.1f} MB, {given.precision}, opset {done.opset}; {pruned}"
        f"relative L2 to PyTorch {done.rel_l2:.1e}, top-1 agrees on {done.top1_agreement:.1%}"
        + ("" if measured_us is None else f"; {measured_us:.0f} µs on one thread")
    )
    sizes = ", ".join("×".join(map(str, size)) for size in done.sizes)
    say(
        f"inputs {', '.join(done.inputs)}; outputs {', '.join(done.outputs)}"
        + (f"; any height and width, compared at {sizes}" if sizes else "")
    )
    for note in (*network.notes, *done.notes):
        say(note)


def _network(given: Export) -> Network:
    """Opens the network that was named; refuses options that do not go together."""
    from halpiee.cli.networks import USUAL, check_run, from_model, from_plan, from_run, is_run

    source, plan, dense = given.source, given.plan, given.dense
    shape = parse_inputs(given.inputs) or (None if given.size is None else input_size(given.size))
    if plan is not None:
        if dense or (source is not None and is_run(source)):
            raise UsageError(
                "--plan was asked of a run, which has its own; leave --plan out, or name a MODEL"
            )
        if given.width is not None or given.classes is not None:
            raise UsageError("--width and --classes are in the plan; leave them out beside --plan")
        return from_plan(
            plan,
            shape,
            model=source,
            weights=given.weights,
            precision="int8" if given.int8 else given.precision,
            seed=given.seed,
            trust=given.trust_plan,
        )
    if source is None:
        raise UsageError("nothing to export was named; give the folder of a run, a MODEL, or --plan FILE")
    if Path(source).is_dir():
        check_run(Path(source))
        own = {"weights": given.weights, "size": given.size, "input": given.inputs or None, **given.arguments}
        for name, value in own.items():
            if value is not None:
                raise UsageError(
                    f"--{name} was asked of {source}, a run, which has its own; leave --{name} out"
                )
        if dense and not (Path(source) / "dense.safetensors").is_file():
            raise UsageError(
                f"--dense was asked of {source}, which trained no dense network (--no-baseline) and holds the pruned "
                "one only; leave --dense out, or train it again with --baseline in another --out"
            )
        precision = "int8" if given.int8 else given.precision
        return from_run(Path(source), dense=dense, precision=precision, trust=given.trust_run)
    if "/" in source and ":" not in source and not source.startswith(("torchvision/", "timm/")):
        raise UsageError(
            f"{source} was to be exported, and there is no such folder; name the folder of a run, or a MODEL"
        )
    if dense:
        raise UsageError(
            f"--dense was asked of {source}, and only a run has a dense network beside; leave it out"
        )
    return from_model(source, shape or USUAL, weights=given.weights, seed=given.seed, **given.arguments)


def _export_engine(given: Export) -> None:
    """Writes the engine of an ONNX file, or of a network whose ONNX file is written beside it."""
    from halpiee.deploy.tensorrt import Batches, Proof, build_engine, build_portable, trtexec_line
    from latency.backends.tensorrt.builder import Settings, capabilities_of, import_tensorrt

    source, out = given.source, given.out
    batches = Batches.of(given.batch or BATCH)
    level = LEVEL if given.builder_level is None else given.builder_level
    settings = Settings(level=level, tf32=given.precision == "tf32", sparse=given.sparse)
    file = Path(source) if source is not None and source.endswith(".onnx") else None
    onnx = file or out.with_suffix(".onnx")
    if onnx == out:
        raise UsageError(
            f"--out {out} is the name of an ONNX file; name the engine, such as {out.stem}.engine"
        )
    if given.dry_run:
        shapes = batches.of_file(file) if file else _shapes(_network(given), batches)
        line = trtexec_line(onnx, out, shapes=shapes, settings=settings)
        answer({"onnx": str(onnx), "engine": str(out), "trtexec": line}, given.as_json, lambda: say(line))
        return
    check_place(out, overwrite=True)
    if file is None and onnx.exists():
        raise OutputInUseError(
            f"{onnx}, which would go beside {out}, exists; take it (`halpiee export {onnx} --format {given.format} "
            f"--out {out}`), or choose another --out"
        )
    portable = given.format == "tensorrt-rtx"
    capabilities = capabilities_of(given.compute_capability or "") if portable else ()
    if portable:
        import_tensorrt("tensorrt_rtx")
    else:
        _look_for_a_gpu()
    network = None if file else _network(given)
    notes = [] if network is None else [*network.notes]
    reference = None if network is None else _write_onnx(network, onnx, given.precision, given.seed, notes)
    if portable:
        done = build_portable(onnx, out, capabilities, batches=batches, settings=settings)
    else:
        proof = Proof(reference=reference, seed=given.seed)
        done = build_engine(onnx, out, batches=batches, settings=settings, proof=proof)
    result = {**asdict(done), "onnx": str(onnx), "notes": notes}
    answer(result, given.as_json, lambda: _show_engine(out, onnx, done, notes))


def _show_engine(out: Path, onnx: Path, done: EngineReport, notes: list[str]) -> None:
    for note in notes:
        say(note)
    if done.rel_l2 is None:
        say(
            f"{out}: built for {done.device}, {done.size_bytes / 1e6:.1f} MB, TensorRT for RTX {done.tensorrt}; its "
            f"outputs are unproved until `halpiee verify {out} --trust-engine` has run on such a GPU, beside {onnx}"
        )
        return
    how = f"built ({done.why})" if done.built else "there already, and fits"
    say(
        f"{out}: {how}, {done.size_bytes / 1e6:.1f} MB, TensorRT {done.tensorrt} on {done.device}; relative L2 to "
        f"the ONNX file {done.rel_l2:.1e} at batches {', '.join(map(str, done.batches))}"
    )
    say(f"{onnx} is the artefact; the engine is rebuilt from it where TensorRT or the GPU is another")


def _look_for_a_gpu() -> None:
    """Refuses a machine without TensorRT or a GPU, before the long work."""
    from latency.backends.cuda import open_cuda
    from latency.backends.tensorrt.builder import import_tensorrt

    import_tensorrt()
    open_cuda()


def _write_onnx(
    network: Network, onnx: Path, precision: str, seed: int, notes: list[str]
) -> Callable[[dict[str, Any]], list[Any]] | None:
    """Writes the artefact; returns what computes its outputs where ONNX Runtime's CPU cannot (bfloat16).

    What should be known of the file is added to ``notes``.
    """
    from halpiee.deploy.onnx import converted, export_onnx

    if precision != "bf16":
        half: Literal["fp32", "fp16"] = "fp16" if precision == "fp16" else "fp32"
        done = export_onnx(
            network.model, network.example, onnx, metadata=network.metadata, precision=half, seed=seed
        )
        notes += done.notes
        return None
    import torch

    from halpiee.deploy.onnx import write_metadata
    from halpiee.deploy.verify import outputs, reference
    from latency.files import write

    proto = converted(network.model, network.example, precision="bf16")
    write_metadata(proto, {**network.metadata, "precision": "bf16"})
    write(onnx, proto.SerializeToString())
    trusted = reference(network.model)
    return lambda inputs: outputs(trusted, tuple(torch.from_numpy(x) for x in inputs.values()))


def _shapes(network: Network, batches: Batches) -> dict[str, list[tuple[int, ...]]]:
    """Returns smallest, usual and largest shape of every input that has a batch."""
    from latency.backends.torch.modules import input_names, tensors_in

    named = zip(input_names(network.model, network.example), tensors_in(network.example), strict=True)
    return {name: batches.of_one(value.shape[1:]) for name, value in named if value.ndim}


@dataclass(frozen=True, kw_only=True)
class Verify(Seeded, Answered):
    """The engine that is run, and what it is compared with."""

    file: Path = field(
        metadata=described("A TensorRT engine, its .json beside it.", argument=True, metavar="FILE")
    )
    onnx: Path | None = option(
        None, "The ONNX file that it was built from.", unset="the one beside it that its .json names"
    )
    trust_engine: bool = option(
        False, "Load an engine that was built on another machine: engines are executable."
    )


@verb(
    "verify",
    Verify,
    examples=(
        "halpiee verify small.engine --trust-engine",
        "halpiee verify small.engine --onnx small.onnx --json",
    ),
)
def verify(given: Verify) -> None:
    """Run an engine on this GPU, compare it with its ONNX file in ONNX Runtime, and write that beside it."""
    from halpiee.deploy.tensorrt import prove_engine

    done = prove_engine(given.file, given.onnx, trust=given.trust_engine, seed=given.seed)
    text = (
        f"{given.file}: relative L2 to the ONNX file {done.rel_l2:.1e} at batches "
        f"{', '.join(map(str, done.batches))}, on {done.device} with version {done.tensorrt}"
    )
    answer(asdict(done), given.as_json, lambda: say(text))
