"""From atoms to the public structure: units, groups by footprint, slots, layers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from halpiee.structure.groups import ChannelGroup, GroupRef, Layer, Slot, Structure
from halpiee.structure.membership import Alike, Membership
from halpiee.structure.recorder import Recorder
from halpiee.structure.timed import timed_ops
from halpiee.structure.units import Atoms

__all__ = ["Attribute", "Norm", "assemble", "collapsed", "rectangular"]


@dataclass(frozen=True)
class Attribute:
    """A number that a module holds and that follows its channels: ``kept positions · mul // div``.

    Attributes:
        module: path of the module.
        name: the attribute.
        units: unit of each position that is counted.
        mul: factor.
        div: divisor.
        at: index into the attribute where it is a tuple.
    """

    module: str
    name: str
    units: Atoms
    mul: int = 1
    div: int = 1
    at: int | None = None


@dataclass(frozen=True)
class Norm:
    """A norm over channels: its statistics must leave out removed ones.

    Attributes:
        module: path of the module.
        units: unit of each channel.
    """

    module: str
    units: Atoms


def collapsed(recorder: Recorder) -> frozenset[str]:
    """Returns the grouped layers and norms whose groups all belong to one unit."""
    reasons = recorder.units.reasons()
    found = set()
    for name, atoms in recorder.grouped.items():
        roots = np.unique(recorder.units.find(atoms))
        if roots.size == 1 and int(roots[0]) not in reasons:
            found.add(name)
    return frozenset(found)


def assemble(recorder: Recorder) -> Structure:
    """Builds the structure from what one forward left behind.

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
    roots = np.zeros(0, dtype=np.int64)
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

    ops = unpriced(recorder)
    sources = {groups[group_of[r]].name: s for r, s in units.sources().items() if group_of[r] >= 0}
    return Structure(
        layers=tuple(Layer(c.name, c.kind, refs(c.ins), refs(c.outs)) for c in recorder.layers),
        groups=tuple(groups),
        ops=timed_ops(recorder, refs),
        slots=tuple(slot(recorder, name, dim, numbered(roots)) for name, dim, roots in membership.slots),
        details={
            "attributes": tuple(
                Attribute(module, name, numbered(atoms), mul, div, at)
                for module, name, at, (atoms, mul, div) in (
                    (*key, value)
                    for key, value in {
                        (module, name, at): (atoms, mul, div)
                        for module, name, atoms, mul, div, at in recorder.attributes
                    }.items()
                )
            ),
            "norms": tuple(
                Norm(n.module, numbered(n.atoms))
                for n in {(n.module, n.atoms.size): n for n in recorder.norms}.values()
            ),
            "sources": sources,
            "stored": recorder.stored,
            "unpriced": ops,
            "untimed": dict(Counter(name for _, name in ops)),
            "unread": unread(recorder),
            "training_alone": training_alone(recorder),
            "roots": roots,
            "real": False,
            "positions": recorder.positions,
            "positions_of": dict(recorder.output_positions),
            "batch": recorder.batch,
            "learned": frozenset(recorder.learned),
            "shapes": {name: tuple(a.size for a in dims) for name, dims in recorder.parameters.items()},
        },
    )


def unpriced(recorder: Recorder) -> tuple[tuple[str, str], ...]:
    """Returns the ops that take time and that no timed op stands for, as (module path, op), in order."""
    events = recorder.events[: recorder.evaluated]
    return tuple((event.module, event.name.strip("_")) for event in events if event.unpriced)


def unread(recorder: Recorder) -> tuple[str, ...]:
    """Returns the parameters that the forward does not read, for example those of a head for training alone."""
    read = {value for event in recorder.events for value in event.reads} | set(recorder.outputs)
    return tuple(n for value, n in recorder.given.items() if n in recorder.learned and value not in read)


def training_alone(recorder: Recorder) -> tuple[str, ...]:
    """Returns the modules that run in training and not in an evaluation, the outermost ones, in order."""
    evaluated = {event.module for event in recorder.events[: recorder.evaluated]}
    trained = {event.module: None for event in recorder.events[recorder.evaluated :]}
    prefixes = {
        name[:at] for name in evaluated for at in range(len(name) + 1) if name[at : at + 1] in ("", ".")
    }
    found: dict[str, None] = {}
    for name in trained:
        parts = name.split(".")
        outer = next(
            (o for n in range(1, len(parts) + 1) if (o := ".".join(parts[:n])) not in prefixes), None
        )
        if outer:
            found[outer] = None
    return tuple(found)


def slot(recorder: Recorder, name: str, dim: int, numbers: Atoms) -> Slot:
    """Builds the slot of one parameter dimension."""
    side, kind = recorder.roles.get((name, dim), ("norm", "parameter"))
    return Slot(name, name.rpartition(".")[0], kind, side, dim, numbers)


def group(alike: Alike, name: str, start: int) -> ChannelGroup:
    """Builds the group of one footprint."""
    reason = alike.reason
    if reason is None and alike.roots.size == 1:
        reason = "its channels hang together: a single unit"
    untrainable = None
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
    """Ties what reshapes have spread over several dimensions, so that it stays rectangular after removals.

    Position j of the last varying dimension is tied across the others; in a reshape of ``recorder.turned`` all of a
    row is tied instead, so that whole rows go. With ``all_rows`` also where all of a row is one unit: which of its
    channels lies where would depend on how many rows stay.
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
        if spread.place in recorder.turned:
            rows = rows.T
        units.unite(rows[:, 1:], rows[:, :1])
