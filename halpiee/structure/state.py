"""What a forward does beside its ops: values it reads in Python, constants, tensors it stores, branches on the mode.

**Answers.** A forward may read a number of a tensor to log it, or a truth value to check it. Fake tensors have no such
values. They are noted on real tensors and returned again on fake ones, in order; ``forward.py`` tries whether they
matter. **Constants** depend on no input, parameter or buffer, such as strides of which a detector makes its anchors:
they are the same in a smaller network, and computed with their values, on real tensors.

**Stored tensors.** A cut copy must not use caches of the full network. An attribute that the traced forward changed is
put back to its value before it; a module makes tensors that it keeps for evaluation anew when it is switched to
training and back.

**Branches.** Where the forward branches on ``training``, training may run other layers than an evaluation. Auxiliary
heads read channels that an evaluation uses elsewhere, so both are traced, and channels coupled in either are coupled.
Norms and dropouts stay as in an evaluation meanwhile.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from halpiee.structure.labels import source_line
from halpiee.structure.records import memory_of, tensors_of

TAKEN = frozenset({"numpy", "__array__", "tolist", "__format__"})
"""Methods of tensors that make arrays, lists and texts of their values without an op."""

NEAR = (0.0, 0.1, 0.25, 0.5, 0.8, 0.95, 1.05, 1.25, 2.0, 4.0, 10.0, 100.0, -0.5, -1.0)
"""Factors of numbers that a check may let pass."""


@dataclass(frozen=True)
class Answer:
    """A value that Python read from a tensor."""

    value: Any  # a number, a truth value, a text, an array, or lists of them
    line: str  # file and line that asked; for truth values its instruction too


@dataclass(frozen=True)
class Change:
    """Other answers in place of those that are found."""

    other: Callable[[int, Any], Any]  # returns another value for the answer of this place, or the same
    line: str = ""  # the one line whose answers are changed; all lines where it is empty


class Answers:
    """The values that a forward reads in Python, in order: noted here, or given where tensors have no values."""

    def __init__(self, given: Sequence[Answer] = (), change: Change | None = None) -> None:
        self.given, self.change = given, change
        self.noted: list[Answer] = []

    def again(self) -> Answers:
        """Returns the answers for another forward, from the first one on."""
        return Answers(self.given)

    def ask(self, run: Callable[[], Any]) -> Any:
        """Returns the value that ``run`` reads, changed on request; the given one where it can read none."""
        place = len(self.noted)
        try:
            found = run()
        except (RuntimeError, TypeError):  # errors of fake tensors
            if place >= len(self.given):
                raise
            found = self.given[place].value
            found = found.copy() if isinstance(found, np.ndarray) else found
        line = source_line(exact=has_truths(found))
        kept = found.copy() if isinstance(found, np.ndarray) else found
        self.noted.append(Answer(kept, line))
        if self.change is not None and self.change.line in ("", line):
            return self.change.other(place, kept)
        return found


def reads_values(func: Any) -> bool:
    """Returns whether an op makes Python numbers of the values of tensors."""
    schema = getattr(func, "_schema", None)
    if schema is None or torch.Tag.data_dependent_output not in func.tags:
        return False
    return not any(isinstance(part.type, torch.TensorType) for part in schema.returns)


def changes(answers: Sequence[Answer], line: str = "") -> Iterator[Change]:
    """Yields changed answers for all numbers at once, or for the numbers of one line.

    Larger ones, zeros, NaN; and for each two of them one order and the other.
    """
    numbers = [n for n, answer in enumerate(answers) if not is_truth(answer.value)]
    if not numbers:
        return
    for by in (lambda x: x * 1.618 + 1.577, lambda x: 0.0 if x else 1.0, lambda x: float("nan")):
        yield Change(lambda place, value, by=by: other(value, by), line)  # type: ignore[misc]
    for half in halves(max(1, max(numbers).bit_length())):

        def far(place: int, value: Any, half: Callable[[int], bool] = half) -> Any:
            return other(value, lambda x: 1e6 if half(place) else -1e6)

        yield Change(far, line)


def halves(bits: int) -> Iterator[Callable[[int], bool]]:
    """Yields sets of places: for each two places one that holds the first alone, and one that holds the second."""
    for bit in range(bits):
        for odd in (0, 1):
            yield lambda place, bit=bit, odd=odd: place >> bit & 1 == odd  # type: ignore[misc]


def finer(line: str) -> Iterator[Change]:
    """Yields answers close to those of a line, where distant ones fail one of the model's own checks."""
    for factor in NEAR:
        yield Change(lambda place, value, factor=factor: other(value, lambda x: x * factor), line)  # type: ignore[misc]


