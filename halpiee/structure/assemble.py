"""Turns the atoms of one record into the public structure: units, groups, slots, layers and timed ops.

Units with the same footprint (the same layer sides and parameter dimensions, equally often) form a group. Everything
is counted on arrays, because a network has a hundred thousand channels. The timed ops stand in execution order, each
with the tail of cheap ops that a runtime may fuse behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halpiee.structure.groups import ChannelGroup, GroupRef, Layer, Slot, Structure, TimedOp
from halpiee.structure.labels import Atoms, no_atoms
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import Event
from halpiee.structure.rules.elementwise import ACTIVATIONS
from latency.op import CONTRACTIONS, Op


def collapsed(recorder: Recorder) -> frozenset[str]:
    """Returns the grouped layers and norms whose groups all belong to one unit."""
    reasons = recorder.units.reasons()
    roots = {name: np.unique(recorder.units.find(atoms)) for name, atoms in recorder.grouped.items()}
    return frozenset(
        name for name, found in roots.items() if found.size == 1 and int(found[0]) not in reasons
    )


def assemble(recorder: Recorder) -> Structure:
    """Builds the structure from the record of a forward.

    Units get consecutive numbers, group by group; groups are ordered by the first layer that produces (else
    reads) them, so names and numbers are the same in every process.
    """
    units = recorder.units
    for label, dims, where in recorder.batched:
        label = units.find(label)
        for dim in range(dims):
            if not np.array_equal(label, np.broadcast_to(label.take([0], axis=dim), label.shape)):
                units.freeze(label, where)
    membership = Membership(recorder)
    inputs = {int(units.find(np.array([atom]))[0]): name for name, atom in recorder.inputs}
    groups: list[ChannelGroup] = []
    numbers = np.full(len(units), -1, dtype=np.int64)
    group_of = np.full(len(units), -1, dtype=np.int64)
    roots = no_atoms()
    taken: Counter[str] = Counter()
    for alike in membership.alike():
        base = inputs.get(int(alike.roots[0])) or recorder.layers[alike.layer].name
        taken[base] += 1
        numbers[alike.roots] = roots.size + np.arange(alike.roots.size)
        group_of[alike.roots] = len(groups)
        groups.append(group(alike, base if taken[base] == 1 else f"{base}/{taken[base]}", start=roots.size))
        roots = np.concatenate([roots, alike.roots])

    def numbered(atoms: Atoms) -> Atoms:
        """Unit number of each atom; −1 where it belongs to no group."""
        return numbers[units.find(atoms)]

    def refs(atoms: Atoms) -> tuple[GroupRef, ...]:
        """Groups of a side in order of appearance, and channels per unit."""
        here = units.find(atoms)
        found, places = np.unique(group_of[here], return_index=True)
        order = np.argsort(places, kind="stable")
        return tuple(
            (groups[int(found[i])].name, int((here == here[places[i]]).sum())) for i in order if found[i] >= 0
        )

    events = recorder.events[: recorder.evaluated]
    unpriced = tuple((event.module, event.name.strip("_")) for event in events if event.unpriced)
    sources = {groups[group_of[r]].name: s for r, s in units.sources().items() if group_of[r] >= 0}
    return Structure(
        layers=tuple(Layer(c.name, c.kind, refs(c.ins), refs(c.outs)) for c in recorder.layers),
        groups=tuple(groups),
        ops=timed_ops(recorder, refs),
        slots=tuple(
            Slot(name, name.rpartition(".")[0], kind, side, dim, numbered(roots))
            for name, dim, roots in membership.slots
            for side, kind in [recorder.roles.get((name, dim), ("norm", "parameter"))]
        ),
        details={
            "attributes": tuple(
                replace(a, units=numbered(a.units))
                for a in {(a.module, a.name, a.at): a for a in recorder.attributes}.values()
            ),
            "norms": tuple(
                replace(n, units=numbered(n.units))
                for n in {(n.module, n.number): n for n in recorder.norms}.values()
            ),
            "sources": sources,
            "stored": recorder.stored,
            "unpriced": unpriced,
            "untimed": dict(Counter(name for _, name in unpriced)),
            "unread": unread(recorder),
            "training_alone": training_alone(recorder),
            "roots": roots,
            "real": False,
            "positions": recorder.positions,
            "positions_of": dict(recorder.output_positions),
            "passing": {name: (refs(atoms), atoms.size) for name, atoms in recorder.passing.items()},
            "batch": recorder.batch,
            "learned": frozenset(recorder.learned),
            "shapes": {name: tuple(a.size for a in dims) for name, dims in recorder.parameters.items()},
        },
    )


def unread(recorder: Recorder) -> tuple[str, ...]:
    """Returns the parameters that the forward does not read, for example of a head used in training only."""
    read = {value for event in recorder.events for value in event.reads} | set(recorder.outputs)
    return tuple(n for value, n in recorder.given.items() if n in recorder.learned and value not in read)


def training_alone(recorder: Recorder) -> tuple[str, ...]:
    """Returns the modules that run in training and not in an evaluation, the outermost ones, in order."""

    def paths(name: str) -> list[str]:
        """A module's path behind those of the modules that hold it, the outermost first."""
        return list(accumulate(name.split("."), "{}.{}".format))

    evaluated = {path for event in recorder.events[: recorder.evaluated] for path in paths(event.module)}
    trained = dict.fromkeys(event.module for event in recorder.events[recorder.evaluated :])
    outer = (next((path for path in paths(name) if path not in evaluated), "") for name in trained)
    return tuple(dict.fromkeys(filter(None, outer)))


