"""How TensorRT engines are loaded and run: one way for the majors 10 and 11.

Enums are named, never numbered: their numbers moved between the majors. Every call here is in the contracts of both
(``tests/tensorrt``). A plan of another version or GPU loads to None: that is said.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latency.backends import Runner, is_module
from latency.backends.cuda import Cuda, OutOfMemoryError
from latency.backends.tensorrt.builder import Builder, new_logger
from latency.backends.tensorrt.files import facts_of, read_engine
from latency.errors import UsageError

__all__ = [
    "DTYPES",
    "ENGINE_FILES",
    "Context",
    "Engine",
    "EngineNetwork",
    "EngineRunner",
    "check_library",
    "from_float",
    "in_turns",
    "load_engine",
    "open_engine",
    "plain_context",
    "random_numbers",
    "to_float",
    "typed_onnx",
]

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT32": "int32", "INT64": "int64",
          "BOOL": "bool", "INT8": "int8", "UINT8": "uint8"}  # fmt: skip
"""numpy's name for TensorRT's types; bfloat16, which numpy lacks, as its sixteen bits."""


def random_numbers(rng: np.random.Generator, count: int, dtype: str) -> Any:
    """Returns numbers of a standard normal in one of TensorRT's types; zeros for types that are not floating."""
    if dtype not in ("FLOAT", "HALF", "BF16"):
        return np.zeros(count, dtype=DTYPES[dtype])
    return from_float(rng.standard_normal(count, dtype=np.float32), dtype)


def from_float(array: Any, dtype: str) -> Any:
    """Returns an array in one of TensorRT's types; bfloat16 as the upper half of float32, rounded to nearest even."""
    if dtype != "BF16":
        return np.ascontiguousarray(array, dtype=DTYPES[dtype])
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_float(array: Any) -> Any:
    """Returns bfloat16 bits as float32."""
    return (array.astype(np.uint32) << 16).view(np.float32)


ENGINE_FILES = (".engine", ".plan", ".trt")
"""Endings of engines."""

PADDED = 64
"""Formats pad channels to 2, 4, 8, 16 or 32: buffers are sized for the next multiple of this."""


@dataclass(frozen=True)
class Engine:
    """A loaded engine, and the objects that must live as long.

    Attributes:
        handle: TensorRT's engine.
        runtime: what loaded it.
        logger: of the runtime.
    """

    handle: Any
    runtime: Any
    logger: Any


def load_engine(trt: Any, plan: bytes, said: list[str] | None = None) -> Engine | None:
    """Returns an engine, or None where the library refuses it; what it logs goes to ``said``."""
    logger, _ = new_logger(trt, said)
    runtime = trt.Runtime(logger)
    handle = runtime.deserialize_cuda_engine(plan)
    return None if handle is None else Engine(handle, runtime, logger)


@dataclass(frozen=True)
class Binding:
    """One input or output of an engine.

    Attributes:
        name: its name.
        is_input: whether it goes in.
        dtype: TensorRT's name of its type.
        shape: its shape, open dimensions filled.
        address: of its memory on the GPU.
    """

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]
    address: int

    def empty(self) -> Any:
        """Returns an array of its shape and type."""
        return np.empty(self.shape, dtype=DTYPES[self.dtype])


