"""The copy of a model that a trace runs, and the modes that record while it runs.

The copy is fake (without values) by default, and may be a cut of the model. The modes see where the forward is, which
torch function it calls, and each op.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from halpiee.errors import StructureError
from halpiee.structure.labels import CheckedUnits, Tag
from halpiee.structure.modules import AVERAGES, NORMS, adapted, emptied
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import Call, Event, Move, memory_of, tensors_of, with_tensors
from halpiee.structure.rules import apply, is_movement, is_pointwise, name_of, takes_time
from halpiee.structure.rules.elementwise import numbers_of
from halpiee.structure.rules.movement import moves_of
from halpiee.structure.shrink import Cut, set_number, sliced
from halpiee.structure.state import TAKEN, Answers, Constants, reads_values, restore
from latency.backends.torch.modules import copy_of

ATTENTION = "scaled_dot_product_attention"
"""The function that is one op here: which ops torch makes of it depends on the device and on widths."""


BATCH_NORMS = (
    torch.ops.aten.native_batch_norm.default,
    torch.ops.aten._native_batch_norm_legit_no_training.default,
)
"""Batch norms whose outputs are known without running them on tensors without values."""


def normalised_on_paper(args: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
    """Returns the outputs of a batch norm by running statistics, without values, or None where it may fail.

    torch works them out in a dozen ops of Python, a third of the time of a trace. Arguments are the input
    ``[N, C, …]``, weight, bias, running mean and variance ``[C]``, then whether it trains, if given.
    """
    x, *parameters = args[:5]
    trains = len(args) == 8 and args[5]
    if trains or x.dim() < 2 or not (x.is_meta or isinstance(x, FakeTensor)) or not x.is_floating_point():
        return None
    if any(
        p is None or p.shape != x.shape[1:2] or p.device != x.device or p.dtype != x.dtype for p in parameters
    ):
        return None
    mode = x.fake_mode if isinstance(x, FakeTensor) else None
    forms = (x.shape, x.stride()), ((0,), None), ((0,), None)
    return tuple(without_values(mode, shape, strides, x.dtype, x.device) for shape, strides in forms)


def without_values(
    mode: FakeTensorMode | None,
    shape: Sequence[int],
    strides: Sequence[int] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Returns a new tensor without values: a fake one of a device, or without a mode one on the meta device.

    It is contiguous without strides, or where they would leave gaps. torch's own ``empty`` passes through every mode,
    for ten times the time.
    """
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
    """Where in the model the forward is: the stack of module paths, and the torch function being called."""

    def __init__(self, answers: Answers | None = None, constants: Constants | None = None) -> None:
        self.answers = answers  # the values that the forward reads in Python; None: not known
        self.constants = (
            constants  # computes constants with their values; None: all tensors have values, or none
        )
        self.stack: list[str] = []  # paths of the modules that are running, the innermost last
        self.norms: list[int] = []  # how many norms each of them has called so far
        self.last = ""  # the innermost module that ran last
        self.api = ""  # name of the torch function being called
        self.inside = False  # the ops that run belong to a function that is one op here
        self.taking = ""  # the method that is making an array or a text of a tensor, or has failed to

    def enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        """Returns the hook that notes that the forward of a module begins."""

        def hook(module: nn.Module, inputs: Any) -> None:
            self.stack.append(name)
            self.norms.append(0)
            self.last = name

        return hook

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an op; one that makes a Python number of a tensor without values gets the known answer."""
        if func in BATCH_NORMS and (known := normalised_on_paper(args)) is not None:
            return known
        if self.constants is not None and (found := self.constants.run(func, args, kwargs)) is not None:
            return found[0]
        if self.answers is None or not reads_values(func):
            return func(*args, **kwargs)
        return self.answers.ask(lambda: func(*args, **kwargs))

    def take(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Makes an array or a text of a tensor; of one without values it is the known answer."""
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
        self.norms.pop()