def flips(answers: Sequence[Answer], line: str) -> Iterator[Change]:
    """Yields the opposite of the truth values of a line: of all, and of a part."""
    yield Change(lambda place, value: flipped(value), line)
    places = [n for n, answer in enumerate(answers) if answer.line == line and has_truths(answer.value)]
    for half in halves(max(places).bit_length()) if len(places) > 1 else ():

        def part(place: int, value: Any, half: Callable[[int], bool] = half) -> Any:
            return flipped(value) if half(place) else value

        yield Change(part, line)


def of_truth(leaf: Any) -> bool:
    """Returns whether a number or an array is one of truth values."""
    return isinstance(leaf, bool) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind == "b")


def leaves(value: Any) -> list[Any]:
    """Returns the items of nested lists."""
    return [leaf for v in value for leaf in leaves(v)] if isinstance(value, list) else [value]


def is_truth(value: Any) -> bool:
    """Returns whether a value is truth values alone."""
    return all(map(of_truth, leaves(value)))


def truths_in(value: Any) -> set[bool]:
    """Returns the truth values in a value."""
    return {truth for leaf in leaves(value) if of_truth(leaf) for truth in np.ravel(leaf).tolist()}


def has_truths(value: Any) -> bool:
    """Returns whether a value has truth values, or nothing else."""
    return is_truth(value) or any(map(of_truth, leaves(value)))


def flipped(value: Any) -> Any:
    """Returns a value with its truth values negated."""
    if isinstance(value, list):
        return [flipped(v) for v in value]
    if isinstance(value, np.ndarray):
        return ~value if of_truth(value) else value
    return not value if of_truth(value) else value


def other(value: Any, by: Callable[[float], float]) -> Any:
    """Returns another number, text, array or list; truth values as they are."""
    if isinstance(value, list):
        return [other(v, by) for v in value]
    if isinstance(value, str):
        return f"{value}{by(1.0)}"
    if isinstance(value, np.ndarray):
        return others(value, by)
    if isinstance(value, complex):
        return complex(by(value.real), by(value.imag))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    found = by(value)
    if isinstance(value, float):
        return found
    return value + 1 if found != found else int(found) + (int(found) == value)


def others(value: np.ndarray[Any, Any], by: Callable[[float], float]) -> np.ndarray[Any, Any]:
    """Returns an array of other numbers, of the same shape and type."""
    if value.dtype.kind not in "iufc":
        return value
    found: Any = np.array([other(x, by) for x in value.reshape(-1).tolist()], dtype=object)
    if value.dtype.kind in "iu":
        limits = np.iinfo(value.dtype)
        found = found.clip(limits.min, limits.max)
    return np.asarray(found.astype(value.dtype).reshape(value.shape))


OWN = frozenset(vars(nn.Module()))
"""Attributes of every module: parameters, buffers, modules, hooks."""


class Held(Enum):
    """The kind of an attribute's former value that is not plain."""

    NOTHING = "nothing"
    TENSOR = "tensor"
    OTHER = "other"


@dataclass(frozen=True)
class Stored:
    """A tensor that the forward leaves on a module."""

    module: str  # path of the module
    name: str  # the attribute; a tensor, or a dict or list with tensors
    before: Any  # its value before: None, a plain value, nothing, the keys of a dict, the length of a list


