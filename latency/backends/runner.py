"""What runs a whole network on a runtime: a context manager that readies, runs, times and frees it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Self, TypedDict

from latency.errors import UsageError

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
        """Returns what a second caller runs at the same time: another runner of the network, or this one."""
        return self

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
