"""The copy of a model that a trace runs, and the modes that record while it runs.

The copy has no values unless asked, and is cut on paper where asked. The modes know where the forward is, which torch
function it calls, and which op goes by.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from halpiee.errors import StructureError
from halpiee.structure.constants import Constants
from halpiee.structure.labels import CheckedUnits, Tag
from halpiee.structure.modules import adapted, emptied
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import Call, Event, Move, tensors_of
from halpiee.structure.rules import apply, is_movement, is_pointwise, name_of, takes_time
from halpiee.structure.rules.elementwise import numbers_of
from halpiee.structure.rules.movement import moves_of
from halpiee.structure.shrink import Cut, set_number, sliced
from halpiee.structure.state import TAKEN, Answers, asks, forgotten
from latency.backends.torch.modules import copy_of

__all__ = [
    "Api",
    "Dispatch",
    "Path",
    "StandIn",
    "Tensors",
    "Watch",
    "looked_on",
    "plain_tensors",
    "stand_in_for",
]


ATTENTION = "scaled_dot_product_attention"
"""The function that is one op here whatever torch makes of it, which hangs on the device and on widths."""


BATCH_NORMS = (
    torch.ops.aten.native_batch_norm.default,
    torch.ops.aten._native_batch_norm_legit_no_training.default,
)
"""Batch norms whose outputs are known without running them on tensors without values."""


def normalised_on_paper(args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Returns what a batch norm by running statistics gives for a tensor without values, or None where it may fail.

    torch works it out in a dozen ops of Python, a third of the time of a trace.

    Args:
        args: input ``[N, C, …]``, weight, bias, running mean and variance ``[C]``, then whether it trains, if given.
    """
    x, *parameters = args[:5]
    trains = len(args) == 8 and args[5]
    if trains or x.dim() < 2 or not (x.is_meta or isinstance(x, FakeTensor)) or not x.is_floating_point():
        return None
    if any(
        p is None or p.shape != x.shape[1:2] or p.device != x.device or p.dtype != x.dtype for p in parameters
    ):
        return None
    return like(x, x.shape, x.stride()), like(x, (0,)), like(x, (0,))


def like(x: Tensor, shape: Sequence[int], strides: Sequence[int] | None = None) -> Tensor:
    """Returns a new tensor without values on the device and of the type of one that has none, either.

    torch's own ``empty`` passes through every mode, for ten times the time.

    Args:
        x: a fake tensor, or one on the meta device.
        shape: of the new one.
        strides: of the new one; contiguous where there are none, or where they would leave gaps.
    """
    mode = x.fake_mode if isinstance(x, FakeTensor) else None
    return without_values(mode, shape, strides, x.dtype, x.device)


