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


Footprint = tuple[tuple[tuple[tuple[str, str], int], ...], tuple[tuple[str, int, int], ...], str | None]
"""Layer sides and parameter dimensions that a unit is on, each with how often; and why it stays, or None."""


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
    for label, where in recorder.spreads:
        rectangular(recorder, label, where)
    units = recorder.units
    membership = Membership(recorder)
    groups: list[ChannelGroup] = []
    number_of: dict[int, int] = {0: -1}
    name_of: dict[int, str] = {}
    taken: Counter[str] = Counter()
    for footprint, roots in membership.footprints().items():
        group = membership.group(footprint, roots, start=len(number_of) - 1, taken=taken)
        groups.append(group)
        for offset, root in enumerate(roots):
            number_of[root] = group.start + offset
            name_of[root] = group.name
    lookup = np.full(len(units), -1, dtype=np.int64)
    lookup[np.fromiter(number_of.keys(), np.int64)] = np.fromiter(number_of.values(), np.int64)

    def numbered(atoms: Atoms) -> Atoms:
        """Unit number of each atom; −1 where it belongs to no group."""
        return lookup[units.find(atoms)]

    def refs(atoms: Atoms) -> tuple[GroupRef, ...]:
        """Groups of a side in order of appearance, and channels per unit."""
        seen: dict[str, int] = {}
        for root, count in Counter(units.find(atoms).tolist()).items():
            if root in name_of:
                seen.setdefault(name_of[root], count)
        return tuple(seen.items())

    return Structure(
        layers=tuple(Layer(c.name, c.kind, refs(c.ins), refs(c.outs)) for c in recorder.layers),
        groups=tuple(groups),
        ops=timed_ops(recorder, refs),
        slots=tuple(slot(recorder, name, dim, numbered(roots)) for name, dim, roots in membership.slots),
        details={
            "attributes": tuple(
                Attribute(module, name, numbered(atoms), mul, div, at)
                for module, name, atoms, mul, div, at in recorder.attributes
            ),
            "norms": tuple(Norm(n.module, n.dim, numbered(n.atoms)) for n in recorder.norms),
            "sources": {name_of[r]: s for r, s in units.sources().items() if r in name_of},
            "untimed": untimed(recorder),
            "roots": np.array(list(number_of)[1:], dtype=np.int64),
            "real": False,
            "positions": recorder.positions,
            "positions_of": dict(recorder.output_positions),
            "learned": frozenset(recorder.learned),
            "shapes": {name: tuple(a.size for a in dims) for name, dims in recorder.parameters.items()},
        },
    )


UNTIMED = frozenset(
    {
        "_fft_r2c",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "baddbmm",
        "bmm",
        "grid_sampler_2d",
        "index",
        "native_group_norm",
        "native_layer_norm",
        "roi_align",
        "_softmax",
    }
)
"""Ops that take time of their own and that no profile has an entry for."""


def untimed(recorder: Recorder) -> dict[str, int]:
    """Returns how often each op that takes time occurs without a timed op for it."""
    return dict(Counter(e.name for e in recorder.events if e.timing is None and e.name in UNTIMED))


def slot(recorder: Recorder, name: str, dim: int, numbers: Atoms) -> Slot:
    """Builds the slot of one parameter dimension."""
    side, kind = recorder.roles.get((name, dim), ("norm", "parameter"))
    return Slot(name, name.rpartition(".")[0], kind, side, dim, numbers)


class Membership:
    """Which layer sides and parameter dimensions each unit is on.

    Attributes:
        slots: name, dimension and roots of every parameter dimension that some layer's unit is in.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        units = recorder.units
        self.sides: dict[int, Counter[tuple[str, str]]] = {}
        self.first: dict[int, tuple[int, int]] = {}
        self.produced: dict[int, tuple[int, int]] = {}
        for number, layer in enumerate(recorder.layers):
            for side, atoms in (("in", layer.ins), ("out", layer.outs)):
                for position, root in enumerate(units.find(atoms).tolist()):
                    if root:
                        self.sides.setdefault(root, Counter())[(layer.name, side)] += 1
                        self.first.setdefault(root, (number, position))
                        if side == "out":
                            self.produced.setdefault(root, (number, position))
        self.slots: list[tuple[str, int, Atoms]] = []
        self.places: dict[int, list[tuple[str, int, int]]] = {root: [] for root in self.sides}
        for name, dims in recorder.parameters.items():
            for dim, atoms in enumerate(dims):
                roots = units.find(atoms)
                known, counts = np.unique(roots, return_counts=True)
                here = [p for p in zip(known.tolist(), counts.tolist(), strict=True) if p[0] in self.sides]
                for root, count in here:
                    self.places[root].append((name, dim, count))
                if here:
                    self.slots.append((name, dim, roots))
        self.normed = {r for norm in recorder.norms for r in np.unique(units.find(norm.atoms)).tolist()}
        self.inputs = {int(units.find(np.array([a]))[0]): name for name, a in recorder.inputs}

    def footprints(self) -> dict[Footprint, list[int]]:
        """Returns the units (roots) of each footprint, in order of appearance."""
        reasons = self.recorder.units.reasons()
        found: dict[Footprint, list[int]] = {}
        for root in sorted(self.sides, key=lambda r: self.produced.get(r, self.first[r])):
            reason = reasons.get(root) or (None if root in self.produced else "produced by no layer")
            key = (tuple(sorted(self.sides[root].items())), tuple(self.places[root]), reason)
            found.setdefault(key, []).append(root)
        return found

    def group(self, footprint: Footprint, roots: list[int], start: int, taken: Counter[str]) -> ChannelGroup:
        """Builds the group of one footprint; it is named after the first layer that produces it."""
        sides, _, reason = footprint
        first = roots[0]
        number, _ = self.produced.get(first, self.first[first])
        base = self.inputs.get(first) or self.recorder.layers[number].name
        taken[base] += 1
        if reason is None and len(roots) == 1:
            reason = "its channels hang together: a single unit"
        untrainable = None
        if reason is not None:
            untrainable = "not prunable"
        elif first in self.normed:
            untrainable = "a norm over these channels: its statistics would still see the removed ones"
        return ChannelGroup(
            name=base if taken[base] == 1 else f"{base}/{taken[base]}",
            size=len(roots),
            start=start,
            prunable=reason is None,
            reason=reason,
            trainable=untrainable is None,
            untrainable_reason=untrainable,
            members=tuple(side for side, _ in sides),
        )


def rectangular(recorder: Recorder, label: Atoms, where: str) -> None:
    """Ties what a reshape has spread over several dimensions, so that it stays rectangular after removals.

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
