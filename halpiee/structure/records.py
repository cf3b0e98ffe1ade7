"""Records of one forward: calls, layers, timed ops, events and moves, and questions to a list of them.

**Moves.** An op that moves elements must move those that are left in the same way. Every other op works position by
position, or reads channels in the order in which a weight holds them. So a smaller network is the larger one without
some channels exactly when ``move(cut(x)) = cut(move(x))`` for each of its moves, within a unit, too.

**Needed ops.** A tensor that a forward reads only to log it is no reason to freeze its channels. An op is left out of a
trace where nothing that counts reads its outputs: no output of the network, no op that writes into a tensor that
counts, no op that combines an activation with a parameter (which runs in the cut network too, and has to fit).

**Steps.** Two forwards that run the same ops on the same tensors are one network at two widths. A block that reads
``norm(x)`` in place of ``x`` at another width runs the same ops on the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halpiee.structure.labels import Atoms, Label, narrow, written_out

Side = Literal["out", "in", "norm"]

Role = tuple[Side, str]
"""Side of a layer (``out``, ``in``, ``norm``) and kind of the layer that a parameter dimension serves."""


@dataclass
class Call:
    """One op as the dispatcher saw it."""

    name: str  # of the op, without namespace and overload, for example ``convolution``
    func: Any  # the overload itself
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any  # what it returned
    module: str  # path of the innermost module that was running
    api: str  # name of the torch function that led to it
    reads: tuple[int, ...] = ()  # value numbers of its tensor inputs

    @property
    def where(self) -> str:
        """The op and where it ran, as reasons name it."""
        return f"{self.name} in {self.module}" if self.module else self.name

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Its tensor inputs, in order, those in lists included."""
        return tensors_of([self.args, self.kwargs])

    @cached_property
    def outputs(self) -> list[Tensor]:
        """Its tensor outputs, in order."""
        return tensors_of(self.out)


def tensors_of(value: Any) -> list[Tensor]:
    """Returns the tensors in nested lists, tuples, dicts and objects with fields, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors_of(v)]
    if isinstance(value, list | tuple | set):
        return [t for v in value for t in tensors_of(v)]
    if hasattr(value, "__dataclass_fields__") or hasattr(value, "tensors"):
        return [t for v in vars(value).values() for t in tensors_of(v)]
    return []


def memory_of(tensor: Tensor) -> int | None:
    """Returns an identity of a tensor's memory; ``None`` where it has none of its own."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else None


