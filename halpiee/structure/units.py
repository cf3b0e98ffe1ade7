"""Which channel slots belong together: a union-find over integer atoms, with the reasons why some may not go.

Every position of every parameter dimension is an *atom*; what must be removed together is united, and one
united set is a unit. Arrays in, arrays out: all calls are vectorised. Atom 0 means "belongs to nothing".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Atoms", "Units"]

Atoms = NDArray[np.int64]
"""Atom ids; 0 where a position belongs to nothing."""


class Units:
    """A growing union-find over atoms 1, 2, … with smallest-member roots."""

    def __init__(self) -> None:
        self._parent: Atoms = np.zeros(1024, dtype=np.int64)
        self._size = 1
        self._frozen: list[tuple[Atoms, str]] = []

    def __len__(self) -> int:
        """Number of atoms, the empty atom 0 included."""
        return self._size

    def fresh(self, count: int) -> Atoms:
        """Returns ``count`` new atoms, each its own unit."""
        while self._size + count > self._parent.size:
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
        atoms = np.arange(self._size, self._size + count, dtype=np.int64)
        self._parent[atoms] = atoms
        self._size += count
        return atoms

    def find(self, atoms: Atoms) -> Atoms:
        """Returns the root of each atom: the smallest atom of its unit."""
        root = self._parent[atoms]
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                break
            root = above
        self._parent[atoms] = root
        return root

    def unite(self, a: Atoms, b: Atoms) -> None:
        """Unites ``a[i]`` with ``b[i]`` for every i where neither is 0 (arrays that broadcast)."""
        a, b = np.broadcast_arrays(a, b)
        both = (a != 0) & (b != 0)
        x, y = self.find(a[both].ravel()), self.find(b[both].ravel())
        while not np.array_equal(x, y):
            np.minimum.at(self._parent, np.maximum(x, y), np.minimum(x, y))
            x, y = self.find(x), self.find(y)

    def freeze(self, atoms: Atoms, reason: str) -> None:
        """Marks the units of these atoms as never removable; the first reason given is the one reported."""
        atoms = np.unique(atoms)
        atoms = atoms[atoms != 0]
        if atoms.size:
            self._frozen.append((atoms, reason))

    def reasons(self) -> dict[int, str]:
        """Returns root → reason for every frozen unit."""
        found: dict[int, str] = {}
        for atoms, reason in self._frozen:
            for root in np.unique(self.find(atoms)).tolist():
                found.setdefault(root, reason)
        return found

    def unite_all(self, atoms: Atoms | Sequence[int]) -> None:
        """Unites all atoms given with each other."""
        flat = np.asarray(atoms, dtype=np.int64).ravel()
        flat = flat[flat != 0]
        if flat.size > 1:
            self.unite(flat[1:], flat[:1])
