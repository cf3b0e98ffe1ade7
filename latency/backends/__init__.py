"""What a backend is: a runtime that builds ops and runs whole networks, so that both can be timed.

A backend is one folder: a class under ``@latency.backend("name")``. Most members of ``Backend`` have a default; what a
runtime cannot do is left out. A whole network runs in a ``Runner``, a context manager that readies, runs, times and
frees it. Other packages offer theirs as entry points of the group ``latency.backends``::

    @latency.backend("mine")
    class Mine(latency.Backend):
        def environment(self): ...
        def clock(self): ...
        def build(self, op): ...
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypedDict, TypeVar, Unpack

from latency.device import TimingPolicy, policy_for
from latency.errors import UsageError
from latency.op import Op, weight_bytes
from latency.registry import Registry

if TYPE_CHECKING:
    from latency.timing import Clock


class NetworkOptions(TypedDict, total=False):
    """How a whole network is run; all are optional.

    Attributes:
        batch: images per inference where there are no example inputs; by default the file's own, else 1.
        shape: (channels, height, width) where the file leaves them open.
        forwards: inferences in one run; by default 1.
        trust: whether a file of unknown origin that is executable is loaded.
        name: of the network in messages.
    """

    batch: int | None
    shape: Sequence[int] | None
    forwards: int
    trust: bool
    name: str | None


class Runner(ABC):
    """One network on a runtime, as a context manager: readied on entry, run and timed inside, freed on exit.

    It may be entered again after it was left.

    Attributes:
        runtime: what runs it, in words: ``torch.compile``, ``onnxruntime cpu``.
        circumstances: of what is measured with it, as a profile's environment states them.
        precision: of its weights; known once it is ready.
        device: ``cpu`` or ``cuda``.
        in_caller: whether one thread's work is done by the calling thread, so that its CPU time tells.
    """

    runtime: str = ""
    circumstances: Mapping[str, Any] = {}
    precision: str = "fp32"
    device: str = "cpu"
    in_caller: bool = True
    _ready = False

    def __enter__(self) -> Self:
        if not self._ready:
            try:
                self.ready()
            except BaseException:
                self.free()
                raise
            self._ready = True
        return self

    def __exit__(self, *error: object) -> None:
        if self._ready:
            self._ready = False
            self.free()

    @property
    def is_ready(self) -> bool:
        """Whether it was entered and not left, so that it can run."""
        return self._ready

    @abstractmethod
    def ready(self) -> None:
        """Loads, compiles and allocates all that a run needs, and runs once."""

    @abstractmethod
    def start(self) -> object:
        """Starts one inference; on a GPU it may return before the answer is there."""

    def finish(self) -> None:  # noqa: B027 - nothing to wait for on most runtimes
        """Waits for the answers of what this thread has started."""

    def free(self) -> None:  # noqa: B027 - most runtimes free what nobody holds
        """Gives memory back, also after ``ready`` has failed."""

    def run(self) -> object:
        """Runs one inference, the answer included."""
        answer = self.start()
        self.finish()
        return answer

    def clock(self) -> Clock | None:
        """Returns what times ``start``, such as events on the stream it runs on; None: the backend's clock does."""
        return None

    def again(self) -> Runner:
        """Returns what a second caller runs at the same time: this runner on the CPU, on a GPU another one."""
        return self if self.device == "cpu" else self.copied()

    def copied(self) -> Self:
        """Returns another runner of the same network, which is to be entered by itself."""
        other = copy.copy(self)
        other._ready = False
        return other

    def in_thread(self) -> AbstractContextManager[object]:
        """Inside, the calling thread may start inferences."""
        return nullcontext()

    def infer(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Returns the outputs for inputs by name, as arrays.

        Raises:
            UsageError: this runtime does not tell them.
        """
        raise UsageError(f"outputs of {self.runtime} were asked for, and they are not compared here")


def is_module(model: object) -> bool:
    """Returns whether an object is a torch module, without importing torch."""
    return any(
        cls.__module__ == "torch.nn.modules.module" and cls.__name__ == "Module"
        for cls in type(model).__mro__
    )


B = TypeVar("B", bound="type[Backend]")

MODULE = "module"
"""In ``Way.reads``: PyTorch modules; the other entries are endings of files."""


@dataclass(frozen=True)
class Built:
    """An op on a runtime, ready to be timed: the op's time is ``(T(run) − T(minus)) / copies``."""

    run: Callable[[], object]  # the call that holds the op
    minus: Callable[[], object] | None = None  # the same call without it; None where the op runs alone
    copies: int = 1  # how many more ops ``run`` holds than ``minus``
    method: str = "alone"  # how the op is isolated, for the record
    tactic: str | None = None  # what the runtime chose, where it says so


@dataclass(frozen=True)
class Way:
    """One way to run a network that a user can name: ``resnet.onnx@cpu``."""

    name: str  # what stands behind the ``@``
    reads: tuple[str, ...]  # endings of the files that it runs, and ``module`` where it runs PyTorch modules
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the backend
    usual: bool = False  # whether it is meant where no way is named


@dataclass(frozen=True)
class Found:
    """What ``halpiee doctor`` says of a backend: ``note`` means that it works with a limit; ``fix`` is what to type."""

    state: Literal["ok", "note", "broken"]
    what: str
    fix: str = ""


class Backend(ABC):
    """A runtime on a device.

    Attributes:
        name: as it is registered.
        builds: builds of one cell, at least: more than one where a build's memory layout changes its time.
        evicts: whether weights are to be read from memory where they are in a network.
        ways: how users may name that networks run on it.
        files: endings of the files that ``network`` runs.
        times_layers: whether its own profiler tells the time of every layer of an ONNX file.
        device_kind: ``cpu`` or ``cuda``: whose timing policy holds.
        precisions: those that a user may choose from, where the backend says no more of them.
    """

    name: str = ""
    threads: int = 1
    builds: int = 1
    evicts: bool = False
    ways: ClassVar[tuple[Way, ...]] = ()
    files: ClassVar[tuple[str, ...]] = ()
    times_layers: ClassVar[bool] = False
    device_kind: str = "cpu"
    precisions: ClassVar[Collection[str]] = ()

    @cached_property
    def policy(self) -> TimingPolicy:
        """The figures by which it is timed; by default those registered for its kind of device."""
        return policy_for(self.device_kind)

    @abstractmethod
    def environment(self) -> dict[str, Any]:
        """Returns the circumstances of everything this backend measures; see `latency.environment`."""

    @abstractmethod
    def clock(self) -> Clock:
        """Returns what times a call."""

    def anchor(self) -> Callable[[], object] | None:
        """Returns a short call that never changes; None where there is no use for one."""
        return None

    @abstractmethod
    def build(self, op: Op) -> Built:
        """Builds an op.

        Raises:
            UnsupportedOpError: this runtime cannot.
        """

    def prepare(self, ops: Sequence[Op]) -> None:  # noqa: B027 - most build one op at a time
        """Builds many ops at once before ``build`` is called for each, where single builds are slow."""

    def expects(self, ops: Sequence[Op]) -> None:  # noqa: B027 - most need not know
        """Tells the backend the ops of the network whose tables are measured next."""

    def reads(self, op: Op) -> int:
        """Returns the bytes of weights that one timed run of a build of an op reads."""
        return weight_bytes(op)

    def state(self) -> dict[str, Any]:
        """Returns fields of a cell that describe the device while it is measured, such as its clock."""
        return {}

    def deployed(self, model: Any, example_inputs: Sequence[Any]) -> Any:
        """Returns a PyTorch module in the form in which networks are deployed on this runtime."""
        del example_inputs
        return model

    def network(
        self, model: Any, example_inputs: Sequence[Any] | None = None, **how: Unpack[NetworkOptions]
    ) -> Runner:
        """Returns a whole network to be entered and timed.

        Args:
            model: a module, a model of this runtime, or the path of one.
            example_inputs: what it reads; by default random numbers.
            **how: see `NetworkOptions`.

        Raises:
            UsageError: this runtime times ops only, or it does not run such a model.
        """
        raise UsageError(
            f"a whole network was to be timed on {self.name}, which times single ops only; name another backend"
        )

    @classmethod
    def check(cls, **settings: Any) -> None:
        """Refuses settings that never go together; touches no device."""
        taken = inspect.signature(cls).parameters
        for name, value in settings.items():
            if name not in taken:
                raise UsageError(
                    f"the backend {cls.name!r} was asked with {name} {value!r}; it takes {', '.join(taken)}; leave it "
                    "out, or name another backend"
                )
        if cls.precisions and settings.get("precision", "fp32") not in cls.precisions:
            raise UsageError(
                f"precision {settings['precision']!r} was asked for; there are {', '.join(cls.precisions)}"
            )

    @classmethod
    def settings_of(cls, environment: Mapping[str, Any], layout: str) -> dict[str, Any]:
        """Returns the settings, except threads, by which a profile of this environment and layout was measured."""
        del environment, layout
        return {}

    @classmethod
    def where_it_trains(cls, device: str) -> bool:
        """Returns whether networks are timed on the device that they are trained on, unless another is named."""
        del device
        return False

    @classmethod
    def kept_beside(cls, path: Path) -> dict[str, Any]:
        """Returns settings that make builds store what they learn beside a profile; none if they learn nothing."""
        del path
        return {}

    @classmethod
    def claims(cls, path: Path) -> bool:
        """Returns whether the backend runs a file whose ending it reads; several runtimes may share an ending."""
        del path
        return True

    @classmethod
    def found(cls) -> list[tuple[str, Found]]:
        """Returns which of its libraries are installed and usable here, for ``halpiee doctor``."""
        return []


BACKENDS: Registry[type[Backend]] = Registry(
    "backend", group="latency.backends", home="latency.backends", folders=True
)
"""Name → class; a class is imported when its name is looked up."""


def backend(name: str) -> Callable[[B], B]:
    """Registers a backend under a name: lower case, words joined by ``-``."""

    def register(kind: B) -> B:
        BACKENDS.add(name, kind, kind)
        kind.name = name
        return kind

    return register


def load(name: str, *, threads: int = 1, settings: Mapping[str, Any] | None = None) -> Backend:
    """Returns a backend by its name.

    Args:
        name: as it is registered.
        threads: threads of the runtime.
        settings: more arguments of that backend, such as ``device`` or ``precision`` of torch.

    Raises:
        UsageError: no such backend, or one that does not take a setting.
    """
    if threads < 1:
        raise UsageError(f"{threads} threads were asked for; ask for 1 or more")
    kind, given = BACKENDS[name], dict(settings or {})
    kind.check(**given)
    return kind(threads=threads, **given)  # type: ignore[call-arg]


def adopted(given: str | Backend, *, threads: int = 1, settings: Mapping[str, Any] | None = None) -> Backend:
    """Returns a backend by its name, or the one that is given; one of another class gets the defaults it lacks."""
    found: object = load(given, threads=threads, settings=settings) if isinstance(given, str) else given
    return found if isinstance(found, Backend) else _Adopted(found)


OPTIONAL = ("name", "threads", "builds", "evicts", "anchor", "expects", "prepare", "reads", "network")
"""Members that an adopted object may have beside those that it must have."""


class _Adopted(Backend):
    """Wraps an object with ``environment``, ``clock`` and ``build``; other members have their defaults."""

    def __init__(self, own: Any) -> None:
        self._own = own
        for name in OPTIONAL:
            if hasattr(own, name):
                setattr(self, name, getattr(own, name))

    def environment(self) -> dict[str, Any]:
        """Returns the circumstances that it states."""
        return dict(self._own.environment())

    def clock(self) -> Clock:
        """Returns its clock."""
        clock: Clock = self._own.clock()
        return clock

    def build(self, op: Op) -> Built:
        """Returns what it builds."""
        built: Built = self._own.build(op)
        return built


def way_of(reads: str, name: str | None, path: Path | None = None) -> tuple[str, Way] | None:
    """Returns the backend and the way named ``name`` (None: the usual) that run ``module`` or files of an ending.

    Several runtimes may read one ending; then ``path`` decides.
    """
    for known in BACKENDS.names():
        if path is not None and not BACKENDS[known].claims(path):
            continue
        for way in BACKENDS[known].ways:
            if reads in way.reads and (way.name == name or (name is None and way.usual)):
                return known, way
    return None


def ways_of(reads: str) -> list[str]:
    """Returns the names of all ways to run a kind of network, the usual one first: ``module``, or a file's ending."""
    ways = [way for known in BACKENDS.names() for way in BACKENDS[known].ways if reads in way.reads]
    return [way.name for way in sorted(ways, key=lambda way: not way.usual)]


def ending(path: Path) -> str | None:
    """Returns the ending of a file that some backend runs; None where none does."""
    known = {end for name in BACKENDS.names() for way in BACKENDS[name].ways for end in way.reads}
    return path.suffix if path.suffix in known - {MODULE} else None