def snapshot(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Returns the state of the attributes of a model's modules: (path, name) → plain value, keys, length or kind."""
    return {
        (path, name): kind_of(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in OWN
    }


def kind_of(value: Any) -> Any:
    """Returns a plain value itself, the keys of a dict, the length of a list, else the kind of value."""
    if isinstance(value, Tensor):
        return Held.TENSOR
    if isinstance(value, dict):
        return frozenset(value)
    if isinstance(value, list):
        return len(value)
    return value if value is None or isinstance(value, bool | int | float | str) else Held.OTHER


def stored_by(model: nn.Module, before: dict[tuple[str, str], Any]) -> tuple[Stored, ...]:
    """Returns the attributes that hold tensors after a forward but not before."""
    found = []
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            was = before.get((path, name), Held.NOTHING)
            if name in OWN or (isinstance(was, Held) and was is not Held.NOTHING) or not holds_tensors(value):
                continue
            if kind_of(value) is Held.TENSOR or kind_of(value) != was:
                found.append(Stored(path, name, was))
    return tuple(found)


def holds_tensors(value: Any) -> bool:
    """Returns whether a value is a tensor, or a dict, list or tuple with one in it."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(holds_tensors(v) for v in value)
    return isinstance(value, Tensor)


def restore(model: nn.Module, stored: Iterable[Stored]) -> None:
    """Removes the tensors that forwards have stored on a copy, in place, and renews those it keeps for evaluation."""
    modules = dict(model.named_modules())
    for kept in stored:
        module = modules.get(kept.module)
        value = vars(module).get(kept.name) if module is not None else None
        if module is None or not holds_tensors(value):
            continue
        if isinstance(value, dict) and isinstance(kept.before, frozenset):
            for key in [key for key in value if key not in kept.before]:
                del value[key]
        elif isinstance(value, list) and isinstance(kept.before, int):
            del value[kept.before :]
        elif kept.before is Held.NOTHING:
            delattr(module, kept.name)
        else:
            setattr(module, kept.name, kept.before)
    kept_here = (
        name not in OWN and holds_tensors(value) for m in modules.values() for name, value in vars(m).items()
    )
    if not model.training and any(kept_here):
        modes = [(module, module.training) for module in modules.values()]
        model.train()
        model.eval()
        for module, training in modes:
            module.training = training


LIBRARIES = ("torch.", "torchvision.ops.")
"""Packages whose modules ask for the mode to drop or to normalise alone."""

HANDED_ON = ("LOAD_", "KW_NAMES", "PRECALL", "CALL", "PUSH_NULL")
"""Instructions behind ``self.training`` in ``dropout(x, self.p, self.training)``, which is no branch."""


def branches_by_mode(model: nn.Module) -> bool:
    """Returns whether any module's own code branches on ``training``."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    return any(
        branches(function.__code__)
        for kind in kinds
        if not f"{kind.__module__}.".startswith(LIBRARIES)
        for function in vars(kind).values()
        if isinstance(function, FunctionType)
    )


def branches(code: CodeType) -> bool:
    """Returns whether a function, or an inner one, does more with an attribute ``training`` than hand it on."""
    if "training" in code.co_names:
        steps = pairwise(dis.get_instructions(code))
        reads = (after for step, after in steps if (step.opname, step.argval) == ("LOAD_ATTR", "training"))
        if not all(after.opname.startswith(HANDED_ON) for after in reads):
            return True
    return any(branches(constant) for constant in code.co_consts if isinstance(constant, CodeType))


def take_training_branches(model: nn.Module) -> None:
    """Makes a model in evaluation take the branches of training, in place; norms and dropouts stay as they are."""
    for module in model.modules():
        if not f"{type(module).__module__}.".startswith(LIBRARIES):
            module.training = True


class ConstantError(Exception):
    """A forward writes a tensor without values into a constant, or writes into a constant that is not its own."""


class Constants:
    """The constants of one forward."""

    def __init__(self) -> None:
        self._made: list[Tensor] = []
        self._memories: set[int | None] = set()

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
        """Returns the outcome of an op on constants alone, in a tuple; None for all others.

        Raises:
            ConstantError: the op writes into a constant whose values would be lost.
        """
        if not kwargs and not (args and (isinstance(args[0], list | tuple) or is_constant(args[0]))):
            return None
        # a function that counts as one op; a literal, whose value fake tensors know themselves
        if not isinstance(func, torch._ops.OpOverload) or func is torch.ops.aten.lift_fresh.default:
            return None
        read = tensors_of([args, kwargs])
        alone = all(map(is_constant, read))
        changed = written(func, args, kwargs) if func._schema.is_mutable else []
        if any(not (alone and memory_of(x) in self._memories) for x in changed if is_constant(x)):
            raise ConstantError(str(func))
        if not read or not alone or torch.Tag.nondeterministic_seeded in func.tags:
            return None
        with _disable_current_modes():
            out = func(*args, **kwargs)
        known = self._memories.union(memory_of(x) for x in read)
        for made in filter(is_constant, tensors_of(out)):
            if memory_of(made) not in known:
                self._made.append(made)  # its memory is not given to another while the forward runs
                self._memories.add(memory_of(made))
        return (out,)


def is_constant(value: Any) -> bool:
    """Returns whether a value is an ordinary tensor with values."""
    return type(value) in (Tensor, nn.Parameter) and not value.is_meta and value.layout is torch.strided


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Returns the tensors that an op writes into."""
    given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    into = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    return tensors_of([value for name, value in given.items() if name in into])
