"""How TensorRT engines are built: one way for the majors 10 and 11.

Precision lies in the graph (strong typing), so the flags for half precision, which 11 removed, are never set. Enums
are named, never numbered: their numbers moved between the majors. Every call here is in the contracts of both
(``tests/tensorrt``). A build that fails returns None: that is said.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from latency.backends import NetworkOptions
from latency.backends.cuda import OutOfMemoryError
from latency.errors import MissingError, UnsupportedOpError, UsageError
from latency.files import write

CAPABILITIES = (75, 80, 86, 89, 120, 121)
"""What TensorRT for RTX builds for; 90 and 100 are datacenter GPUs, which TensorRT serves."""


INSTALL = {
    "tensorrt": ("TensorRT", "`pip install tensorrt` on a machine with an NVIDIA GPU, or use ONNX Runtime"),
    "tensorrt_rtx": ("TensorRT for RTX", "`pip install 'halpiee[rtx]'`"),
}
"""Module → its name in messages, and how it is installed."""


def import_tensorrt(module: str = "tensorrt") -> Any:
    """Returns the module ``tensorrt``, or ``tensorrt_rtx``, which builds without a GPU and a driver.

    Raises:
        MissingError: it is not installed, or its libraries cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        name, fix = INSTALL[module]
        raise MissingError(
            f"{name} was asked for, and it cannot be imported ({error}); install it with {fix}"
        ) from error


def capabilities_of(text: str) -> tuple[int, ...]:
    """Returns the compute capabilities of ``86,89``."""
    found = [part.strip().replace(".", "") for part in text.split(",")]
    for part in found:
        if not part.isdecimal() or int(part) not in CAPABILITIES:
            hint = (
                " (H100 and other datacenter GPUs: build with --format tensorrt there)"
                if part in ("90", "100")
                else ""
            )
            raise UsageError(
                f"--compute-capability {text} was asked, and TensorRT for RTX builds for "
                f"{', '.join(map(str, CAPABILITIES))}, not for {part or 'nothing'}{hint}; name some of these"
            )
    return tuple(sorted({int(part) for part in found}))


def new_logger(trt: Any, errors: list[str] | None = None) -> tuple[Any, list[str]]:
    """Returns a logger for TensorRT and the list that its errors go to: the one given, or a new one."""
    kept: list[str] = [] if errors is None else errors

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors; the rest of TensorRT's talk is dropped."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            """Takes one line."""
            if getattr(severity, "name", "") in ("ERROR", "INTERNAL_ERROR"):
                kept.append(str(msg).strip())

    return Logger(), kept


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How engines are built."""

    level: int = 3  # builder optimisation level, 0 … 5
    tf32: bool = False  # whether float32 convolutions may use TF32
    sparse: bool = False  # whether 2:4 sparse kernels may be used, where weights have that pattern
    timing_iterations: int = 8  # timings of each tactic that are averaged; TensorRT's own 1 picks by noise
    workspace_bytes: int | None = None  # scratch memory; None: all there is
    capabilities: tuple[
        int, ...
    ] = ()  # of the GPUs it is built for, such as 86; empty: the GPU that is there

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 5:
            raise UsageError(f"builder optimisation level {self.level} was asked for; there are 0 to 5")


class TimingCache:
    """TensorRT's times of kernels, in a file or for this process: a build that finds its own there takes seconds."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._content = path.read_bytes() if path is not None and path.is_file() else b""
        self._saved = time.monotonic()
        self.refused = False

    def give(self, config: Any) -> None:
        """Hands the cache to a build; the build replaces one of another version or GPU by its own."""
        cache = config.create_timing_cache(self._content)
        if cache is None or not config.set_timing_cache(cache, False):
            self.refused = True
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def take(self, config: Any) -> None:
        """Stores what the build added, and writes the file at most every ten seconds."""
        cache = config.get_timing_cache()
        if cache is None:
            return
        self._content = bytes(cache.serialize())
        if time.monotonic() - self._saved >= 10.0:
            self.save()

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        self._saved = time.monotonic()
        if self.path is None or not self._content:
            return
        write(self.path, self._content, overwrite=True)


