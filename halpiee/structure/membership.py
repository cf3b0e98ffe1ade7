"""Which layer sides and parameter dimensions each unit is on, and which units are therefore alike.

Everything is counted on arrays: a network has a hundred thousand channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halpiee.structure.recorder import Recorder
from halpiee.structure.units import Atoms

__all__ = ["Alike", "Membership"]

Hashes = NDArray[np.uint64]

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Alike:
    """Units of one footprint.

    Attributes:
        roots: their roots, in order of appearance.
        members: ``(layer name, "in" | "out")`` of every layer side they are on.
        layer: number of the first layer call that produces them, else reads them.
        reason: why they stay, or None.
        normed: whether a norm over channels sees them.
    """

    roots: Atoms
    members: tuple[tuple[str, str], ...]
    layer: int
    reason: str | None
    normed: bool


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
            self.normed[recorder.units.find(norm.atoms)] = True

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
