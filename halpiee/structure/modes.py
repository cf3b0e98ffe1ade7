"""What looks on while a forward runs: where it is, which torch function it calls, which op goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from halpiee.errors import StructureError
from halpiee.structure.answers import TAKEN, Answers, asks
from halpiee.structure.calls import Call, Event, tensors_of
from halpiee.structure.elementwise import numbers_of
from halpiee.structure.labels import Tag
from halpiee.structure.movements import moves_of
from halpiee.structure.moves import Move
from halpiee.structure.recorder import Recorder
from halpiee.structure.rules import apply, is_movement, is_pointwise, takes_time
from halpiee.structure.units import CheckedUnits

__all__ = ["Api", "Dispatch", "Path", "Watch", "plain_tensors"]

ATTENTION = "scaled_dot_product_attention"
"""The function that is one op here whatever torch makes of it, which hangs on the device and on widths."""


class Path:
    """Where in the model the forward is: the stack of module paths, and the torch function being called.

    Attributes:
        stack: paths of the modules that are running, the innermost last.
        last: the innermost module that ran last.
        api: name of the torch function being called.
        inside: whether what runs is the inside of a function that is one op here.
        taking: the method that is making an array or a text of a tensor, or has failed to.
        answers: what the forward reads of its tensors in Python; None where it is not known.
    """

    def __init__(self, answers: Answers | None = None) -> None:
        self.answers = answers
        self.stack: list[str] = []
        self.last = ""
        self.api = ""
        self.inside = False
        self.taking = ""

    def enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        """Returns the hook that notes that a module's forward begins."""

        def hook(module: nn.Module, inputs: Any) -> None:
            self.stack.append(name)
            self.last = name

        return hook

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an op; one that makes a Python number of a tensor is answered where it cannot."""
        if self.answers is None or not asks(func):
            return func(*args, **kwargs)
        return self.answers.ask(lambda: func(*args, **kwargs))

    def take(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Makes an array or a text of a tensor, or is answered where it cannot."""
        if self.answers is not None:
            self.inside = True
            return self.answers.ask(lambda: func(*args, **kwargs))
        self.taking = self.api
        found = func(*args, **kwargs)
        self.taking = ""
        return found

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Notes that a module's forward has ended."""
        self.stack.pop()


class Api(TorchFunctionMode):
    """Notes the name of the torch function that the model's code calls, and numbers made into tensors.

    Args:
        path: where the name goes.
        made: where the numbers go.
        looking: what is told of fused attention as of one op.
    """

    def __init__(self, path: Path, made: list[tuple[Any, ...]], looking: Dispatch | Watch) -> None:
        super().__init__()
        self.path = path
        self.made = made
        self.looking = looking

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the function with its name noted."""
        within = self.path.inside
        before, self.path.api = self.path.api, getattr(func, "__name__", "")
        if self.path.api in ("tensor", "as_tensor", "scalar_tensor", "full") and numbers_of(args):
            self.made.append(numbers_of(args))
        try:
            if self.path.api in TAKEN:
                found = self.path.take(func, args, kwargs or {})
                read = self.path.answers is None and self.path.api != "__format__"
                if read and isinstance(self.looking, Dispatch):
                    with plain_tensors():  # where it goes from there is not seen
                        self.looking.recorder.freeze(args[0], f"{self.path.api}() in Python")
                return found
            whole = attention_of(args, kwargs or {}) if self.path.api == ATTENTION else None
            if whole is None:
                return func(*args, **(kwargs or {}))
            self.path.inside = True
            return self.looking.step(ATTENTION, func, *whole)
        finally:
            self.path.api, self.path.inside = before, within


def attention_of(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Returns queries, keys and values of fused attention, and the other arguments; None where one is missing."""
    given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
    given |= kwargs
    tensors = tuple(given.pop(name, None) for name in ("query", "key", "value"))
    return (tensors, given) if all(isinstance(tensor, Tensor) for tensor in tensors) else None


class Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Applies the rule of every op to the labels, after the op has run on fake tensors."""

    def __init__(self, recorder: Recorder, path: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder
        self.path = path

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the op, then its rule."""
        if self.path.inside or func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        return self.step(func.overloadpacket.__name__, func, args, kwargs or {})

    def step(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the op of this name, then its rule."""
        module = self.path.stack[-1] if self.path.stack else ""
        self.path.last = module
        if isinstance(self.recorder.units, CheckedUnits):
            self.recorder.units.where = f"{name} in {module}" if module else name
        if self.recorder.real and name.endswith("_") and tensors_of(args):
            self.refuse_writing(tensors_of(args)[0])
        number, self.recorder.ran = self.recorder.ran, self.recorder.ran + 1
        try:
            out = self.path.run(func, args, kwargs)
        except Exception:
            tags = [self.recorder.tag(t) for t in tensors_of([args, kwargs])]
            self.recorder.failed = [axis for tag in tags if not tag.parameter for axis in tag.axes]
            self.recorder.failed_at = f"{name} in {module}" if module else name
            raise
        with plain_tensors():
            tensors = tensors_of([args, kwargs])
            if self.path.answers is not None and asks(func):
                return out
            if number in self.recorder.idle_ops:
                for tensor in tensors_of(out):
                    self.recorder.set(tensor, Tag())
                return out
            if self.recorder.decisions is not None:
                out = self.recorder.decisions.outcome(name, tensors, out)
            reads = tuple(self.recorder.value(t) for t in tensors)
            call = Call(name, func, args, kwargs, out, module, self.path.api, reads)
            for value, tensor in zip(reads, tensors, strict=True):
                if id(tensor) in self.recorder.originals:
                    self.recorder.foreign[value] = self.recorder.originals[id(tensor)]
            changes = self.recorder.units.changes
            unpriced = takes_time(self.recorder, call)
            try:
                timing = apply(self.recorder, call)
            except StructureError:
                raise
            except Exception as error:  # a fault of the rule: what the op touches stays, and says so
                timing = None
                fault = f"{type(error).__name__}: {error}"
                self.recorder.freeze_call(call, f"{call.where}, where halpiee's own rule fails ({fault})")
            outs = call.outputs
            if outs and name.endswith("_") and not self.recorder.tag(outs[0]).zero:
                self.recorder.written(outs[0])
            if outs:
                writes = tuple(self.recorder.value(t) for t in outs)
                unpriced &= timing is None
                changed = self.recorder.units.changes > changes
                batch = self.recorder.batch
                event = Event(name, module, reads, writes, timing, batch, unpriced, number, changed)
                self.recorder.events.append(event)
            else:
                self.recorder.read_by_python.update(reads)
        return out

    def refuse_writing(self, target: Tensor) -> None:
        """Refuses to write into a parameter: on real tensors it is the model's own."""
        with plain_tensors():
            name = self.recorder.parameter_of(target)
        if name is not None:
            raise StructureError(
                f"the forward writes into the parameter {name!r}; keep what it changes in a buffer"
            )


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the ops that run and what they read, the numbers of the pointwise ones, and what moves elements.

    Args:
        path: where the forward is.
        given: parameters, buffers and inputs, by name.
        idle: numbers of the ops that are left out.
    """

    def __init__(self, path: Path, given: Mapping[str, Tensor], idle: frozenset[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path = path
        self.moves: list[Move] = []
        self.events: list[Event] = []
        self.numbers: list[tuple[Any, ...]] = []
        self._known: dict[int, tuple[Tensor, int]] = {}
        self._n_values = 0
        self.idle_ops = idle
        self.ran = 0
        self.given = {self.written(tensor): name for name, tensor in given.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the op and notes it."""
        if self.path.inside or func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        return self.step(func.overloadpacket.__name__, func, args, kwargs or {})

    def step(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the op of this name and notes it."""
        number, self.ran = self.ran, self.ran + 1
        out = self.path.run(func, args, kwargs)
        if number in self.idle_ops:
            return out
        module = self.path.stack[-1] if self.path.stack else ""
        if is_movement(name):
            call = Call(name, func, args, kwargs, out, module, self.path.api)
            self.moves += moves_of(call, len(self.events))
        if outs := tensors_of(out):
            tensors = tensors_of([args, kwargs])
            reads = tuple(self.value(tensor) for tensor in tensors)
            writes = tuple(self.written(tensor) for tensor in outs)
            self.events.append(Event(name, module, reads, writes, None))
            if is_pointwise(name, func) and tensors:
                self.numbers.append(numbers_of(args))
        return out

    def value(self, tensor: Tensor) -> int:
        """Returns the value number of a tensor."""
        known = self._known.get(id(tensor))
        return known[1] if known is not None else self.written(tensor)

    def written(self, tensor: Tensor) -> int:
        """Notes that a tensor has become a new value and returns its number."""
        self._n_values += 1
        self._known[id(tensor)] = (tensor, self._n_values)
        return self._n_values


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Lets the rules work on ordinary tensors."""
    with _disable_current_modes():
        yield