class Builder:
    """Builds engines from networks or ONNX files."""

    def __init__(
        self, settings: Settings | None = None, cache: TimingCache | None = None, trt: Any = None
    ) -> None:
        self.trt = import_tensorrt() if trt is None else trt
        self._times_tactics = not hasattr(
            self.trt, "IRuntimeCache"
        )  # TensorRT for RTX has kernels made at run time
        self.settings = settings or Settings()
        self.cache = cache or TimingCache(None)
        self.logger, self.said = new_logger(self.trt)
        self._builder = self.trt.Builder(self.logger)

    def network(self) -> Any:
        """Returns an empty, strongly typed network."""
        return self._builder.create_network(typed_flags(self.trt))

    def parsed(self, path: Path) -> Any:
        """Returns the network of an ONNX file."""
        network = self.network()
        parser = self.trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(path)):
            why = "; ".join(parser.get_error(i).desc() for i in range(min(3, parser.num_errors)))
            raise UsageError(
                f"{path} was to become an engine, and TensorRT {self.trt.__version__} cannot read it: "
                f"{why or 'no reason given'}; check the file, or export it again with `halpiee export`"
            )
        return network

    def build(
        self,
        network: Any,
        *,
        shapes: Mapping[str, Sequence[Sequence[int]]] | None = None,
        what: str = "an engine",
    ) -> bytes:
        """Returns the serialised engine of a network.

        ``shapes`` gives the smallest, usual and largest shape of inputs with open dimensions; kernels are tuned for the
        usual one.

        Raises:
            OutOfMemoryError: the GPU's memory is full.
            UnsupportedOpError: TensorRT could not build it; its complaint is named.
        """
        trt, config = self.trt, self._config()
        if shapes:
            profile = self._builder.create_optimization_profile()
            for name, (low, usual, high) in shapes.items():
                profile.set_shape(name, tuple(low), tuple(usual), tuple(high))
            config.add_optimization_profile(profile)
        del self.said[:]
        if self._times_tactics:
            self.cache.give(config)
        plan = self._builder.build_serialized_network(network, config)
        if plan is None:
            why = _cause(self.said)
            if any("memory" in line.lower() for line in self.said):
                raise OutOfMemoryError(
                    f"{what} was to be built, and the GPU has no memory for it (TensorRT says: {why}); use a smaller "
                    "batch, or end what else runs there"
                )
            raise UnsupportedOpError(
                f"{what} was to be built, and TensorRT {trt.__version__} could not: {why}; leave it out, or try "
                "another precision"
            )
        if self._times_tactics:
            self.cache.take(config)
        return bytes(plan)

    def engine_of(
        self, model: Any, example_inputs: Sequence[Any] | None, *, dtype: str, **how: Unpack[NetworkOptions]
    ) -> bytes:
        """Returns the serialised engine of a module or ONNX model, at the shapes of the inputs.

        Raises:
            UsageError: a module without inputs, sizes that nobody says, or a file that TensorRT cannot read.
            UnsupportedOpError: TensorRT could not build it.
        """
        from latency.backends.onnxruntime.model import exported

        model = exported(model, example_inputs, dtype=dtype)
        with tempfile.TemporaryDirectory() as folder:
            is_file = isinstance(model, str | Path)
            path = Path(model) if is_file else Path(folder) / "network.onnx"
            if not is_file:
                path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
            what = how.get("name") or (str(model) if is_file else "the network")
            shapes = _shapes(path, example_inputs or (), (how.get("batch"), how.get("shape")))
            return self.build(self.parsed(path), shapes=shapes, what=f"the engine of {what}")

    def _config(self) -> Any:
        trt, settings = self.trt, self.settings
        config = self._builder.create_builder_config()
        if settings.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
        for flag, on in (
            (trt.BuilderFlag.TF32, settings.tf32),
            (trt.BuilderFlag.SPARSE_WEIGHTS, settings.sparse),
        ):
            (config.set_flag if on else config.clear_flag)(flag)
        config.builder_optimization_level = settings.level
        config.avg_timing_iterations = settings.timing_iterations
        config.max_aux_streams = 0  # branches one after another, so that the sum of layers is the time of all
        if settings.capabilities:
            config.num_compute_capabilities = len(settings.capabilities)
            for i, capability in enumerate(settings.capabilities):
                config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), i)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        return config


def _shapes(
    path: Path, example_inputs: Sequence[Any], sizes: tuple[int | None, Sequence[int] | None]
) -> dict[str, list[tuple[int, ...]]]:
    """Returns for each input with open dimensions its shape, three times: an engine for one size."""
    from latency.backends.onnxruntime.model import ModelInputs, check_file
    from latency.backends.onnxruntime.network import input_sizes

    inputs = ModelInputs(check_file(path))
    values = inputs.get_inputs()
    tensors = [x for x in example_inputs if hasattr(x, "shape")]
    if len(tensors) < len(values):
        shapes = input_sizes(inputs, path.name, *sizes)
    else:
        shapes = {value.name: x.shape for value, x in zip(values, tensors, strict=False)}
    free = [value.name for value in values if not all(isinstance(d, int) for d in value.shape)]
    return {name: [tuple(map(int, shapes[name]))] * 3 for name in free}


def typed_flags(trt: Any) -> int:
    """Returns the flags of a strongly typed network: a bit that moved in 11, and that a later major may drop."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


NOISE = (
    "scopedcudastream",
    "cudaerror",
    "cuda initialization",
    "cuda error 35",
    "unable to determine gpu memory",
)
"""What the library logs, in lower case, on every build without a driver; the cause of a failure comes after it."""


def _cause(said: Sequence[str]) -> str:
    """Returns the first logged line that is not about a missing driver."""
    lines = [line for line in said if line]
    telling = [line for line in lines if not any(word in line.lower() for word in NOISE)]
    return (telling or lines or ["no reason given"])[0]
