"""From atoms to the public structure: units, groups by footprint, slots, layers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from halpiee.structure.groups import ChannelGroup, GroupRef, Layer, Slot, Structure
from halpiee.structure.recorder import Recorder
from halpiee.structure.timed import timed_ops
from halpiee.structure.units import Atoms

__all__ = ["Attribute", "Norm", "assemble", "collapsed"]


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
        dim: channel dimension of its input.
        units: unit of each channel.
    """

    module: str
    dim: int
    units: Atoms


def collapsed(recorder: Recorder) -> frozenset[str]:
    """Returns the grouped layers and norms whose groups all belong to one unit, which positions would separate."""
    reasons = recorder.units.reasons()
    found = set()
    for name, atoms in recorder.grouped.items():
        roots = np.unique(recorder.units.find(atoms))
        if roots.size == 1 and int(roots[0]) not in reasons:
            found.add(name)
    return frozenset(found)


def assemble(recorder: Recorder) -> Structure:
    """Builds the structure from what one forward left behind.

    Units get consecutive numbers, group by group; groups are ordered by the first layer that reads or produces
    them, so names and numbers are the same in every process.
    """
    units = recorder.units
    for axis in range(len(recorder.spreads)):
        label, where = recorder.spreads[axis]
        rectangular(recorder, label, where)
    reasons = units.reasons()
    sides: dict[int, Counter[tuple[str, str]]] = {}
    order: dict[int, tuple[int, int]] = {}
    produced: dict[int, tuple[int, int]] = {}
    for number, layer in enumerate(recorder.layers):
        for side, atoms in (("in", layer.ins), ("out", layer.outs)):
            roots = units.find(atoms)
            for position, root in enumerate(roots.tolist()):
                if root == 0:
                    continue
                sides.setdefault(root, Counter())[(layer.name, side)] += 1
                order.setdefault(root, (number, position))
                if side == "out":
                    produced.setdefault(root, (number, position))
    slots: list[tuple[str, int, Atoms]] = []
    members: dict[int, list[tuple[str, int, int]]] = {root: [] for root in sides}
    for name, dims in recorder.parameters.items():
        for dim, atoms in enumerate(dims):
            if not atoms.size:
                continue
            roots = units.find(atoms)
            known, counts = np.unique(roots, return_counts=True)
            inside = False
            for root, count in zip(known.tolist(), counts.tolist(), strict=True):
                if root in sides:
                    members[root].append((name, dim, count))
                    inside = True
            if inside:
                slots.append((name, dim, roots))
    over = {root for norm in recorder.norms for root in np.unique(units.find(norm.atoms)).tolist()}
    footprints: dict[object, list[int]] = {}
    for root in sorted(sides, key=lambda r: produced.get(r, order[r])):
        reason = reasons.get(root)
        if reason is None and root not in produced:
            reason = "produced by no layer"
        key = (tuple(sorted(sides[root].items())), tuple(members[root]), reason)
        footprints.setdefault(key, []).append(root)
    groups: list[ChannelGroup] = []
    taken: Counter[str] = Counter()
    index: dict[int, int] = {0: -1}
    names: dict[int, str] = {}
    inputs = {int(units.find(np.array([atom]))[0]): name for name, atom in recorder.inputs}
    start = 0
    for (footprint, _, reason), roots in footprints.items():  # type: ignore[misc]
        first = roots[0]
        base = inputs.get(first) or recorder.layers[produced.get(first, order[first])[0]].name
        taken[base] += 1
        name = base if taken[base] == 1 else f"{base}/{taken[base]}"
        single = reason is None and len(roots) == 1
        groups.append(
            ChannelGroup(
                name=name,
                size=len(roots),
                start=start,
                prunable=reason is None and not single,
                reason="its channels hang together: a single unit" if single else reason,
                trainable=reason is None and not single and first not in over,
                untrainable_reason=(
                    "a norm over these channels: its statistics would still see the removed ones"
                    if first in over
                    else ("not prunable" if reason is not None or single else None)
                ),
                members=tuple(side for side, _ in footprint),
            )
        )
        for offset, root in enumerate(roots):
            index[root] = start + offset
            names[root] = name
        start += len(roots)

    lookup = np.full(len(units), -1, dtype=np.int64)
    lookup[list(index)] = list(index.values())

    def numbered(atoms: Atoms) -> Atoms:
        """Unit number of each atom; −1 where it belongs to no group."""
        return lookup[units.find(atoms)]

    def refs(atoms: Atoms) -> tuple[GroupRef, ...]:
        """Groups of a side in order of appearance, and channels per unit."""
        roots = units.find(atoms)
        per_unit = Counter(roots.tolist())
        seen: dict[str, int] = {}
        for root, count in per_unit.items():
            if root in names:
                seen.setdefault(names[root], count)
        return tuple(seen.items())

    return Structure(
        layers=tuple(Layer(c.name, c.kind, refs(c.ins), refs(c.outs)) for c in recorder.layers),
        groups=tuple(groups),
        ops=timed_ops(recorder, refs),
        slots=tuple(
            Slot(
                tensor=name,
                module=name.rpartition(".")[0],
                kind=recorder.roles.get((name, dim), ("norm", "parameter"))[1],
                side=recorder.roles.get((name, dim), ("norm", "parameter"))[0],  # type: ignore[arg-type]
                dim=dim,
                units=numbered(roots),
            )
            for name, dim, roots in slots
        ),
        details={
            "attributes": tuple(
                Attribute(module, name, numbered(atoms), mul, div, at)
                for module, name, atoms, mul, div, at in recorder.attributes
            ),
            "norms": tuple(Norm(n.module, n.dim, numbered(n.atoms)) for n in recorder.norms),
            "calls": tuple(recorder.layers),
            "roots": np.array(
                [r for r, n in sorted(index.items(), key=lambda item: item[1]) if n >= 0], dtype=np.int64
            ),
            "positions": recorder.positions,
            "positions_of": dict(recorder.output_positions),
            "learned": frozenset(recorder.learned),
            "shapes": {name: tuple(a.size for a in dims) for name, dims in recorder.parameters.items()},
        },
    )


def rectangular(recorder: Recorder, label: Atoms, where: str) -> None:
    """Ties what a reshape has spread over several dimensions, so that it can still be laid out after removals.

    Position j of the last varying dimension is tied across the others.
    """
    label = recorder.units.find(label)
    varied = [d for d, size in enumerate(label.shape) if size > 1]
    moving = [
        d for d in varied if not np.array_equal(label, np.broadcast_to(label.take([0], axis=d), label.shape))
    ]
    if len(moving) < 2:
        return
    if (label == 0).any():
        recorder.units.freeze(label, f"{where} spreads constant channels")
    rows = np.moveaxis(label, moving[-1], 0).reshape(label.shape[moving[-1]], -1)
    recorder.units.unite(rows[:, 1:], rows[:, :1])
