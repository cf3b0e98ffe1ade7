"""What one traced forward leaves behind: labels of every tensor, layer calls, the ops in order, and decisions.

A forward on real tensors decides by values: which are above a limit, in which order, how many. A smaller network has
other values and would decide otherwise, which says nothing of its channels. So it repeats the decisions of the whole
one, finds as many objects in the same places, and runs the same ops on the same sizes but for its channels.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halpiee.structure.labels import Atoms, Label, Tag, Units, along, no_atoms, varying
from halpiee.structure.records import (
    Attribute,
    Average,
    Call,
    Event,
    LayerCall,
    Move,
    Norm,
    Role,
    Side,
    Spread,
    memory_of,
)
from halpiee.structure.state import Answers, Stored


@dataclass(frozen=True)
class Decision:
    """One op that makes truth values, whole numbers or Python numbers of other values."""

    name: str  # name of the op
    shapes: tuple[torch.Size, ...]  # shapes of its inputs
    outcome: list[Any]  # its outputs


class Decisions:
    """The decisions of a forward, in order; those of an earlier one are repeated."""

    def __init__(self, earlier: Decisions | None = None) -> None:
        self._earlier = None if earlier is None else iter(earlier.taken)
        self.taken: list[Decision] = []

    def outcome(self, name: str, reads: list[Tensor], out: Any) -> Any:
        """Returns ``out``, or, of an op that decides on tensors of the same shapes, what it returned earlier."""
        parts = list(out) if isinstance(out, list | tuple) else [out]
        if not any(t.is_floating_point() for t in reads) or not any(map(decides, parts)):
            return out
        shapes = tuple(t.shape for t in reads)
        if self._earlier is None:
            self.taken.append(Decision(name, shapes, [copied(p) if decides(p) else None for p in parts]))
            return out
        then = next(self._earlier, None)
        if then is None or then.name != name:
            self._earlier = iter(())  # another path, whose decisions are not known
            return out
        if then.shapes != shapes or any(part is read for part in parts for read in reads):
            return out
        parts = [copied(a) if decides(b) else b for a, b in zip(then.outcome, parts, strict=True)]
        return type(out)(parts) if isinstance(out, list | tuple) else parts[0]


def decides(part: Any) -> bool:
    """Returns whether an output of an op is a decision."""
    if isinstance(part, Tensor):
        return not part.is_floating_point() and not part.is_complex()
    return isinstance(part, bool | int | float)


def copied(part: Any) -> Any:
    """Returns a copy of a tensor, which the forward may write into."""
    return part.clone() if isinstance(part, Tensor) else part


@dataclass(frozen=True)
class Known:
    """A tensor with its tag and value number."""

    tensor: Callable[[], Tensor | None]  # returns the tensor, or None where it was freed
    tag: Tag
    value: int  # its value number


class Recorder:
    """Labels and records of one forward over the ``modules`` of the traced copy; the rules write into it.

    In ``positions``, names of grouped layers and norms, a unit is a position across groups, not one group. ``by_rows``
    are numbers, among the moves, of reshapes that spread channels and keep whole rows of them.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        positions: frozenset[str],
        units: Units | None = None,
        by_rows: frozenset[int] = frozenset(),
    ) -> None:
        self.modules, self.positions = modules, positions
        self.units = Units() if units is None else units
        self.by_rows = by_rows
        self.parameters: dict[str, tuple[Atoms, ...]] = {}
        self.roles: dict[tuple[str, int], Role] = {}
        self.layers: list[LayerCall] = []
        self.idle: list[tuple[Atoms, str]] = []
        self.norms: list[Norm] = []
        self.other_norms: set[tuple[str, int]] = set()  # those of a module that are none over channels
        self.norm_call: tuple[str, int, Tensor] | None = None  # module, number and input of the running one
        self.averages: dict[int, Average] = {}  # by value number
        self.attributes: list[Attribute] = []
        self._counted: dict[tuple[object, ...], Atoms] = {}  # the first atoms that an attribute counts
        self.events: list[Event] = []
        self.spreads: list[Spread] = []
        self.moves: list[Move] = []
        self.batched: list[tuple[Label, int, str]] = []
        self.unread: list[tuple[list[int], Label, str]] = []
        self.output_positions: dict[str, int] = {}
        self.passing: dict[str, Atoms] = {}  # channels or heads to each of which a layer does the same
        self.learned: set[str] = set()
        self.computed: dict[str, str] = {}
        self.grouped: dict[str, Atoms] = {}
        self.picked: dict[tuple[int, int], Label] = {}
        self.summed, self.alike = set[int](), set[int]()  # value numbers: sums over channels, repeated rows
        self.inputs: list[tuple[str, int]] = []
        self.outputs: list[int] = []
        self.parameter_values: set[int] = set()
        self.batch, self.training = 1, False
        self.evaluated = self.evaluated_moves = self.ran = self._n_values = 0
        self.centred: set[str] = set()  # weights whose averages over their inputs are taken, by name
        self.scalars: list[tuple[str, tuple[Any, ...], Atoms]] = []
        self.made: list[tuple[Any, ...]] = []
        self.stored: tuple[Stored, ...] = ()
        self.output_shapes: list[tuple[int, ...]] = []
        self.failed: list[Atoms] = []
        self.failed_at = self.last_module = ""
        self.given: dict[int, str] = {}
        self.originals: dict[int, str] = {}
        self.foreign: dict[int, str] = {}
        self.idle_ops: frozenset[int] = frozenset()
        self.read_by_python: set[int] = set()
        self.answers: Answers | None = None
        self.real = self.constants = False
        self.decisions: Decisions | None = None
        self._known: dict[int, Known] = {}
        self._sharing: dict[int, set[int]] = {}
        self._names: dict[int, str] = {}
        self._starts: list[tuple[int, str, int]] = []
        self._calls: dict[str, int] = {}

    def evaluation_ended(self) -> None:
        """Notes that the next ops run in training."""
        self.evaluated = len(self.events)
        self.evaluated_moves = len(self.moves)
        self._calls.clear()

    def add_parameter(self, name: str, tensor: Tensor, given: Mapping[int, Atoms] | None = None) -> None:
        """Assigns an atom to every position of every dimension of a parameter: a fresh or the given one."""
        atoms = []
        axes = []
        for dim, size in enumerate(tensor.shape):
            fresh = self.units.fresh(size)
            if given is not None and dim in given:
                fresh = np.where(given[dim] > 0, given[dim], fresh)
            if size:
                self._starts.append((int(fresh[0]), name, dim))
            atoms.append(fresh)
            if size > 1:
                shape = [1] * tensor.dim()
                shape[dim] = size
                axes.append(fresh.reshape(shape))
        self.parameters[name] = tuple(atoms)
        self._names[id(tensor)] = name
        if isinstance(tensor, nn.Parameter):
            self.learned.add(name)
        self.set(tensor, Tag(tuple(axes), parameter=True, zero=True, source=name))
        self.given[self._n_values - 1] = name

    def tag(self, tensor: Tensor) -> Tag:
        """Returns the tag of a tensor; an empty one of a tensor that was not recorded."""
        known = self._known.get(id(tensor))
        return known.tag if known is not None and known.tensor() is tensor else Tag()

    def label(self, tensor: Tensor) -> Label | None:
        """Returns the label of an activation, or None where its elements belong to nothing."""
        axes = self.tag(tensor).axes
        return self.units.find(axes[0]) if axes else None

    def set(self, tensor: Tensor, tag: Tag) -> None:
        """Sets the tag of a tensor, which becomes a new value."""
        if tag.parameter:
            self.parameter_values.add(self._n_values)
        # a forward frees real tensors as it goes
        reference = weakref.ref(tensor) if self.real else lambda: tensor
        self._known[id(tensor)] = Known(reference, tag, self._n_values)
        memory = memory_of(tensor)
        if memory is not None:
            self._sharing.setdefault(memory, set()).add(id(tensor))
        self._n_values += 1

    def written(self, tensor: Tensor) -> None:
        """Notes that something else than 0 was written into a tensor, and so into all views of its memory."""
        memory = memory_of(tensor)
        for identity in self._sharing.get(memory, ()) if memory is not None else ():
            known = self._known[identity]
            other = known.tensor()
            if other is not None and memory_of(other) == memory:
                self._known[identity] = replace(known, tag=replace(known.tag, zero=False))

    def result(self, call: Call, tag: Tag) -> None:
        """Sets the tag of a call's first output; the others (statistics, say) belong to nothing."""
        for index, out in enumerate(call.outputs):
            self.set(out, Tag() if index else tag)

    def value(self, tensor: Tensor) -> int:
        """Returns the value number of a tensor."""
        known = self._known.get(id(tensor))
        if known is None or known.tensor() is not tensor:
            self.set(tensor, Tag())
        return self._known[id(tensor)].value

    def parameter_of(self, tensor: Tensor) -> str | None:
        """Returns the name of the learned parameter whose memory a tensor shares, or None."""
        memory = memory_of(tensor)
        names = (self._names.get(identity) for identity in self._sharing.get(memory or 0, ()))
        return next((name for name in names if name in self.learned), None)

    def name(self, tensor: Tensor) -> str | None:
        """Returns the qualified name of a parameter or buffer, or None."""
        return self._names.get(id(tensor))

    def read(self, tensor: Tensor, dim: int, call: Call) -> Atoms:
        """Returns the atoms along a dimension of an activation; 0 where there are none."""
        dim %= tensor.dim()
        label = self.label(tensor)
        if label is None:
            return no_atoms(tensor.shape[dim])
        return along(self.units, label, dim, tensor.shape[dim], f"partly constant channels at {call.where}")

    def peek(self, tensor: Tensor) -> tuple[int, Atoms]:
        """Returns the channel dimension of an activation and the atoms along it, tying nothing."""
        label = self.label(tensor)
        if label is None or label.size == 1:
            dim = min(1, tensor.dim() - 1)
            atom = 0 if label is None else int(label.reshape(-1)[0])
            return dim, np.full(tensor.shape[dim] if atom else 0, atom, dtype=np.int64)
        dims = varying(label)
        return dims[0], label.reshape(-1) if len(dims) == 1 else no_atoms()

    def axis(self, tensor: Tensor, dim: int) -> Atoms:
        """Returns the atoms along a dimension of a tensor made of parameters; 0 where there are none."""
        dim %= tensor.dim()
        for axis in self.tag(tensor).axes:
            if varying(axis) == (dim,):
                return axis.reshape(-1)
        return no_atoms(tensor.shape[dim])

    def freeze(self, tensor: Tensor, reason: str) -> None:
        """Freezes every unit that a tensor's elements belong to."""
        for axis in self.tag(tensor).axes:
            self.units.freeze(axis, reason)

    def freeze_call(self, call: Call, reason: str | None = None) -> None:
        """Freezes the inputs of a call; its outputs belong to nothing, but keep a parameter's name."""
        tags = [self.tag(tensor) for tensor in call.tensors]
        for tensor in call.tensors:
            self.freeze(tensor, reason or call.where)
        source = next((tag.source for tag in tags if tag.source), "")
        if source not in self.learned or any(tag.axes and not tag.parameter for tag in tags):
            source = ""
        elif source not in self.computed:
            self.computed[source] = call.where
        for tensor in call.outputs:
            self.set(tensor, Tag(source=source))

    def computed_by(self, weight: Tensor) -> str | None:
        """Returns the op without a rule that computes a weight from a parameter, or None."""
        tag = self.tag(weight)
        return None if tag.parameter else self.computed.get(tag.source)

    def serve(self, atoms: Atoms, side: Side, kind: str) -> None:
        """Records the role of the parameter dimensions that the given atoms index."""
        for first in np.unique(atoms[atoms != 0])[:1].tolist():
            _, name, dim = self._start_of(first)
            self.roles.setdefault((name, dim), (side, kind))

    def within_kernel(self, atoms: Atoms) -> bool:
        """Returns whether atoms are positions within a kernel, not channels: of no first or second dimension."""
        known = atoms[atoms != 0]
        return bool(known.size) and self._start_of(int(known[0]))[2] > 1

    def owner(self, tensor: Tensor, call: Call) -> str:
        """Returns the path of the module that holds a weight: by its parameter, else the running one."""
        name = self.tag(tensor).source
        if not name:
            return call.module
        path, _, leaf = name.rpartition(".")
        return path if leaf == "weight" else name

    def call_name(self, owner: str) -> str:
        """Returns the layer's name: its path, with ``#2`` … from its second call on."""
        self._calls[owner] = self._calls.get(owner, 0) + 1
        return owner if self._calls[owner] == 1 else f"{owner}#{self._calls[owner]}"

    def _start_of(self, atom: int) -> tuple[int, str, int]:
        """Returns first atom, tensor name and dimension of the parameter dimension that an atom lies in."""
        return self._starts[bisect_right(self._starts, atom, key=itemgetter(0)) - 1]

    def attribute(
        self, module: str, name: str, atoms: Atoms, mul: int = 1, div: int = 1, at: int | None = None
    ) -> None:
        """Records that a module's attribute (or its item ``at``) equals kept atoms · mul / div.

        What one number counts in several tensors goes together.
        """
        what = (module, name, atoms.size, mul, div, at)
        if what in self._counted:
            self.units.unite(self._counted[what], atoms)
        if atoms.any():
            self._counted.setdefault(what, atoms)
            self.attributes.append(Attribute(module, name, atoms, mul, div, at))

    def unfollow(self, module: str, names: Collection[str]) -> bool:
        """Forgets that attributes of a module follow its channels; returns whether any did."""
        left = [a for a in self.attributes if a.module != module or a.name not in names]
        fewer = len(left) < len(self.attributes)
        self.attributes = left
        return fewer