class Api(TorchFunctionMode):
    """Notes the name of the torch function that the model's code calls, and numbers made into tensors.

    Fused attention and circular padding are handed to ``looking`` as one op each.
    """

    def __init__(self, path: Path, made: list[tuple[Any, ...]], looking: Dispatch | Watch) -> None:
        super().__init__()
        self.path, self.made, self.looking = path, made, looking

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
                    with _disable_current_modes():  # its further use is not recorded
                        self.looking.recorder.freeze(args[0], f"{self.path.api}() in Python")
                return found
            if (func in NORMS or func in AVERAGES) and self.path.norms:
                source = args[0] if args else next(iter((kwargs or {}).values()))
                return self.norm(source, lambda: func(*args, **(kwargs or {})))
            name, whole = ATTENTION, None
            if self.path.api == ATTENTION:
                whole = attention_of(args, kwargs or {})
            elif func is F.pad and "circular" in (*args[2:3], (kwargs or {}).get("mode")):
                widths = args[1] if len(args) > 1 else (kwargs or {})["pad"]
                name, whole = f"circular_pad{len(widths) // 2}d", (args, kwargs or {})
            if whole is None:
                return func(*args, **(kwargs or {}))
            self.path.inside = True
            return self.looking.step(name, func, *whole)
        finally:
            self.path.api, self.path.inside = before, within

    def norm(self, source: Tensor, run: Callable[[], Any]) -> Any:
        """Runs a norm or an average, and notes which one of its module it is where it is none over channels."""
        module, number = self.path.stack[-1], self.path.norms[-1]
        self.path.norms[-1] += 1
        if not isinstance(self.looking, Dispatch):
            return run()
        recorder = self.looking.recorder
        before, recorder.norm_call = len(recorder.norms), (module, number, source)
        try:
            found = run()
        finally:
            recorder.norm_call = None
        if len(recorder.norms) == before:
            recorder.other_norms.add((module, number))
            for norm in recorder.norms:
                if (norm.module, norm.number) == (module, number):
                    recorder.units.freeze(norm.units, f"a norm in {module} over channels, and over others")
        return found


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
        self.recorder, self.path = recorder, path

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the op, then its rule."""
        if self.path.inside or func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        return self.step(name_of(func), func, args, kwargs or {})

    def step(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the op of this name, then its rule."""
        recorder, module = self.recorder, self.path.stack[-1] if self.path.stack else ""
        where = f"{name} in {module}" if module else name
        self.path.last = module
        if isinstance(recorder.units, CheckedUnits):
            recorder.units.where = where
        tensors = tensors_of([args, kwargs])
        if recorder.real and name.endswith("_") and tensors:
            self.refuse_writing(tensors[0])
        number, recorder.ran = recorder.ran, recorder.ran + 1
        try:
            out = self.path.run(func, args, kwargs)
        except Exception:
            tags = [recorder.tag(t) for t in tensors]
            recorder.failed = [axis for tag in tags if not tag.parameter for axis in tag.axes]
            recorder.failed_at = where
            raise
        with _disable_current_modes():
            if self.path.answers is not None and reads_values(func):
                return out
            if number in recorder.idle_ops:
                for tensor in tensors_of(out):
                    recorder.set(tensor, Tag())
                return out
            if recorder.decisions is not None:
                out = recorder.decisions.outcome(name, tensors, out)
            reads = tuple(recorder.value(t) for t in tensors)
            call = Call(name, func, args, kwargs, out, module, self.path.api, reads)
            for value, tensor in zip(reads, tensors, strict=True):
                if id(tensor) in recorder.originals:
                    recorder.foreign[value] = recorder.originals[id(tensor)]
            changes, numbers = recorder.units.changes, len(recorder.scalars)
            unpriced = takes_time(recorder, call)
            try:
                timing = apply(recorder, call)
            except StructureError:
                raise
            except Exception as error:  # a fault of the rule: the units that the op touches are frozen for it
                timing = None
                fault = f"{type(error).__name__}: {error}"
                recorder.freeze_call(call, f"{call.where}, where halpiee's own rule fails ({fault})")
            outs = call.outputs
            if not outs:
                recorder.read_by_python.update(reads)
                return out
            if name.endswith("_") and not recorder.tag(outs[0]).zero:
                recorder.written(outs[0])
            writes = tuple(recorder.value(t) for t in outs)
            unpriced &= timing is None
            changed = recorder.units.changes > changes or any(n for _, n, _ in recorder.scalars[numbers:])
            memories = dict(zip(reads + writes, map(memory_of, tensors + outs), strict=True))
            event = Event(
                name, module, reads, writes, memories, timing, recorder.batch, unpriced, number, changed
            )
            recorder.events.append(event)
        return out

    def refuse_writing(self, target: Tensor) -> None:
        """Refuses to write into a parameter: with real tensors it belongs to the model."""
        with _disable_current_modes():
            name = self.recorder.parameter_of(target)
        if name is not None:
            raise StructureError(
                f"the forward writes into the parameter {name!r}; keep what it changes in a buffer"
            )


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the ops that run but the idle ones: their inputs, moves, and the numbers of pointwise ops.

    ``given`` are parameters, buffers and inputs, by name.
    """

    def __init__(self, path: Path, given: Mapping[str, Tensor], idle: frozenset[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path, self.idle_ops, self.ran = path, idle, 0
        self.moves: list[Move] = []
        self.events: list[Event] = []
        self.numbers: list[tuple[Any, ...]] = []  # those among the arguments of each pointwise op
        self._known: dict[int, tuple[Tensor, int]] = {}
        self._n_values = 0
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
            memories = dict(zip(reads + writes, map(memory_of, tensors + outs), strict=True))
            self.events.append(Event(name, module, reads, writes, memories, None))
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


Tensors = Literal["fake", "meta", "real"]
"""What a copy runs on: fake tensors run the ops of their device without values, as ``meta`` does, several times as fast
but with some other ops, of recurrent layers or where a number is written into a slice."""


@dataclass(frozen=True)
class TracedCopy:
    """A copy of a model and of its inputs."""

    model: nn.Module  # the copy, in eval mode
    tensors: dict[str, Tensor]  # its parameters and buffers by name, the first of several
    inputs: tuple[Any, ...]  # copies of the inputs
    fake_mode: FakeTensorMode | None  # of its fake tensors


def copied_for_trace(
    model: nn.Module, example_inputs: tuple[Any, ...], cut: Cut | None = None, *, tensors: Tensors = "fake"
) -> TracedCopy:
    """Copies a model, or a cut of it. Real parameters share the model's memory unless they are cut.

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
        if isinstance(tensor, nn.Parameter) and isinstance(data, FakeTensor):
            data._is_param = True  # ``nn.Parameter`` would detach it first, through every mode
        elif isinstance(tensor, nn.Parameter):
            data = nn.Parameter(data, requires_grad=False)
        named[name] = data
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
    restore(copied, ())
    return TracedCopy(copied, named, with_tensors(example_inputs, like.input), like.fake_mode)