def with_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns nested dicts, lists and tuples with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {k: with_tensors(v, change) for k, v in value.items()}
    if isinstance(value, list):
        return [with_tensors(v, change) for v in value]
    if isinstance(value, tuple):
        items = [with_tensors(v, change) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def random_like(value: Any, generator: torch.Generator) -> Any:
    """Returns the same nested inputs with floating tensors drawn from a normal distribution."""

    def drawn(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return torch.randn(x.shape, generator=generator).to(dtype=x.dtype, device=x.device)

    return with_tensors(value, drawn)


@dataclass(frozen=True)
class LayerCall:
    """One conv or linear call: its name, kind and the atoms on its two sides."""

    name: str
    kind: str
    ins: Atoms
    outs: Atoms


@dataclass(frozen=True)
class Norm:
    """One norm over channels, whose statistics must leave removed channels out."""

    module: str  # path of the module whose forward computes it
    number: int  # how many norms, averages and the like that forward has called before it
    dim: int  # dimension of the channels in its input
    units: Atoms  # the atom, in a structure the unit, of each channel


@dataclass(frozen=True)
class Average:
    """A statistic of channels that is known to be that of a norm once it normalises some."""

    over: tuple[tuple[Label, str], ...]  # the channels, with the reason that holds them where it is none
    inverse: bool = False  # one over it, or over its root
    weight: bool = False  # of a weight, over the inputs of each row


@dataclass(frozen=True)
class Attribute:
    """A number held by a module that follows its channels: ``kept positions · mul // div``."""

    module: str  # path of the module
    name: str
    units: Atoms  # the atom, in a structure the unit, of each position that is counted
    mul: int = 1
    div: int = 1
    at: int | None = None  # index into the attribute where it is a tuple


@dataclass(frozen=True)
class Timing:
    """The timed op of a call, as its rule describes it."""

    kind: str  # of the timed op
    ins: Atoms  # atoms of its input channels
    outs: Atoms  # atoms of its output channels
    fields: dict[str, Any] = field(default_factory=dict)  # the other fields of the timed op
    layer: str = ""  # name of the layer, where it is one


@dataclass(frozen=True)
class Event:
    """One op in execution order, timed or not."""

    name: str
    module: str
    reads: tuple[int, ...]  # value numbers it reads
    writes: tuple[int, ...]  # value numbers of its outputs
    memories: Mapping[int, int | None]  # the memory of each of these values
    timing: Timing | None
    batch: int = 1  # first size of the network's first input
    unpriced: bool = False  # it takes time of its own that no timed op stands for
    number: int = 0  # how many ops ran before it
    changed: bool = False  # its rule has united or frozen units, or it computes with numbers


@dataclass(frozen=True)
class Spread:
    """A reshape that spreads channels over several dimensions: those left must fill a rectangle."""

    label: Label  # after the reshape
    where: str  # the op and its module
    all_rows: bool  # rows that are one unit each are tied, too
    place: int  # number of the reshape among the moves


Mask = NDArray[np.bool_]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Move:
    """One op that moves elements, as it ran."""

    name: str
    module: str
    at: int  # number of ops before it
    axes: tuple[Label, ...]  # labels of its input
    before: Shape  # shape of its input
    after: Shape  # shape of its first output
    # the op itself, from a tensor of the input's shape to its outputs; None for a reshape, whose shape suffices
    run: Callable[[Tensor], list[Tensor]] | None
    dim: int | None = None  # the dimension that it cuts, where that is all it does, or None

    @property
    def where(self) -> str:
        """The op and where it ran, as reasons name it."""
        return f"{self.name} in {self.module}" if self.module else self.name

    def is_like(self, other: Move) -> bool:
        """Returns whether both are the same step of a forward; strides decide which op does a reshape."""
        same_op = self.run is None is other.run or self.name == other.name
        return same_op and self.module == other.module


def stays_the_same(full: Move, small: Move, alive: Sequence[Mask]) -> bool:
    """Returns whether a move of the smaller network does what the larger one's does to the elements that are left.

    ``alive`` says which elements of each of the larger one's labels are left.
    """
    if full.run is None or small.run is None:
        kept = kept_along(full.after, [written_out(mask, full.before, full.after) for mask in alive])
        return kept is not None and small.after == tuple(k.size for k in kept)
    kept = kept_along(full.before, alive)
    if kept is None or small.before != tuple(k.size for k in kept):
        return False
    dims = range(len(full.before)) if full.dim is None else [full.dim]
    shape = [size if d in dims else 1 for d, size in enumerate(full.before)]
    ids = np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)
    left = ids[np.ix_(*(k if d in dims else np.zeros(1, np.int64) for d, k in enumerate(kept)))]
    stays = np.zeros(ids.size, dtype=np.bool_)
    stays[left.reshape(-1)] = True
    moved = full.run(torch.from_numpy(ids).expand(full.before))
    moved_left = small.run(torch.from_numpy(left).expand(small.before))
    return len(moved) == len(moved_left) and all(
        (kept := kept_along(ids.shape, [stays[ids]])) is not None and np.array_equal(ids[np.ix_(*kept)], left)
        for ids, left in ((narrow(a), narrow(b)) for a, b in zip(moved, moved_left, strict=True))
    )


def kept_along(shape: Sequence[int], masks: Sequence[Mask]) -> list[NDArray[np.int64]] | None:
    """Returns the positions that stay along each dimension, or None where they fill no rectangle."""
    if all(bool(mask.all()) for mask in masks):
        return [np.arange(size) for size in shape]
    grid = np.ones([1] * len(shape), dtype=np.bool_)
    for mask in masks:
        grid = grid & mask
    kept = [
        np.arange(size)
        if grid.shape[dim] == 1
        else np.flatnonzero(grid.any(axis=tuple(d for d in range(grid.ndim) if d != dim)))
        for dim, size in enumerate(shape)
    ]
    inside = [k if n != 1 else np.zeros(1, np.int64) for k, n in zip(kept, grid.shape, strict=True)]
    return kept if bool(grid[np.ix_(*inside)].all()) else None


def needed(events: Sequence[Event], given: Mapping[int, str], outputs: Collection[int]) -> set[int]:
    """Returns the places of the events of a forward that count, given the value numbers that have to be computed.

    ``given`` maps the value numbers of parameters, buffers and inputs to their names.
    """
    made_of_parameters = {value for value, name in given.items() if not name.startswith("input")}
    mixed, made = set(), set[int | None]()  # made: memories that began in this forward
    memories: dict[int, int | None] = {}
    known: set[int | None] = {None}
    for place, event in enumerate(events):
        apart = [value in made_of_parameters for value in event.reads]
        if apart and all(apart):
            made_of_parameters.update(event.writes)
        elif any(apart):
            mixed.add(place)
        known.update(event.memories[value] for value in event.reads)
        made.update({event.memories[value] for value in event.writes} - known)
        known.update(event.memories.values())
        memories |= event.memories
    values, found, shared = set(outputs), set[int](), {memories.get(value) for value in outputs}
    for place in range(len(events) - 1, -1, -1):
        event = events[place]
        memory = event.memories.get(event.reads[0]) if event.name.endswith("_") and event.reads else None
        inplace = event.name.endswith("_") and (memory not in made or memory in shared)
        if place in mixed or inplace or values.intersection(event.writes):
            found.add(place)
            values.update(event.reads)
            shared.update(event.memories[value] for value in event.reads)
    return found


RESHAPES = frozenset({"view", "_unsafe_view", "_reshape_alias", "reshape"})
"""Ops that lay the same elements out in another shape."""

COPIES = frozenset({"clone", "contiguous", "detach", "alias", "_to_copy"})
"""Ops that change nothing: a reshape or a product makes them where strides ask for it, torch where tensors are fake."""


@dataclass(frozen=True)
class Step:
    """One op of a forward, with the sources of its inputs."""

    name: str  # all reshapes have one
    module: str
    # source of each tensor: a parameter's or input's name, or a step's and its output's number; None: from before
    reads: tuple[Any, ...]


def wired(events: Iterable[Event], given: Mapping[int, str]) -> list[Step]:
    """Returns the ops of a forward in order, copies left out; ``given`` is as in ``needed``."""
    sources: dict[int, Any] = dict(given)
    steps: list[Step] = []
    for event in events:
        if event.name in COPIES:
            sources.update(dict.fromkeys(event.writes, sources.get(event.reads[0])))
            continue
        name = "view" if event.name in RESHAPES else event.name
        steps.append(Step(name, event.module, tuple(map(sources.get, event.reads))))
        for index, value in enumerate(event.writes):
            sources[value] = (len(steps) - 1, index)
    return steps


def parting(one: list[Step], other: list[Step]) -> str | None:
    """Returns the module in which two forwards first differ, or None where they are the same."""
    for a, b in zip(one, other, strict=False):
        if a != b:
            return a.module
    if len(one) == len(other):
        return None
    return max(one, other, key=len)[min(len(one), len(other))].module