class EngineRunner:
    """An engine with memory for its inputs and outputs, ready to be enqueued.

    Args:
        trt: the ``tensorrt`` module.
        engine: what runs.
        cuda: where it runs.
        shapes: of inputs with open dimensions.
        shared: another runner of the same plan, whose memory is used as well.
        context: of the engine; by default a plain one.

    Raises:
        UsageError: an input whose open dimensions nobody gave, or a shape that the engine does not take.
        OutOfMemoryError: the GPU's memory is full.
    """

    def __init__(
        self,
        trt: Any,
        engine: Engine,
        cuda: Cuda,
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        shared: EngineRunner | None = None,
        context: Any = None,
    ) -> None:
        self.trt, self.loaded, self.engine, self.cuda = trt, engine, engine.handle, cuda
        context = self.engine.create_execution_context() if context is None else context
        if context is None:
            raise OutOfMemoryError(
                "an engine was to be run, and TensorRT could not make a context for it, for which it takes memory; use "
                "a smaller batch, or end what else runs on the GPU"
            )
        self.context = context
        self._shared = shared
        self._profiler: Any = None
        self.bindings: list[Binding] = []
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        inputs = [n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        for name in inputs:
            self._fix_shape(name, tuple(self.engine.get_tensor_shape(name)), dict(shapes or {}))
        for name in [*inputs, *(n for n in names if n not in inputs)]:
            self._bind(name, name in inputs)

    def _fix_shape(self, name: str, shape: tuple[int, ...], given: Mapping[str, Sequence[int]]) -> None:
        wanted = tuple(given.get(name, shape))
        if -1 not in shape:
            if wanted != shape:
                raise UsageError(
                    f"an input {name} of {_times(wanted)} was asked, and the engine takes {_times(shape)} only; use "
                    "that, or build the engine for a range of batches"
                )
            return
        if -1 in wanted:
            raise UsageError(f"the engine leaves {_times(shape)} of {name} open; give its shape, or --batch")
        if not self.context.set_input_shape(name, wanted):
            raise UsageError(
                f"an input {name} of {_times(wanted)} was asked, which lies outside what the engine was built for; "
                "use another --batch, or build the engine for it"
            )

    def _bind(self, name: str, is_input: bool) -> None:
        shape = tuple(self.context.get_tensor_shape(name))
        dtype = self.engine.get_tensor_dtype(name).name
        if dtype not in DTYPES:
            raise UsageError(
                f"the engine's tensor {name} is {dtype}, which is not run here; export without it"
            )
        address = self._shared.address(name) if self._shared else self.cuda.allocate(_room(shape, dtype))
        self.bindings.append(Binding(name, is_input, dtype, shape, address))
        if not self.context.set_tensor_address(name, address):
            raise UsageError(f"TensorRT refused the memory of {name}; build the engine again")

    def address(self, name: str) -> int:
        """Returns where an input or output lies."""
        return next(b.address for b in self.bindings if b.name == name)

    def fill(self, seed: int = 0) -> None:
        """Writes random numbers into every input: arithmetic on zeros is faster on some devices."""
        rng = np.random.default_rng(seed)
        for binding in self.bindings:
            if binding.is_input:
                count = _room(binding.shape, binding.dtype) // np.dtype(DTYPES[binding.dtype]).itemsize
                self.cuda.write(binding.address, random_numbers(rng, count, binding.dtype))

    def enqueue(self) -> None:
        """Starts one inference.

        Raises:
            RuntimeError: TensorRT refuses.
        """
        if not self.context.execute_async_v3(self.cuda.stream):
            raise RuntimeError("TensorRT refused to run the engine; build it again")

    def infer(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Returns the outputs of one inference, in the engine's order.

        Args:
            inputs: an array for every input, of its shape; floating ones are cast to its type.
        """
        for binding in self.bindings:
            if binding.is_input:
                array = np.asarray(inputs[binding.name])
                self.cuda.write(binding.address, from_float(array, binding.dtype))
        self.enqueue()
        found = []
        for binding in self.bindings:
            if not binding.is_input:
                array = binding.empty()
                self.cuda.read(binding.address, array)
                found.append(to_float(array) if binding.dtype == "BF16" else array)
        return found

    def layers_us(self, runs: int = 5) -> dict[str, float]:
        """Returns the median µs of every layer, as TensorRT's own profiler reports them.

        From then on every inference of this runner waits for itself: time another one.
        """
        rows: dict[str, list[float]] = {}
        if self._profiler is None:
            self._profiler = _profiler(self.trt, rows)
            self.context.profiler = self._profiler
        self._profiler.rows = rows
        for _ in range(runs):
            self.enqueue()
            self.cuda.synchronize()
        return {name: float(np.median(us)) for name, us in rows.items()}

    def layers(self) -> list[str]:
        """Returns the names of the layers the engine came to have, as its inspector tells them."""
        inspector = self.engine.create_engine_inspector()
        text = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        try:
            listed = json.loads(text).get("Layers", [])
        except (ValueError, AttributeError):
            return []
        found = []
        for layer in listed:
            named = (
                layer if isinstance(layer, dict) else {"Name": str(layer)}
            )  # plain strings at low verbosity
            tactic = f" [{named['TacticName']}]" if named.get("TacticName") else ""
            found.append(f"{named.get('Name', '')}{tactic}")
        return found

    def close(self) -> None:
        """Gives the memory back, unless it belongs to another runner."""
        if self._shared is None:
            for binding in self.bindings:
                self.cuda.free(binding.address)
        self.bindings = []


def _profiler(trt: Any, rows: dict[str, list[float]]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        """Collects the time of every layer."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.rows = rows

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            """Takes one layer's time."""
            self.rows.setdefault(layer_name, []).append(ms * 1e3)

    return Profiler()


def in_turns(runners: Sequence[EngineRunner], copies: int) -> Callable[[], None]:
    """Returns a call that enqueues this many inferences, on the runners alternately."""

    def call() -> None:
        for i in range(copies):
            runners[i % len(runners)].enqueue()

    return call


def _room(shape: Sequence[int], dtype: str) -> int:
    """Returns bytes for a tensor in any format: its channels padded."""
    count = 1
    for axis, size in enumerate(shape):
        count *= -(-size // PADDED) * PADDED if axis == 1 and len(shape) > 2 else size
    return max(1, count) * np.dtype(DTYPES[dtype]).itemsize


def _times(shape: Sequence[int]) -> str:
    return "×".join("?" if d == -1 else str(d) for d in shape) or "one number"


Context = Callable[[Any, Any, Path | None], tuple[Any, Callable[[], None]]]
"""Of the library's module, an engine and its file: makes its context, and what to do once it has run."""


def plain_context(trt: Any, engine: Any, path: Path | None) -> tuple[Any, Callable[[], None]]:
    """Returns a context as TensorRT makes it; there is nothing to do once it has run."""
    del trt, path
    return engine.create_execution_context(), lambda: None


def open_engine(
    path: Path,
    trt: Any,
    cuda: Cuda,
    *,
    batch: int | None = None,
    trust: bool = False,
    context: Context = plain_context,
) -> EngineRunner:
    """Returns an engine with random inputs, ready to run; it has run once.

    Args:
        path: an engine that halpiee built here, or any with ``trust``: engines are executable.
        trt: TensorRT's module.
        cuda: where its memory comes from.
        batch: of inputs whose first dimension is open; by default 1.
        trust: whether an engine of unknown origin is loaded.
        context: makes the context.

    Raises:
        UsageError: an engine of another library, version or GPU, of unknown origin, or that does not take the batch.
    """
    plan = read_engine(path, trust=trust)
    check_library(path, trt, cuda.facts())
    said: list[str] = []
    engine = load_engine(trt, plan, said)
    if engine is None:
        why = said[0] if said else "it belongs to another version or GPU"
        raise UsageError(
            f"{path} was to be loaded, and TensorRT {trt.__version__} refuses it: {why}; build it "
            "here from its ONNX file with `halpiee export FILE.onnx --format tensorrt --out …`"
        )
    shapes = {}
    for i in range(engine.handle.num_io_tensors):
        name = engine.handle.get_tensor_name(i)
        if engine.handle.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            shape = tuple(int(d) for d in engine.handle.get_tensor_shape(name))
            first = batch if batch is not None else (shape[0] if shape[0] != -1 else 1)
            shapes[name] = (first, *shape[1:])
    made, keep = context(trt, engine.handle, path)
    runner = EngineRunner(trt, engine, cuda, shapes=shapes, context=made)
    runner.fill()
    runner.enqueue()  # the first inference allocates, and kernels may be made
    cuda.synchronize()
    keep()
    return runner


def check_library(path: Path, trt: Any, device: Mapping[str, Any]) -> None:
    """Refuses an engine that the file beside it says is of another library or for other GPUs.

    Raises:
        UsageError: it is.
    """
    facts = facts_of(path) or {}
    own = "tensorrt-rtx" if hasattr(trt, "IRuntimeCache") else "tensorrt"
    if facts.get("library", own) != own:
        names = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
        raise UsageError(
            f"{path} is an engine of {names.get(facts['library'], facts['library'])}, and {names[own]} was to load it; "
            f"name the backend {facts['library']}, or export the ONNX file again with --format {own}"
        )
    listed = facts.get("capabilities") or []
    here = str(device.get("capability", "")).replace(".", "")
    if listed and here not in map(str, listed):
        raise UsageError(
            f"{path} was built for compute capabilities {', '.join(map(str, listed))}, and {device['device']} has "
            f"{here}; export it again with --compute-capability {here}"
        )


class EngineNetwork(Runner):
    """A whole network as an engine: a file of one, or a module or ONNX model that is built when it is entered.

    Args:
        builder: builds engines.
        model: a torch module, an ONNX model, its bytes, or the path of one or of an engine.
        example_inputs: what it reads; they give the shapes.
        cuda: opens the GPU; each runner has a stream of its own.
        dtype: of a module's weights.
        sizes: batch, and (channels, height, width), where neither inputs nor the file say them.
        forwards: inferences in one run.
        trust: whether an engine of unknown origin is loaded.
        name: in messages.
        context: makes contexts.
    """

    runtime, precision, device = "tensorrt", "as built", "cuda"

    def __init__(
        self,
        builder: Builder,
        model: Any,
        example_inputs: Sequence[Any] | None,
        *,
        cuda: Callable[[], Cuda],
        dtype: str,
        sizes: tuple[int | None, Sequence[int] | None],
        forwards: int,
        trust: bool,
        name: str | None,
        context: Context = plain_context,
    ) -> None:
        self._context = context
        self._builder, self._model, self._examples = builder, model, example_inputs
        self._open, self._dtype, self._sizes = cuda, dtype, sizes
        self._forwards, self._trust, self._name = forwards, trust, name
        self._engine: EngineRunner | None = None
        self._plan: bytes | None = None
        self._call: Callable[[], object] = lambda: None

    def ready(self) -> None:
        """Builds what is no engine yet, loads it, fills its inputs, and captures the inferences where there are graphs.

        Raises:
            UsageError: an engine of another version or GPU, of unknown origin, or that does not take the batch.
            OutOfMemoryError: the GPU's memory is full.
        """
        self._cuda = self._open()
        trt, path = self._builder.trt, self._model
        if isinstance(path, str | Path) and Path(path).suffix in ENGINE_FILES:
            self._engine = open_engine(
                Path(path),
                trt,
                self._cuda,
                batch=self._sizes[0],
                trust=self._trust,
                context=self._context,
            )
        else:
            if self._plan is None:
                self._plan = self._built()
            engine = load_engine(trt, self._plan)
            if engine is None:
                raise UsageError(
                    "an engine that was just built cannot be loaded; check that TensorRT is of one version"
                )
            made, _ = self._context(trt, engine.handle, None)
            self._engine = EngineRunner(trt, engine, self._cuda, context=made)
            self._engine.fill()
        runner = self._engine
        runner.enqueue()  # the first inference allocates, which a capture cannot
        self._cuda.synchronize()
        turns = in_turns([runner], self._forwards)
        self._call = self._cuda.captured(turns) or turns

    def start(self) -> object:
        """Enqueues the inferences."""
        return self._call()

    def finish(self) -> None:
        """Waits for them."""
        self._cuda.synchronize()

    def free(self) -> None:
        """Gives the GPU's memory back."""
        if self._engine is not None:
            self._engine.close()
        self._engine, self._call = None, lambda: None

    def again(self) -> Runner:
        """Returns a runner with a context and a stream of its own: TensorRT forbids two callers on one context."""
        other = EngineNetwork(
            self._builder,
            self._model,
            self._examples,
            cuda=self._open,
            dtype=self._dtype,
            sizes=self._sizes,
            forwards=self._forwards,
            trust=self._trust,
            name=self._name,
            context=self._context,
        )
        other._plan = self._plan
        return other

    def in_thread(self) -> AbstractContextManager[object]:
        """Inside, the calling thread may start inferences: a CUDA context is current in one thread at a time."""
        return self._cuda.in_thread()

    def infer(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Returns the outputs in the engine's order."""
        if self._engine is None:
            raise UsageError("an engine was to be run outside of its `with` statement; enter it first")
        return self._engine.infer(inputs)

    def _built(self) -> bytes:
        """Returns the engine of a module or ONNX model at the shapes of the inputs."""
        model, given = self._model, self._examples
        if is_module(model):
            if given is None:
                raise UsageError(
                    f"the latency of {type(model).__name__} was asked for without inputs; pass example_inputs, a tuple"
                )
            model = typed_onnx(model, given, self._dtype)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(model) if isinstance(model, str | Path) else Path(folder) / "network.onnx"
            if not isinstance(model, str | Path):
                path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
            what = self._name or (str(model) if isinstance(model, str | Path) else "the network")
            return self._builder.build(
                self._builder.parsed(path), shapes=self._shapes(path), what=f"the engine of {what}"
            )

    def _shapes(self, path: Path) -> dict[str, list[tuple[int, ...]]]:
        """Returns for each input with open dimensions its shape, three times: an engine for one size."""
        from latency.backends.onnxruntime.model import check_file

        graph = check_file(path).graph
        constants = {tensor.name for tensor in graph.initializer}
        values = [v for v in graph.input if v.name not in constants]
        tensors = [x for x in self._examples or () if hasattr(x, "shape")]
        found = {}
        for i, value in enumerate(values):
            dims = value.type.tensor_type.shape.dim
            if all(d.HasField("dim_value") for d in dims):
                continue
            if i < len(tensors):
                shape = tuple(int(d) for d in tensors[i].shape)
            else:
                batch, rest = self._sizes
                own = [int(d.dim_value) for d in dims]
                shape = (batch or 1, *(rest if rest is not None and len(rest) == len(own) - 1 else own[1:]))
            if 0 in shape:
                raise UsageError(
                    f"{path.name} leaves more than the batch of its input {value.name} open; give it with --size"
                )
            found[value.name] = [shape] * 3
        return found


def typed_onnx(model: Any, example_inputs: Sequence[Any], dtype: str) -> Any:
    """Returns the ONNX model of a module in ``float32``, ``float16`` or ``bfloat16``, inputs and outputs included."""
    import torch

    from latency.backends.onnxruntime.model import to_onnx
    from latency.backends.torch.modules import copy_of

    if dtype == "float32":
        return to_onnx(model, example_inputs)
    kind = getattr(torch, dtype)
    inputs = [
        x.to(kind) if hasattr(x, "is_floating_point") and x.is_floating_point() else x for x in example_inputs
    ]
    return to_onnx(copy_of(model).cpu().to(kind), inputs)