def without_values(
    mode: FakeTensorMode | None,
    shape: Sequence[int],
    strides: Sequence[int] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Returns a new tensor without values: a fake one of a device, or without a mode one on the meta device."""
    with no_dispatch():
        if strides is None or not dense(shape, strides):
            made = torch.empty(tuple(shape), dtype=dtype, device="meta")
        else:
            made = torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device="meta")
        return made if mode is None else FakeTensor(mode, made, device)


def dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Returns whether a tensor's elements fill its memory, each place once."""
    expected = 1
    for stride, size in sorted(pair for pair in zip(strides, shape, strict=True) if pair[1] != 1):
        if stride != expected:
            return False
        expected *= size
    return True


class Path:
    """Where in the model the forward is: the stack of module paths, and the torch function being called.

    Attributes:
        stack: paths of the modules that are running, the innermost last.
        last: the innermost module that ran last.
        api: name of the torch function being called.
        inside: whether what runs is the inside of a function that is one op here.
        taking: the method that is making an array or a text of a tensor, or has failed to.
        answers: what the forward reads of its tensors in Python; None where it is not known.
        constants: what computes constants with their values; None where all tensors have values, or none.
    """

    def __init__(self, answers: Answers | None = None, constants: Constants | None = None) -> None:
        self.answers = answers
        self.constants = constants
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
        if func in BATCH_NORMS and (known := normalised_on_paper(args)) is not None:
            return known
        if self.constants is not None and (found := self.constants.run(func, args, kwargs)) is not None:
            return found[0]
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
        return self.step(name_of(func), func, args, kwargs or {})

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
        """Refuses to write into a parameter: with real tensors it belongs to the model."""
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
        """Runs the op and records it."""
        if self.path.inside or func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        return self.step(name_of(func), func, args, kwargs or {})

    def step(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the named op and records it."""
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


Tensors = Literal["fake", "meta", "real"]
"""What a copy runs on: fake tensors run the ops of their device without values, as ``meta`` does, several times as fast
but with some other ops, of recurrent layers or where a number is written into a slice."""


@dataclass(frozen=True)
class StandIn:
    """A copy of a model and of its inputs."""

    model: nn.Module  # the copy, in eval mode
    # its parameters and buffers by name; one that has several names stands under the first
    tensors: dict[str, Tensor]
    inputs: tuple[Any, ...]  # copies of the inputs
    fake_mode: FakeTensorMode | None  # the mode that its fake tensors belong to; None where they are others


def stand_in_for(
    model: nn.Module, example_inputs: tuple[Any, ...], cut: Cut | None = None, *, tensors: Tensors = "fake"
) -> StandIn:
    """Copies a model onto fake tensors, which hold no memory and do no arithmetic; on request onto real ones.

    Args:
        model: the model.
        example_inputs: its inputs.
        cut: what to leave out, or None.
        tensors: what it runs on. Real parameters share the model's memory unless they are cut.

    Raises:
        StructureError: the model cannot be copied.
    """
    given = [*model.named_parameters(), *model.named_buffers()]
    like = Like(tensors, [tensor for _, tensor in given])
    memo = empty_containers(model)
    named: dict[str, Tensor] = {}
    for name, tensor in given:
        if id(tensor) in memo:
            continue
        own = tensor.detach()  # a parameter is never written into, a buffer may be
        own = own.clone() if tensors == "real" and not isinstance(tensor, nn.Parameter) else own
        data = like.tensor(own, cut.kept.get(name, {}) if cut is not None else {})
        named[name] = as_parameter(data) if isinstance(tensor, nn.Parameter) else data
        memo[id(tensor)] = named[name]
    try:
        copied = copy_of(model, memo).eval()
        adapted(copied, always=True)
    except Exception as error:
        raise StructureError(
            f"the model {type(model).__name__} cannot be copied ({error}); "
            "remove tensors that are not parameters or buffers from its attributes"
        ) from error
    modules = dict(copied.named_modules())
    for path, name, at, value in cut.attributes if cut is not None else ():
        set_number(modules[path], name, at, value)
    emptied(copied)
    forgotten(copied, ())
    return StandIn(copied, named, like.nested(example_inputs), like.fake_mode)


def empty_containers(model: nn.Module) -> dict[int, Any]:
    """Returns what stands for the empty dicts and sets of a model's modules in a copy, by their ``id``.

    A module has a dozen of them, mostly for hooks; to copy them one by one took three quarters of a copy's time.
    """
    return {
        id(value): type(value)()
        for module in model.modules()
        for value in vars(module).values()
        if type(value) in (OrderedDict, dict, set) and not value
    }


def as_parameter(data: Tensor) -> Tensor:
    """Returns a tensor that was made for a copy as a parameter of it.

    A fake tensor becomes one by its mark; ``nn.Parameter`` would detach it first, through every mode.
    """
    if type(data) is not FakeTensor:
        return nn.Parameter(data, requires_grad=False)
    data._is_param = True
    return data


class Like:
    """Makes tensors like given ones, on the tensors that a copy runs on.

    Args:
        tensors: what a copy runs on.
        given: parameters and buffers of the model; what shares memory among them shares it in the copy.
    """

    def __init__(self, tensors: Tensors, given: Sequence[Tensor]) -> None:
        self.real = tensors == "real"
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True) if tensors == "fake" else None
        once = {id(x): x for x in given}.values()
        memories = Counter(x.untyped_storage()._cdata for x in once if plain_memory(x))
        self.shared = {memory for memory, count in memories.items() if count > 1}

    def tensor(self, tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
        """Returns a fake tensor of the kept positions; a real tensor may share memory with its source."""
        if self.real:
            return sliced(tensor, kept) if kept else tensor
        if self.fake_mode is not None and not kept and not self.alone(tensor):
            return self.fake_mode.from_tensor(tensor)
        shape = [kept[d].numel() if d in kept else size for d, size in enumerate(tensor.shape)]
        strides = None if kept or self.fake_mode is None else tensor.stride()
        return without_values(self.fake_mode, shape, strides, tensor.dtype, tensor.device)

    def alone(self, tensor: Tensor) -> bool:
        """Returns whether a tensor is an ordinary one that fills memory of its own."""
        return (
            plain_memory(tensor)
            and dense(tensor.shape, tensor.stride())
            and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            and tensor.untyped_storage()._cdata not in self.shared
        )

    def nested(self, value: Any) -> Any:
        """Returns the nested value with fake tensors that share no memory."""
        if isinstance(value, Tensor):
            value = value.detach()
            if self.real:
                return value.clone()
            return value.to("meta") if self.fake_mode is None else self.fake_mode.from_tensor(value)
        if isinstance(value, dict):
            return {k: self.nested(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.nested(v) for v in value]
        if isinstance(value, tuple):
            items = [self.nested(v) for v in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value


def plain_memory(tensor: Tensor) -> bool:
    """Returns whether a tensor is of torch's own class, strided, and not quantised."""
    return (
        type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_nested
    )


@contextmanager
def looked_on(
    stand_in: StandIn, path: Path, made: list[tuple[Any, ...]], looking: Dispatch | Watch
) -> Iterator[None]:
    """While it lasts, forwards of the copy run under the eyes of a dispatch mode, each op as itself.

    Args:
        stand_in: the copy.
        path: is told where in the copy the forward is.
        made: takes the numbers that become tensors.
        looking: the mode.
    """
    handles = []
    for name, module in stand_in.model.named_modules():
        handles.append(module.register_forward_pre_hook(path.enter(name)))
        handles.append(module.register_forward_hook(path.leave, always_call=True))
    fast = torch.backends.mha.get_fastpath_enabled()
    report = logging.getLogger(FakeTensorMode.__module__)
    quiet, report.disabled = report.disabled, True  # a cut that fails is a finding, not an error
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), stand_in.fake_mode or nullcontext(), Api(path, made, looking), looking:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        report.disabled = quiet
        for handle in handles:
            handle.remove()
