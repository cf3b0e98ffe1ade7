"""What looks on while a forward runs: where it is, which torch function it calls, which op goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from halpiee.errors import StructureError
from halpiee.structure.elementwise import numbers_of
from halpiee.structure.movements import moves_of
from halpiee.structure.moves import Move
from halpiee.structure.recorder import Call, Event, Recorder, tensors_of
from halpiee.structure.rules import apply, is_movement, is_pointwise
from halpiee.structure.units import CheckedUnits

__all__ = ["Api", "Dispatch", "Path", "Watch"]


class Path:
    """Where in the model the forward is: the stack of module paths, and the torch function being called."""

    def __init__(self) -> None:
        self.stack: list[str] = []
        self.inputs: list[Tensor | None] = []
        self.last = ""
        self.api = ""

    def enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        """Returns the hook that notes that a module's forward begins."""

        def hook(module: nn.Module, inputs: Any) -> None:
            self.stack.append(name)
            self.inputs.append(next(iter(tensors_of(inputs)), None))
            self.last = name

        return hook

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Notes that a module's forward has ended."""
        self.stack.pop()
        self.inputs.pop()


class Api(TorchFunctionMode):
    """Notes the name of the torch function that the model's code calls, and numbers made into tensors."""

    def __init__(self, path: Path, made: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self.path = path
        self.made = made

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the function with its name noted."""
        before, self.path.api = self.path.api, getattr(func, "__name__", "")
        if self.path.api in ("tensor", "as_tensor", "scalar_tensor", "full") and numbers_of(args):
            self.made.append(numbers_of(args))
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.path.api = before


class Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Applies the rule of every op to the labels, after the op has run on fake tensors."""

    def __init__(self, recorder: Recorder, path: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder
        self.path = path

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the op, then its rule."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        module = self.path.stack[-1] if self.path.stack else ""
        self.path.last = module
        if isinstance(self.recorder.units, CheckedUnits):
            self.recorder.units.where = f"{name} in {module}" if module else name
        if self.recorder.real and name.endswith("_") and tensors_of(args):
            self.refuse_writing(tensors_of(args)[0])
        try:
            out = func(*args, **kwargs)
        except Exception:
            tags = [self.recorder.tag(t) for t in tensors_of([args, kwargs])]
            self.recorder.failed = [axis for tag in tags if not tag.parameter for axis in tag.axes]
            self.recorder.failed_at = f"{name} in {module}" if module else name
            raise
        if func.namespace == "prim":
            return out
        with plain_tensors():
            reads = tuple(self.recorder.value(t) for t in tensors_of([args, kwargs]))
            given = self.path.inputs[-1] if self.path.inputs else None
            call = Call(name, func, args, kwargs, out, module, self.path.api, reads, given)
            timing = apply(self.recorder, call)
            outs = call.outputs
            if outs and name.endswith("_") and not self.recorder.tag(outs[0]).zero:
                self.recorder.written(outs[0])
            if outs:
                writes = tuple(self.recorder.value(t) for t in outs)
                self.recorder.events.append(Event(name, module, reads, writes, timing, self.recorder.batch))
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
    """Notes the ops that run, the numbers of the pointwise ones, and what moves elements."""

    def __init__(self, path: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path = path
        self.moves: list[Move] = []
        self.ops: list[str] = []
        self.numbers: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the op and notes it."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace != "prim" and is_movement(name):
            module = self.path.stack[-1] if self.path.stack else ""
            call = Call(name, func, args, kwargs or {}, out, module, self.path.api)
            self.moves += moves_of(call, len(self.ops))
        if func.namespace != "prim" and tensors_of(out):
            self.ops.append(name)
            if is_pointwise(name, func) and tensors_of([args, kwargs or {}]):
                self.numbers.append(numbers_of(args))
        return out


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Lets the rules work on ordinary tensors."""
    with _disable_current_modes():
        yield
