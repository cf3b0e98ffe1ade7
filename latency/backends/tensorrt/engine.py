"""How TensorRT engines are kept, loaded and run: one way for the majors 10 and 11.

A file of an engine is a cache that is rebuilt, never an artefact; facts stand beside it. Engines are executable:
loading one runs code that it carries. So only those are loaded that this user's halpiee wrote, which a seal shows (an
HMAC over the engine and what stands beside it, with a key that lies in the user's home), unless the caller says that he
trusts it. A seal does not travel to other machines; neither does an engine.

Enums are named, never numbered: their numbers moved between the majors. Every call here is in the contracts of both
(``tests/tensorrt``). A plan of another version or GPU loads to None: that is said.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
from msgspec import Meta

from latency.backends import Runner
from latency.backends.cuda import Cuda, EventClock, OutOfMemoryError
from latency.backends.tensorrt.builder import new_logger
from latency.backends.tensorrt.ops import NUMPY, from_float, random_numbers, to_float
from latency.errors import OutputInUseError, UsageError, WriteError
from latency.files import parsed, read_bytes, sound, write
from latency.timing import Clock

ENGINE_FILES = (".engine", ".plan", ".trt")
"""Endings of engines."""


def sidecar(path: Path) -> Path:
    """Returns the file beside an engine."""
    return path.parent / f"{path.name}.json"


def write_engine(path: Path, plan: bytes, facts: Mapping[str, Any]) -> None:
    """Writes an engine and its facts, sealed; the engine last, so that it never stands alone."""
    stated = {**facts, "engine_sha256": hashlib.sha256(plan).hexdigest()}
    content = json.dumps({**stated, "seal": seal(stated)}, indent=1, sort_keys=True).encode()
    for target, data in ((sidecar(path), content), (path, plan)):
        write(target, data, overwrite=True)


class Facts(TypedDict, total=False):
    """What the file beside an engine says of it, as far as it is read here."""

    library: Literal["tensorrt", "tensorrt-rtx"]
    precision: Literal["fp32", "tf32", "fp16", "bf16", "int8"]
    batches: dict[str, Annotated[int, Meta(ge=1, le=2**16)]]
    onnx: Annotated[str, Meta(pattern=r"^[^/\\\x00]+$")] | None
    onnx_sha256: str
    capabilities: list[int | str] | None


def facts_of(path: Path) -> dict[str, Any] | None:
    """Returns the facts in the file beside an engine; None where there is none that can be read and fits."""
    what, advice = str(sidecar(path)), "build the engine again"
    try:
        found = parsed(read_bytes(sidecar(path), what=what, advice=advice), what=what, advice=advice)
        sound(found, Facts, what=what, advice=advice)
    except UsageError:
        return None
    return dict(found)


def read_engine(path: Path, *, trust: bool = False) -> bytes:
    """Returns an engine's bytes; ``trust`` reads one that this user's halpiee did not write.

    Raises:
        UsageError: it cannot be read, or it was not written by this user's halpiee.
    """
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise UsageError(f"the engine {path} cannot be read: {error.strerror}; check the path") from None
    if trust:
        return plan
    facts = facts_of(path) or {}
    stated = facts.pop("seal", None)
    whole = facts.get("engine_sha256") == hashlib.sha256(plan).hexdigest()
    if not (whole and sealed(facts, stated)):
        raise UsageError(
            f"the engine {path} was to be loaded, which runs code in it, and it was not built by halpiee here; build "
            "it here from its ONNX file with `halpiee export FILE.onnx --format tensorrt --out …`, or --trust-engine"
        )
    return plan


def check_library(path: Path, trt: Any, device: Mapping[str, Any]) -> None:
    """Refuses an engine whose facts name another library or other GPUs."""
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


def seal(facts: Mapping[str, Any]) -> str:
    """Returns the seal of some JSON values; the key is made when it is first needed.

    Raises:
        OSError: there is no key, and none can be written.
    """
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hmac.new(_key(), text.encode(), hashlib.sha256).hexdigest()


def sealed(facts: Mapping[str, Any], found: object) -> bool:
    """Returns whether a seal belongs to these values and was made by this user here."""
    try:
        return isinstance(found, str) and hmac.compare_digest(found.encode(), seal(facts).encode())
    except (OSError, ValueError, TypeError):
        return False


def _key() -> bytes:
    """Returns this user's key, which is made when it is first needed and which nobody else may read."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "halpiee"
    path = home / "engine.key"
    if not path.is_file():
        try:
            write(path, secrets.token_bytes(32), private=True)
        except OutputInUseError:  # another process made it just now
            pass
        except WriteError as error:
            raise OSError(str(error)) from error
    return path.read_bytes()


PADDED = 64
"""Formats pad channels to 2, 4, 8, 16 or 32: buffers are sized for the next multiple of this."""


@dataclass(frozen=True)
class Engine:
    """A loaded engine, and the objects that must live as long."""

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
    """One input or output of an engine: TensorRT's name of its type, its shape without open dimensions, its address."""

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]
    address: int

    def empty(self) -> Any:
        """Returns an array of its shape and type."""
        return np.empty(self.shape, dtype=NUMPY[self.dtype])