def group(alike: Alike, name: str, start: int) -> ChannelGroup:
    """Builds the group of one footprint."""
    reason, untrainable = alike.reason, None
    if reason is None and alike.roots.size == 1:
        reason = "its channels hang together: a single unit"
    if reason is not None:
        untrainable = "not prunable"
    elif alike.normed:
        untrainable = "a norm over these channels: its statistics would still see the removed ones"
    return ChannelGroup(
        name=name,
        size=int(alike.roots.size),
        start=start,
        prunable=reason is None,
        reason=reason,
        trainable=untrainable is None,
        untrainable_reason=untrainable,
        members=alike.members,
    )


def rectangular(recorder: Recorder) -> None:
    """Ties channels that a reshape has spread over several dimensions, so that those left fill a rectangle.

    Position j of the last varying dimension is tied across the others; in a reshape of ``recorder.by_rows`` all of a
    row is tied instead, so that whole rows are removed. With ``all_rows`` also where a row is one unit already: else
    the place of its channels would depend on how many rows stay.
    """
    units = recorder.units
    for spread in recorder.spreads:
        label = units.find(spread.label)
        varied = [d for d, size in enumerate(label.shape) if size > 1]
        if not spread.all_rows:
            firsts = {d: np.broadcast_to(label.take([0], axis=d), label.shape) for d in varied}
            varied = [d for d in varied if not np.array_equal(label, firsts[d])]
        if len(varied) < 2:
            continue
        if (label == 0).any():
            units.freeze(label, f"{spread.where} spreads constant channels")
        rows = np.moveaxis(label, varied[-1], 0).reshape(label.shape[varied[-1]], -1)
        if spread.place in recorder.by_rows:
            rows = rows.T
        units.unite(rows[:, 1:], rows[:, :1])


Hashes = NDArray[np.uint64]

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Alike:
    """Units of one footprint."""

    roots: Atoms  # their roots, in order of appearance
    members: tuple[tuple[str, str], ...]  # ``(layer name, "in" | "out")`` of every layer side they are on
    layer: int  # number of the first layer call that produces them, else reads them
    reason: str | None  # why they stay, or None
    normed: bool  # whether a norm over channels sees them


class Membership:
    """Counts how often each unit is on each layer side and in each parameter dimension.

    Attributes:
        slots: name, dimension and roots of every parameter dimension that some layer's unit is in.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        n = len(recorder.units)
        self.on_layer = np.zeros(n, dtype=np.bool_)
        self.first = np.full(n, NEVER, dtype=np.int64)
        self.produced = np.full(n, NEVER, dtype=np.int64)
        self.hashes = np.zeros((2, n), dtype=np.uint64)
        self.sides: list[tuple[tuple[str, str], Atoms]] = []
        key = 0
        for number, layer in enumerate(recorder.layers):
            for side, atoms in (("in", layer.ins), ("out", layer.outs)):
                key += 1
                roots, places, counts = self._counted(atoms)
                order = (number << 32) + places
                np.minimum.at(self.first, roots, order)
                if side == "out":
                    np.minimum.at(self.produced, roots, order)
                self.on_layer[roots] = True
                self._hash(roots, counts, key)
                self.sides.append(((layer.name, side), roots))
        self.slots: list[tuple[str, int, Atoms]] = []
        for name, dims in recorder.parameters.items():
            for dim, atoms in enumerate(dims):
                key += 1
                roots, _, counts = self._counted(atoms)
                here = self.on_layer[roots]
                if here.any():
                    self._hash(roots[here], counts[here], key)
                    self.slots.append((name, dim, recorder.units.find(atoms)))
        self.normed = np.zeros(n, dtype=np.bool_)
        for norm in recorder.norms:
            self.normed[recorder.units.find(norm.units)] = True

    def _counted(self, atoms: Atoms) -> tuple[Atoms, Atoms, Atoms]:
        """Returns the units on one side, where each comes first, and how often."""
        roots, places, counts = np.unique(
            self.recorder.units.find(atoms), return_index=True, return_counts=True
        )
        known = roots != 0
        return roots[known], places[known], counts[known]

    def _hash(self, roots: Atoms, counts: Atoms, key: int) -> None:
        """Adds one side, and how often each unit is on it, to the units' footprints."""
        for row in range(2):
            self.hashes[row, roots] += mixed(counts.astype(np.uint64) + np.uint64((2 * key + row) << 32))

    def alike(self) -> list[Alike]:
        """Returns the units footprint by footprint, in order of appearance.

        Two units are alike when they are equally often on the same layer sides and in the same parameter
        dimensions, and stay for the same reason. Footprints are compared by 128 bits of hash.
        """
        units = self.recorder.units
        roots = np.flatnonzero(self.on_layer)
        made = self.produced[roots] != NEVER
        order = np.where(made, self.produced[roots], self.first[roots])
        roots = roots[np.argsort(order, kind="stable")]
        reasons = units.reasons()
        texts = {reason: number for number, reason in enumerate(dict.fromkeys(reasons.values()), start=1)}
        by_root = np.zeros(len(units), dtype=np.uint64)
        by_root[np.fromiter(reasons, np.int64, len(reasons))] = np.fromiter(
            (texts[r] for r in reasons.values()), np.uint64, len(reasons)
        )
        table = np.stack([*self.hashes[:, roots], by_root[roots]], axis=1)
        _, firsts, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
        inverse = inverse.reshape(-1)
        members: dict[int, list[tuple[str, str]]] = {}
        for side, on in self.sides:
            for root in np.intersect1d(on, roots[firsts]).tolist():
                members.setdefault(root, []).append(side)
        found = []
        by_class = np.split(roots[np.argsort(inverse, kind="stable")], np.cumsum(np.bincount(inverse))[:-1])
        for number in np.argsort(firsts, kind="stable").tolist():
            mine = by_class[number]
            first = int(mine[0])
            produced = self.produced[first] != NEVER
            place = self.produced[first] if produced else self.first[first]
            found.append(
                Alike(
                    roots=mine,
                    members=tuple(sorted(set(members[first]))),
                    layer=int(place) >> 32,
                    reason=reasons.get(first) or (None if produced else "produced by no layer"),
                    normed=bool(self.normed[first]),
                )
            )
        return found


