"""Ops as TensorRT engines: an op with its tail is one engine, fused as TensorRT fuses it in a network.

An op is timed as the slope between K inferences and one, without launch and graph entry. cuda-python captures both in
CUDA graphs; PyCUDA has none, so there a short op's slope is that of its launches, and the cell's method says ``enqueue
slope``. The inferences go round several engines of one plan, each with weights of its own, because in a network weights
are cold while activations are warm.

With ``branches`` many ops become one build, timed by TensorRT's profiler: quicker, and with what the profiler costs.
"""

from __future__ import annotations

import atexit
import importlib.util
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Unpack

from latency.backends import Backend, Built, Found, NetworkOptions, Way, backend
from latency.backends.cuda import Cuda, EventClock, OutOfMemoryError, number_of, open_cuda
from latency.backends.onnxruntime.model import exported
from latency.backends.tensorrt.builder import Builder, Settings, TimingCache, import_tensorrt
from latency.backends.tensorrt.engine import (
    ENGINE_FILES,
    EngineRunner,
    Execution,
    alternating,
    check_library,
    facts_of,
    load_engine,
    plain_context,
    read_engine,
)
from latency.backends.tensorrt.ops import OpNetwork
from latency.device import PRECISIONS, clocks, environment, limits, precision_of
from latency.errors import MissingError, UnsupportedOpError, UsageError, said
from latency.op import Op, in_words
from latency.timing import Clock