class Execution:
    """An execution context of an engine with memory for its inputs and outputs, or with that of a ``shared`` one.

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
        shared: Execution | None = None,
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
        try:
            for name in [*inputs, *(n for n in names if n not in inputs)]:
                self._bind(name, name in inputs)
        except BaseException:
            self.close()
            raise

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
        if dtype not in NUMPY:
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
                count = _room(binding.shape, binding.dtype) // np.dtype(NUMPY[binding.dtype]).itemsize
                self.cuda.write(binding.address, random_numbers(rng, count, binding.dtype))

    def enqueue(self) -> None:
        """Starts one inference."""
        if not self.context.execute_async_v3(self.cuda.stream):
            raise RuntimeError("TensorRT refused to run the engine; build it again")

    def infer(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Returns the outputs of one inference, in the engine's order; floating inputs are cast to its type."""
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

        From then on every inference waits for itself: time before, or another execution.
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
        """Returns the names of the engine's layers, by its inspector."""
        inspector = self.engine.create_engine_inspector()
        text = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        try:
            listed = json.loads(text).get("Layers", [])
        except (ValueError, AttributeError):
            return []
        found = []
        for layer in listed:
            # plain strings at low verbosity
            named = layer if isinstance(layer, dict) else {"Name": str(layer)}
            tactic = f" [{named['TacticName']}]" if named.get("TacticName") else ""
            found.append(f"{named.get('Name', '')}{tactic}")
        return found

    def close(self) -> None:
        """Gives the memory back, unless it belongs to another execution."""
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


def alternating(executions: Sequence[Execution], copies: int) -> Callable[[], None]:
    """Returns a call that enqueues this many inferences, on the executions alternately."""

    def call() -> None:
        for i in range(copies):
            executions[i % len(executions)].enqueue()

    return call


def _room(shape: Sequence[int], dtype: str) -> int:
    """Returns bytes for a tensor in any format: its channels padded."""
    count = 1
    for axis, size in enumerate(shape):
        count *= -(-size // PADDED) * PADDED if axis == 1 and len(shape) > 2 else size
    return max(1, count) * np.dtype(NUMPY[dtype]).itemsize


def _times(shape: Sequence[int]) -> str:
    return "×".join("?" if d == -1 else str(d) for d in shape) or "one number"


Context = Callable[[Any, Any], tuple[Any, Callable[[], None]]]
"""(module, engine) → its execution context, and a call to make once it has run."""


def plain_context(trt: Any, engine: Any) -> tuple[Any, Callable[[], None]]:
    """Returns a context as TensorRT makes it; there is nothing to do once it has run."""
    del trt
    return engine.create_execution_context(), lambda: None


class EngineRunner(Runner):
    """A whole network as an engine.

    ``plan`` returns its bytes when it is first entered; each runner opens a stream of its own.
    """

    runtime, precision, device = "tensorrt", "as built", "cuda"

    def __init__(
        self,
        trt: Any,
        plan: Callable[[], bytes],
        cuda: Callable[[], Cuda],
        *,
        what: str = "the engine",
        batch: int | None = None,
        forwards: int = 1,
        graphs: bool = True,
        context: Context = plain_context,
    ) -> None:
        self._trt, self._plan, self._open, self._context = trt, plan, cuda, context
        self._what, self._batch, self._forwards, self._graphs = what, batch, forwards, graphs
        self._bytes: bytes | None = None
        self._execution: Execution | None = None
        self._call: Callable[[], object] = lambda: None
        self.is_graph = False

    def ready(self) -> None:
        """Builds or reads the engine, loads it, fills its inputs, and captures its inferences if possible."""
        self.cuda = self._open()
        if self._bytes is None:
            self._bytes = self._plan()
        said: list[str] = []
        engine = load_engine(self._trt, self._bytes, said)
        if engine is None:
            why = said[0] if said else "it belongs to another version or GPU"
            raise UsageError(
                f"{self._what} was to be loaded, and TensorRT {self._trt.__version__} refuses it: {why}; build it here "
                "from its ONNX file with `halpiee export FILE.onnx --format tensorrt --out …`"
            )
        made, keep = self._context(self._trt, engine.handle)
        execution = Execution(self._trt, engine, self.cuda, shapes=self._shapes(engine.handle), context=made)
        self._execution = execution
        execution.fill()
        execution.enqueue()  # the first inference allocates, which a capture cannot, and kernels may be made
        self.cuda.synchronize()
        keep()
        calls = alternating([execution], self._forwards)
        graph = self.cuda.captured(calls) if self._graphs else None
        self._call, self.is_graph = graph or calls, graph is not None

    def start(self) -> object:
        """Enqueues the inferences."""
        return self._call()

    def finish(self) -> None:
        """Waits for them."""
        self.cuda.synchronize()

    def free(self) -> None:
        """Gives the GPU's memory back."""
        if self._execution is not None:
            self._execution.close()
        self._execution, self._call = None, lambda: None

    def clock(self) -> Clock:
        """Returns events on the stream that it runs on."""
        return EventClock(self.cuda)

    def again(self) -> Runner:
        """Returns a runner with a context and a stream of its own: TensorRT forbids two callers on one context."""
        other = self.copied()
        other._execution = None
        return other

    def in_thread(self) -> AbstractContextManager[object]:
        """Inside, the calling thread may start inferences: a CUDA context is current in one thread at a time."""
        return self.cuda.in_thread()

    def infer(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Returns the outputs in the engine's order."""
        return self.execution.infer(inputs)

    @property
    def execution(self) -> Execution:
        """What runs inside of the ``with`` statement."""
        if self._execution is None:
            raise UsageError("an engine was to be run outside of its `with` statement; enter it first")
        return self._execution

    def _shapes(self, engine: Any) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the inputs, an open first dimension filled by the batch."""
        shapes = {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            if engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT:
                shapes[name] = tuple(int(d) for d in engine.get_tensor_shape(name))
        free = [name for name, shape in shapes.items() if shape[:1] == (-1,)]
        for name in free or list(shapes)[:1]:  # without an open one the first refuses another batch
            own = 1 if name in free else shapes[name][0] if shapes[name] else 1
            shapes[name] = (self._batch or own, *shapes[name][1:]) if shapes[name] else ()
        return shapes