def mixed(values: Hashes) -> Hashes:
    """Returns values spread over 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def timed_ops(recorder: Recorder, refs: Callable[[Atoms], tuple[GroupRef, ...]]) -> tuple[TimedOp, ...]:
    """Builds the timed ops of a record.

    A batch norm, an activation or an addition joins the tail of the conv or linear layer before it when
    nothing else reads the tensor between them; an addition joins the first of its operands that allows it, as in ONNX
    Runtime. An op that joins no tail is one of its own.
    """
    events = recorder.events[: recorder.evaluated]
    readers: dict[int, list[int]] = {value: [-1] for value in recorder.outputs}
    for number, event in enumerate(events):
        for value in event.reads:
            readers.setdefault(value, []).append(number)
    tails: dict[int, list[str]] = {}  # number of an op of its own → its tail
    ends: dict[int, int] = {}  # value → the layer whose tail ends in it
    for number, event in enumerate(events):
        if event.timing is None:
            continue
        kind = event.timing.kind
        root = None if kind in CONTRACTIONS else follows(kind, event, readers, ends, tails)
        if root is None:
            tails[number] = []
            if kind in CONTRACTIONS:
                ends[event.writes[0]] = number
            continue
        tails[root].append(kind)
        for value in event.reads:
            if ends.get(value) == root:
                del ends[value]
        ends[event.writes[0]] = root
    return tuple(timed_op(events[number], tuple(tail), refs) for number, tail in tails.items())


def follows(
    kind: str, event: Event, readers: dict[int, list[int]], ends: dict[int, int], tails: dict[int, list[str]]
) -> int | None:
    """Returns the layer whose tail an op of a kind joins, or None."""
    candidates = [ends[v] for v in event.reads if v in ends and len(readers[v]) == 1]
    if kind == "batch_norm":
        candidates = [c for c in candidates if not tails[c]]
    elif kind == "add":
        candidates = [c for c in candidates if "add" not in tails[c]]
    elif kind in ACTIVATIONS:
        candidates = [c for c in candidates if not tails[c] or tails[c][-1] not in ACTIVATIONS]
    else:
        return None
    return candidates[0] if candidates else None


def timed_op(event: Event, tail: tuple[str, ...], refs: Callable[[Atoms], tuple[GroupRef, ...]]) -> TimedOp:
    """Builds one timed op."""
    timing = event.timing
    assert timing is not None
    fields: dict[str, Any] = dict(timing.fields)
    if "positions" in fields:  # a linear layer on vectors, or on sequences: one row per token
        rows = fields.pop("positions")
        batch = event.batch or rows
        fields |= {
            "batch": batch if rows % batch == 0 else rows,
            "h": rows // batch if rows % batch == 0 else 1,
        }
    op = Op(kind=timing.kind, c_in=timing.ins.size, c_out=timing.outs.size, tail=tail, **fields)
    return TimedOp(op, timing.layer or event.module, refs(timing.ins), refs(timing.outs))