@backend("tensorrt")
class TensorRT(Backend):
    """Ops and networks on TensorRT.

    Args:
        threads: of the CPU; only 1, the GPU does the work.
        precision: ``fp32`` (TF32 off), ``tf32``, ``fp16`` or ``bf16``.
        level: builder optimisation level; the final engine is to be built at the same.
        timing_cache: file that keeps what builds learnt, or None.
        library: ``cuda-python``, ``pycuda`` or ``auto``.
        device: ``auto``, ``cuda``, ``cuda:N`` or the number of the GPU.
        branches: ops in one build; 1 builds every op by itself.
        channels_last: False; TensorRT chooses layouts itself.

    Raises:
        MissingError: TensorRT, a CUDA library or a GPU is not there.
    """

    graphs = True
    """Whether a network's inferences are captured in a CUDA graph, where that is possible."""

    module, extra, remark = "tensorrt", "tensorrt", ""
    """The library, the extra that installs it, and what doctor says of it beside its version."""

    ways = (Way("engine", ENGINE_FILES, usual=True), Way("trt", (".onnx",)))
    files = (".onnx", *ENGINE_FILES)
    device_kind = "cuda"
    precisions = tuple(PRECISIONS)

    def __init__(
        self,
        threads: int = 1,
        precision: str = "fp32",
        level: int = 3,
        timing_cache: str | Path | None = None,
        library: str = "auto",
        device: int | str = 0,
        branches: int = 1,
        channels_last: bool = False,
    ) -> None:
        self.check(precision=precision, channels_last=channels_last)
        if branches < 1:
            raise UsageError(f"{branches} branches were asked for; ask for 1 or more")
        self.threads, self.precision, self.branches = threads, precision, branches
        self._settings = Settings(level=level, tf32=precision == "tf32")
        self._timing_cache = None if timing_cache is None else Path(timing_cache)
        self.trt = import_tensorrt(self.module)
        self._opened = (library, number_of(device))
        self.cuda: Cuda = open_cuda(*self._opened)
        self.facts = self.cuda.facts()
        self._network: list[Op] = []
        self._built: list[Execution] = []
        self._together: dict[Op, Callable[[], float]] = {}

    @cached_property
    def builder(self) -> Builder:
        """What builds for the GPU that is open; made when something is built."""
        cache = TimingCache(self._timing_cache)
        atexit.register(cache.save)
        return Builder(self._settings, cache, self.trt)

    @classmethod
    def check(cls, **settings: Any) -> None:
        """Refuses any layout, and the CPU."""
        super().check(**settings)
        if settings.get("channels_last") or settings.get("device") == "cpu":
            raise UsageError(
                "TensorRT runs on a GPU and chooses layouts itself; leave --channels-last and --device out"
            )

    @classmethod
    def settings_of(cls, environment: Mapping[str, Any], layout: str) -> dict[str, Any]:
        """Returns precision and builder level that a profile was measured with."""
        del layout
        level = re.fullmatch(r"level (\d)", str(environment.get("optimization", "")))
        return {"precision": precision_of(environment), **({"level": int(level[1])} if level else {})}

    @classmethod
    def context(cls, trt: Any, engine: Any, path: Path | None = None) -> tuple[Any, Callable[[], None]]:
        """Returns the context of an engine, and what to do once it has run."""
        del path
        return plain_context(trt, engine)

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Returns whether an engine file is this library's, as far as the file beside it tells."""
        return bool((facts_of(path) or {}).get("library", "tensorrt") == cls.name)

    def environment(self) -> dict[str, Any]:
        """Returns the circumstances of everything this backend measures."""
        version = str(self.trt.__version__)
        return environment(
            self.name,
            self.threads,
            PRECISIONS[self.precision],
            **self.facts,
            backend_version=version,
            tensorrt=version,
            tf32=self.precision == "tf32",
            cpu_flags=[],
            optimization=f"level {self._settings.level}",
            protocol="branches" if self.branches > 1 else "slope",
            cuda_library=self.cuda.name,
            **limits(self._opened[1]),
        )

    def state(self) -> dict[str, Any]:
        """Returns the clock of the GPU and what throttles it."""
        return clocks(self._opened[1])

    def clock(self) -> Clock:
        """Returns CUDA events; a branch's time is the profiler's."""
        return EventClock(self.cuda)

    def anchor(self) -> None:
        """Returns None: other processes do not contend for the events of a GPU."""
        return None

    def expects(self, ops: Sequence[Op]) -> None:
        """Takes the network's ops: their weights decide how cold an op's weights are."""
        self._network = list(ops)

    def prepare(self, ops: Sequence[Op]) -> None:
        """Builds many ops, several as branches of one engine; ``build`` builds those that fail."""
        if self.branches == 1:
            return
        wanted = [op for op in dict.fromkeys(ops) if op not in self._together]
        for i in range(0, len(wanted), self.branches):
            part = wanted[i : i + self.branches]
            try:
                runner = self._runner(part, native=False)
            except (UnsupportedOpError, OutOfMemoryError):
                continue  # one of them; each is built, and its fault named, by itself
            rows = _Rows(runner, len(part))
            self._together |= {op: partial(rows.next, k) for k, op in enumerate(part)}

    def build(self, op: Op) -> Built:
        """Builds an op.

        Raises:
            UnsupportedOpError: a kind or precision that is not built here, or that TensorRT could not build.
            OutOfMemoryError: it does not fit on the GPU.
        """
        if op.dtype != PRECISIONS[self.precision]:
            raise UnsupportedOpError(
                f"an op in {op.dtype} was asked for; this backend measures {self.precision}; start it with that"
            )
        if self.branches > 1:
            self.prepare([op])
            if op in self._together:
                return Built(run=self._together[op], method="profiler")
        for runner in self._built:  # of the op before: its time has been taken
            runner.close()
        self._built = []
        try:
            first, method = self._runner([op]), "slope"
        except UnsupportedOpError:
            if op.spec.rows:
                raise
            first, method = self._runner([op], native=False), "slope/linear"
        return self._slope(op, first, method)

    def deployed(self, model: Any, example_inputs: Sequence[Any]) -> Any:
        """Returns the ONNX model of a module, its weights in this precision: engines are strongly typed."""
        return exported(model, example_inputs, dtype=PRECISIONS[self.precision])

    def network(
        self, model: Any, example_inputs: Sequence[Any] | None = None, **how: Unpack[NetworkOptions]
    ) -> EngineRunner:
        """Returns an engine file, or a module or ONNX model that is built when it is entered."""
        dtype = PRECISIONS[self.precision]
        path = Path(model) if isinstance(model, str | Path) and Path(model).suffix in ENGINE_FILES else None

        def plan() -> bytes:
            if path is None:
                return self.builder.engine_of(model, example_inputs, dtype=dtype, **how)
            content = read_engine(path, trust=how.get("trust", False))
            check_library(path, self.trt, self.facts)
            return content

        return EngineRunner(
            self.trt,
            plan,
            lambda: open_cuda(*self._opened),
            what="an engine that was just built" if path is None else str(path),
            batch=None if path is None else how.get("batch"),
            forwards=how.get("forwards", 1),
            graphs=self.graphs,
            context=partial(self.context, path=path),
        )

    @classmethod
    def where_it_trains(cls, device: str) -> bool:
        """Returns whether the device is a GPU."""
        return device.startswith("cuda")

    @classmethod
    def kept_beside(cls, path: Path) -> dict[str, Any]:
        """Returns the file of the timing cache: a build that finds its kernels there takes seconds."""
        return {"timing_cache": path.with_name(f"{path.name}.timing")}

    @classmethod
    def found(cls) -> list[tuple[str, Found]]:
        """Returns whether the library is installed and can be loaded."""
        if importlib.util.find_spec(cls.module) is None:
            return [(cls.module, Found("note", "not installed", f"pip install 'halpiee[{cls.extra}]'"))]
        try:
            return [(cls.module, Found("ok", f"{import_tensorrt(cls.module).__version__}{cls.remark}"))]
        except MissingError as error:
            return [(cls.module, Found("broken", said(error, first=True)))]

    def _runner(self, ops: Sequence[Op], native: bool = True) -> Execution:
        """Builds ops as branches of one engine and loads it."""
        network = self.builder.network()
        made = OpNetwork(self.trt, network, native=native)
        for k, op in enumerate(ops):
            made.add(op, prefix=f"b{k}.")
        what = in_words(ops[0]) + (f" and {len(ops) - 1} more" if len(ops) > 1 else "")
        self._plan = self.builder.build(network, what=what)
        runner = self._loaded()
        runner.fill()
        return runner

    def _loaded(self, shared: Execution | None = None) -> Execution:
        engine = load_engine(self.trt, self._plan)
        if engine is None:
            raise MissingError(
                "an engine that was just built cannot be loaded; check that the builder and the runtime of TensorRT "
                "have one version"
            )
        return Execution(self.trt, engine, self.cuda, shared=shared)

    def _slope(self, op: Op, first: Execution, method: str) -> Built:
        self._built = [first]
        policy = self.policy
        cold = policy.weight_copies(op, self._network, int(self.facts["l2_bytes"]))
        try:
            for _ in range(cold - 1):
                self._built.append(self._loaded(first))
        except OutOfMemoryError:
            if len(self._built) == 1:
                raise
        for runner in self._built:
            runner.enqueue()  # before a capture: the first inference allocates
        self.cuda.synchronize()
        one_us = max(1.0, self.cuda.elapsed_us(first.enqueue))
        copies = policy.series(one_us)
        calls = [alternating(self._built, n) for n in (copies, 1)]
        graphs = [self.cuda.captured(call) for call in calls]
        run, minus = (graph or call for graph, call in zip(graphs, calls, strict=True))
        kind = "graph" if graphs[0] is not None else "enqueue"
        return Built(
            run=run, minus=minus, copies=copies - 1, method=f"{kind} {method}", tactic=self._tactic(first)
        )

    def _tactic(self, first: Execution) -> str:
        """Returns the layers that TensorRT made of the op, and the sum of its profiler's times as a check."""
        runner = self._loaded(first)
        us = sum(runner.layers_us().values())
        return f"{' + '.join(runner.layers())} (profiler {us:.1f} µs)"


class _Rows:
    """Times of the branches of one engine: one inference gives a time for each of them."""

    def __init__(self, runner: Execution, branches: int) -> None:
        self._runner = runner
        self._waiting: list[deque[float]] = [deque() for _ in range(branches)]

    def next(self, branch: int) -> float:
        """Returns a time of one branch that was not returned before, in µs."""
        if not self._waiting[branch]:
            sums = [0.0] * len(self._waiting)
            for name, us in self._runner.layers_us(runs=1).items():
                found = _branch_of(name)
                if found is not None:
                    sums[found] += us
            if not sums[branch]:
                raise UnsupportedOpError(
                    "an op was built as a branch, and TensorRT's profiler names none of its layers; build ops one by "
                    "one, with branches 1"
                )
            for waiting, us in zip(self._waiting, sums, strict=True):
                waiting.append(us)
        return self._waiting[branch].popleft()


def _branch_of(layer: str) -> int | None:
    """Returns the branch of a layer: the first ``b<k>.`` in its fused name; None for one of no branch."""
    for word in layer.replace("(", " ").replace("+", " ").replace(",", " ").split():
        head, dot, _ = word.partition(".")
        if dot and head.startswith("b") and head[1:].isdigit():
            return int(head[1:])
    return None