def empty_containers(model: nn.Module) -> dict[int, Any]:
    """Returns new ones for the empty dicts and sets of a model's modules in a copy, by their ``id``.

    A module has a dozen of them, mostly for hooks; copying them one by one took three quarters of a copy's time.
    """
    return {
        id(value): type(value)()
        for module in model.modules()
        for value in vars(module).values()
        if type(value) in (OrderedDict, dict, set) and not value
    }


class Like:
    """Makes tensors of the kind that a copy runs on; parameters and buffers that share memory share it in the copy."""

    def __init__(self, tensors: Tensors, given: Sequence[Tensor]) -> None:
        self.real = tensors == "real"
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True) if tensors == "fake" else None
        once = {id(x): x for x in given}.values()
        memories = Counter(memory_of(x) for x in once if plain_memory(x))
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
            and memory_of(tensor) not in self.shared
        )

    def input(self, tensor: Tensor) -> Tensor:
        """Returns an input of the copy, which shares no memory with the model's."""
        tensor = tensor.detach()
        if self.real:
            return tensor.clone()
        return tensor.to("meta") if self.fake_mode is None else self.fake_mode.from_tensor(tensor)


def plain_memory(tensor: Tensor) -> bool:
    """Returns whether a tensor is of torch's own class, strided, and not quantised."""
    return (
        type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_nested
    )


@contextmanager
def recorded_run(
    stand_in: TracedCopy, path: Path, made: list[tuple[Any, ...]], looking: Dispatch | Watch
) -> Iterator[None]:
    """Runs the forwards of the copy inside under a dispatch mode, without fused kernels; notes where they are.

    ``made`` takes the numbers that become tensors.
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
