"""From an ONNX file to a TensorRT engine that is shown to compute the same.

The ONNX file is the artefact; the engine is a cache for one TensorRT version and one GPU, written with what it belongs
to beside it, and built again where that does not fit. Precision lies in the ONNX file (strong typing). The outputs are
compared with ONNX Runtime's on random batches before the engine gets its name.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from halpiee import __version__
from halpiee.errors import MismatchError, OutputInUseError, UsageError
from halpiee.structure.verification import relative_l2
from latency.backends.cuda import Cuda, open_cuda
from latency.backends.onnxruntime.model import ModelInputs, check_file, weight_precision
from latency.backends.tensorrt.builder import Builder, Settings, TimingCache, import_tensorrt
from latency.backends.tensorrt.engine import (
    EngineRunner,
    check_library,
    facts_of,
    load_engine,
    read_engine,
    write_engine,
)

TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}
"""Largest relative L2 error against ONNX Runtime. From the precisions' own rounding; not tried on a GPU yet."""

Reference = Callable[[dict[str, Any]], list[Any]]


@dataclass(frozen=True)
class Batches:
    """The batch sizes an engine takes, from smallest to largest; its kernels are tuned for ``usual``."""

    low: int = 1
    usual: int = 1
    high: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.usual <= self.high:
            raise UsageError(
                f"batches {self.low}:{self.usual}:{self.high} were asked for; give smallest:usual:largest as 1:8:32"
            )

    def of_one(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Returns smallest, usual and largest shape of an input whose shape without the batch is given."""
        return [(batch, *shape) for batch in (self.low, self.usual, self.high)]

    def of_file(self, onnx: Path) -> dict[str, list[tuple[int, ...]]]:
        """Returns smallest, usual and largest shape of every input with an open batch."""
        proto, found = check_file(onnx), {}
        constants = {tensor.name for tensor in proto.graph.initializer}
        for value in proto.graph.input:
            if value.name in constants:
                continue
            dims = value.type.tensor_type.shape.dim
            rest = [d.dim_value for d in dims[1:]]
            if any(not d.HasField("dim_value") for d in dims[1:]):
                raise UsageError(
                    f"{onnx} leaves more than the batch of {value.name} open; export it at one size, with --size"
                )
            if dims and not dims[0].HasField("dim_value"):
                found[value.name] = self.of_one(rest)
            elif dims and not self.low == self.usual == self.high == dims[0].dim_value:
                n = dims[0].dim_value
                raise UsageError(f"{onnx} takes batch {n} only; use --batch {n}, or leave its batch free")
        return found

    @classmethod
    def of(cls, text: str) -> Batches:
        """Returns the batches of ``8`` or ``1:8:32``."""
        try:
            numbers = [int(part) for part in text.split(":")]
            return cls(*(numbers * 3 if len(numbers) == 1 else numbers))
        except (ValueError, TypeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"batches {text!r} were asked for; give 8, or smallest:usual:largest as 1:8:32"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How an engine's outputs are compared."""

    tolerance: float | None = None  # largest relative L2 error; by default by the precision
    # what computes the outputs to compare with; by default ONNX Runtime on the same file
    reference: Reference | None = None
    seed: int = 0  # of the random inputs


@dataclass(frozen=True)
class EngineReport:
    """What an engine is and how far it is from its ONNX file.

    Attributes:
        path: the engine.
        size_bytes: its size.
        built: whether it was built now; False where the one that was there fits.
        why: why it was built: ``new``, or what did not fit.
        rel_l2: ‖a − b‖₂ / ‖b‖₂ against ONNX Runtime, the worst batch; None: it has not run yet.
        tensorrt: version it belongs to.
        device: GPU, or compute capabilities, that it belongs to.
        batches: batch sizes that were compared.
        facts: all that stands beside it.
    """

    path: Path
    size_bytes: int
    built: bool
    why: str
    rel_l2: float | None
    tensorrt: str
    device: str
    batches: tuple[int, ...]
    facts: dict[str, Any] = field(repr=False)


def build_engine(
    onnx: Path,
    path: Path,
    *,
    batches: Batches | None = None,
    settings: Settings | None = None,
    proof: Proof | None = None,
) -> EngineReport:
    """Builds the engine of an ONNX file, or keeps the one that is there and fits.

    Args:
        onnx: the file; its weights' precision is the engine's.
        path: the engine; what it belongs to is written to ``path`` + ``.json``.
        batches: that it takes, where the file leaves the first dimension open.
        settings: of the build.
        proof: how its outputs are compared.

    Raises:
        MissingError: TensorRT, a CUDA library or a GPU is not there.
        OutputInUseError: ``path`` holds something that halpiee did not write.
        UsageError: TensorRT cannot read the file.
        MismatchError: the outputs differ by more than the tolerance; no engine is written.
    """
    batches, settings, proof = batches or Batches(), settings or Settings(), proof or Proof()
    precision = _precision(onnx, settings)
    trt = import_tensorrt()
    _refuse_foreign(path)
    cuda = open_cuda()
    device = cuda.facts()
    facts = _facts("tensorrt", trt, onnx, precision, batches, settings)
    facts |= {"device": device["device"], "capability": device["capability"]}
    shapes = batches.of_file(onnx)
    why = _misfit(path, facts)
    plan = None
    if why is None:
        plan = read_engine(path)
        why = None if load_engine(trt, plan) is not None else "TensorRT could not load it"
    if why is not None:
        cache = TimingCache(path.with_name(f"{path.name}.timing"))
        builder = Builder(settings, cache)
        plan = builder.build(builder.parsed(onnx), shapes=shapes, what=f"the engine of {onnx}")
        path.parent.mkdir(parents=True, exist_ok=True)
        cache.save()
    assert plan is not None
    sizes = tuple(sorted({batches.low, batches.usual, batches.high}))
    error = _error(trt, plan, cuda, onnx, sizes, proof)
    _refuse_beyond(error, proof.tolerance, f"{path} was not written: the engine", onnx, precision)
    if why is not None:
        write_engine(path, plan, facts)
    version, built = facts["tensorrt"], why is not None
    return EngineReport(path, len(plan), built, why or "fits", error, version, facts["device"], sizes, facts)


def build_portable(
    onnx: Path, path: Path, capabilities: Sequence[int], *, batches: Batches, settings: Settings
) -> EngineReport:
    """Builds an engine with TensorRT for RTX, for GPUs that need not be here; ``prove_engine`` runs it there.

    Args:
        onnx: the file; its weights' precision is the engine's.
        path: the engine; what it belongs to is written to ``path`` + ``.json``, ``proved: null`` included.
        capabilities: compute capabilities of the GPUs, such as 86.
        batches: that it takes, where the file leaves the first dimension open.
        settings: of the build.

    Raises:
        MissingError: the library is not there.
        OutputInUseError: ``path`` holds something that halpiee did not write.
        UsageError: the library cannot read the file.
        UnsupportedOpError: it cannot build the network for these GPUs.
    """
    trt, precision = import_tensorrt("tensorrt_rtx"), _precision(onnx, settings)
    _refuse_foreign(path)
    settings = replace(settings, capabilities=tuple(capabilities))
    builder = Builder(settings, trt=trt)
    plan = builder.build(builder.parsed(onnx), shapes=batches.of_file(onnx), what=f"the engine of {onnx}")
    facts = _facts("tensorrt-rtx", trt, onnx, precision, batches, settings)
    facts |= {"capabilities": list(capabilities), "onnx": onnx.name, "proved": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_engine(path, plan, facts)
    device = f"compute capability {', '.join(map(str, capabilities))}"
    sizes = tuple(sorted({batches.low, batches.usual, batches.high}))
    return EngineReport(path, len(plan), True, "new", None, facts["tensorrt"], device, sizes, facts)


def prove_engine(path: Path, onnx: Path | None = None, *, trust: bool = False, seed: int = 0) -> EngineReport:
    """Runs an engine on this GPU beside its ONNX file, and writes down that it computes the same.

    Args:
        path: the engine, with the file beside it that says what it belongs to.
        onnx: the file that it was built from; by default the one of that name beside it.
        trust: whether an engine is loaded that was built on another machine: engines are executable.
        seed: of the random inputs.

    Raises:
        UsageError: no such files, an ONNX file that it was not built from, or an engine for other GPUs.
        MissingError: the library, a CUDA library or a GPU is not there.
        MismatchError: the outputs differ by more than the tolerance.
    """
    facts = facts_of(path)
    if facts is None or not {"batches", "precision"} <= facts.keys():
        raise UsageError(
            f"{path} was to be verified, and no {path.name}.json beside it says what it is; copy it from where the "
            "engine was built"
        )
    onnx = onnx or path.parent / (facts.get("onnx") or f"{path.stem}.onnx")
    if not onnx.is_file() or hashlib.sha256(onnx.read_bytes()).hexdigest() != facts.get("onnx_sha256"):
        raise UsageError(
            f"{path} was to be verified against {onnx}, which is not the file that it was built from; name that one "
            "with --onnx"
        )
    plan, kind = read_engine(path, trust=trust), str(facts.get("library", "tensorrt"))
    trt = import_tensorrt("tensorrt_rtx" if kind == "tensorrt-rtx" else "tensorrt")
    cuda = open_cuda()
    device = cuda.facts()
    check_library(path, trt, device)
    sizes = tuple(sorted({int(size) for size in facts["batches"].values()}))
    precision = str(facts["precision"])
    error = _error(trt, plan, cuda, onnx, sizes, Proof(seed=seed))
    _refuse_beyond(error, None, f"{path}", onnx, precision)
    public = {key: value for key, value in facts.items() if key not in ("seal", "engine_sha256")}
    public["proved"] = {**device, "rel_l2": error, "tensorrt": str(trt.__version__)}
    write_engine(path, plan, public)
    return EngineReport(
        path, len(plan), False, "verified", error, str(trt.__version__), device["device"], sizes, public
    )


def _facts(
    library: str, trt: Any, onnx: Path, precision: str, batches: Batches, settings: Settings
) -> dict[str, Any]:
    """Returns what an engine belongs to, whatever it was built for."""
    return {
        "library": library,
        "halpiee_version": __version__,
        "onnx_sha256": hashlib.sha256(onnx.read_bytes()).hexdigest(),
        "tensorrt": str(trt.__version__),
        "precision": precision,
        "batches": asdict(batches),
        "settings": {**asdict(settings), "capabilities": list(settings.capabilities)},
    }


def _refuse_foreign(path: Path) -> None:
    if path.exists() and facts_of(path) is None:
        raise OutputInUseError(
            f"{path} exists and is no engine of halpiee's; choose another name, nothing is overwritten"
        )


def _refuse_beyond(error: float, tolerance: float | None, what: str, onnx: Path, precision: str) -> None:
    allowed = TOLERANCE[precision] if tolerance is None else tolerance
    if not error <= allowed:
        raise MismatchError(
            f"{what} differs from {onnx} in ONNX Runtime by a relative L2 error of "
            f"{error:.2g}, {allowed:.2g} is allowed in {precision}; try fp32, or another builder level",
            error,
        )


def trtexec_line(
    onnx: Path, path: Path, *, shapes: Mapping[str, Sequence[Sequence[int]]], settings: Settings
) -> str:
    """Returns the ``trtexec`` command that builds and times the same engine in 10 and 11.

    ``shapes`` are the smallest, usual and largest of every input with an open batch, by name.
    """
    words = ["trtexec", f"--onnx={onnx}", f"--saveEngine={path}", "--stronglyTyped"]
    for place, option in enumerate(("min", "opt", "max") if shapes else ()):
        named = (f"{name}:{'x'.join(map(str, of[place]))}" for name, of in shapes.items())
        words.append(f"--{option}Shapes={','.join(named)}")
    words += [f"--builderOptimizationLevel={settings.level}", f"--avgTiming={settings.timing_iterations}"]
    words += ["--maxAuxStreams=0", f"--timingCacheFile={path}.timing"]
    words += [] if settings.tf32 else ["--noTF32"]
    words += ["--sparsity=enable"] if settings.sparse else []
    if settings.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{settings.workspace_bytes / 2**20:g}M")
    words += ["--useCudaGraph", "--noDataTransfers", "--useSpinWait", "--separateProfileRun"]
    return shlex.join(words)


def _misfit(path: Path, facts: dict[str, Any]) -> str | None:
    """Returns why the engine that is there does not fit; None if it does."""
    there = facts_of(path)
    if not path.is_file() or there is None:
        return "new"
    for key in ("tensorrt", "device", "onnx_sha256", "batches", "settings"):
        if there.get(key) != facts[key]:
            return f"another {key}"
    try:
        read_engine(path)
    except UsageError:
        return "not built here"
    return None


def _precision(onnx: Path, settings: Settings) -> str:
    found = weight_precision(check_file(onnx))
    return "tf32" if found == "fp32" and settings.tf32 else found


def _error(trt: Any, plan: bytes, cuda: Cuda, onnx: Path, sizes: Sequence[int], proof: Proof) -> float:
    """Returns the relative L2 error of an engine on random batches, the worst of them."""
    from latency.backends.onnxruntime.network import feeds, session

    runtime = None if proof.reference else session(onnx)
    given, worst = ModelInputs(check_file(onnx)), 0.0
    for size in sizes:
        with EngineRunner(trt, lambda: plan, lambda: cuda, batch=size, graphs=False) as runner:
            inputs = feeds(given, batch=size, seed=proof.seed)
            if runtime is not None:
                names = [output.name for output in runtime.get_outputs()]
                expected = dict(zip(names, runtime.run(None, inputs), strict=True))
                trusted = [expected[b.name] for b in runner.execution.bindings if not b.is_input]
            else:
                assert proof.reference is not None
                trusted = proof.reference(inputs)
            error = relative_l2(runner.infer(inputs), [np.asarray(x) for x in trusted])
        worst = max(worst, error) if error == error else float("nan")
        if worst != worst:
            break
    return worst
