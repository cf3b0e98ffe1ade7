"""Labels: which unit each element of a tensor belongs to; and the union-find that says which atoms are one unit.

Every position of every parameter dimension is an *atom*; what must be removed together is united, and one united set
is a unit. Arrays in, arrays out: all calls are vectorised. Atom 0 means "belongs to nothing".

A label has the dimensions of its tensor, with size 1 along every dimension where it does not vary, so the label of
``[N, C, H, W]`` is ``[1, C, 1, 1]``. An activation has one label; a tensor made of parameters alone has one label per
parameter dimension (``axes``), because an element of a weight belongs to a row and to a column.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HERE = os.path.dirname(__file__)

Atoms = NDArray[np.int64]
"""Atom ids; 0 where a position belongs to nothing."""


def no_atoms(size: int = 0) -> Atoms:
    """Returns positions that belong to nothing."""
    return np.zeros(size, dtype=np.int64)


def together(parts: Iterable[Atoms]) -> Atoms:
    """Returns the atoms of all parts, one behind the other."""
    return np.concatenate([no_atoms(), *(part.reshape(-1) for part in parts)])


def source_line(*, exact: bool = False) -> str:
    """Returns file and line (``exact``: the instruction, too) of a forward's innermost frame outside torch and this."""
    frame = sys._getframe(1)
    found = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if os.sep + "torch" + os.sep in name or name.startswith(HERE + os.sep):
            if frame.f_code.co_name == "_call_impl" and found:
                return found
        elif not found:
            found = f"{name}:{frame.f_lineno}{f':{frame.f_lasti}' if exact else ''}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


Finding = tuple[Atoms, str]
"""Numbers of units that must be frozen, and why."""


class Units:
    """A growing union-find over atoms 1, 2, …; the root of a set is its smallest atom."""

    def __init__(self) -> None:
        self._parent: Atoms = np.zeros(1024, dtype=np.int64)
        self._size = 1
        self._frozen: list[tuple[Atoms, str, str]] = []
        self._is_frozen = np.zeros(1024, dtype=np.bool_)
        self._is_frozen[0] = True  # which belongs to nothing
        self.changes = 0

    def __len__(self) -> int:
        """Number of atoms, the empty atom 0 included."""
        return self._size

    def fresh(self, count: int) -> Atoms:
        """Returns ``count`` new atoms, each its own unit."""
        while self._size + count > self._parent.size:
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
            self._is_frozen = np.concatenate([self._is_frozen, np.zeros_like(self._is_frozen)])
        atoms = np.arange(self._size, self._size + count, dtype=np.int64)
        self._parent[atoms] = atoms
        self._size += count
        return atoms

    def find(self, atoms: Atoms) -> Atoms:
        """Returns the root of each atom: the smallest atom of its unit. Roots are returned themselves, not copied."""
        root = self._parent[atoms]
        if not (root != atoms).any():
            return atoms
        while True:
            above = self._parent[root]
            if not (above != root).any():
                break
            root = above
        self._parent[atoms] = root
        return root

    def unite(self, a: Atoms, b: Atoms) -> None:
        """Unites ``a[i]`` with ``b[i]`` for every i where neither is 0 (arrays that broadcast)."""
        a, b = np.broadcast_arrays(a, b)
        both = (a != 0) & (b != 0)
        x, y = self.find(a[both].ravel()), self.find(b[both].ravel())
        while (apart := x != y).any():
            self.changes += 1
            x, y = x[apart], y[apart]
            np.minimum.at(self._parent, np.maximum(x, y), np.minimum(x, y))
            x, y = self.find(x), self.find(y)

    def freeze(self, atoms: Atoms, reason: str) -> None:
        """Freezes the units of the given atoms; the first reason is the one reported."""
        atoms = atoms[~self._is_frozen[atoms]]
        if atoms.size:
            self.changes += 1
            atoms = np.unique(atoms)
            self._is_frozen[atoms] = True
            self._frozen.append((atoms, reason, source_line()))

    def frozen(self) -> set[int]:
        """Returns the roots of all frozen units."""
        atoms = together(atoms for atoms, _, _ in self._frozen)
        return set(np.unique(self.find(atoms)).tolist())

    def reasons(self) -> dict[int, str]:
        """Returns root → reason for every frozen unit."""
        return {root: reason for root, (reason, _) in self._first().items()}

    def sources(self) -> dict[int, str]:
        """Returns root → file and line of the forward, for every frozen unit where they are known."""
        return {root: source for root, (_, source) in self._first().items() if source}

    def _first(self) -> dict[int, tuple[str, str]]:
        found: dict[int, tuple[str, str]] = {}
        for atoms, reason, source in self._frozen:
            for root in np.unique(self.find(atoms)).tolist():
                found.setdefault(root, (reason, source))
        return found


class CheckedUnits(Units):
    """A union-find that notes where an op unites two units of the structure that are not both frozen.

    Atoms 1 … ``n_units`` are the units of the structure; ``frozen`` are numbers of units, from 0.
    """

    def __init__(self, n_units: int, frozen: Atoms) -> None:
        super().__init__()
        self.freeze(self.fresh(n_units)[frozen], "stays")
        self.n_units = n_units
        self.where = ""
        self.met: list[Finding] = []

    def unite(self, a: Atoms, b: Atoms) -> None:
        """Unites atoms; records units of the structure that meet although they differ and one may be removed."""
        a, b = np.broadcast_arrays(a, b)
        x, y = self.find(a.ravel()), self.find(b.ravel())
        wrong = (x != y) & (x != 0) & (y != 0) & (x <= self.n_units) & (y <= self.n_units)
        wrong &= ~(self._is_frozen[x] & self._is_frozen[y])  # frozen on both sides: fits whatever is removed
        if wrong.any():
            self.met.append((np.unique(np.concatenate([x[wrong], y[wrong]])) - 1, self.where))
        super().unite(a, b)


Label = NDArray[np.int64]
"""Atoms of a tensor's elements; size 1 along the dimensions where they do not vary."""


@dataclass(frozen=True)
class Tag:
    """The labels of one tensor, and where its values come from."""

    axes: tuple[Label, ...] = ()  # its labels; at most one for an activation
    parameter: bool = False  # computed from parameters and buffers alone
    zero: bool = False  # exactly 0 for a unit whose producers' rows and affine are 0
    source: str = ""  # name of the first parameter or buffer that it is computed from

    def with_axes(self, axes: Iterable[Label | None]) -> Tag:
        """Returns the same tag with other labels; empty ones are dropped."""
        return replace(self, axes=tuple(a for a in axes if a is not None and a.any()))


def compressed(label: Label) -> Label:
    """Returns the label with size 1 along every dimension where it does not vary."""
    for dim, size in enumerate(label.shape):
        if size > 1:
            first = label.take([0], axis=dim)
            if label.strides[dim] == 0 or np.array_equal(label, np.broadcast_to(first, label.shape)):
                label = first
    return np.ascontiguousarray(label)


def varying(label: Label) -> tuple[int, ...]:
    """Returns the dimensions along which a compressed label varies."""
    return tuple(dim for dim, size in enumerate(label.shape) if size > 1)


def moved(units: Units, label: Label, shape: tuple[int, ...], move: Callable[[Tensor], Tensor]) -> Label:
    """Returns the label, at its roots, of a tensor whose elements ``move`` rearranges; before it has this shape."""
    full = torch.from_numpy(np.require(label, requirements=["C", "W"])).expand(shape)
    return compressed(units.find(narrow(move(full))))


def narrow(ids: Tensor) -> NDArray[np.int64]:
    """Returns the ids with size 1 along the dimensions over which they were only expanded."""
    for dim in range(ids.dim()):
        if ids.stride(dim) == 0 and ids.size(dim) > 1:
            ids = ids.narrow(dim, 0, 1)
    return ids.numpy()


def reshaped(label: Label, before: Sequence[int], after: Sequence[int]) -> Label:
    """Returns the label of a tensor of shape ``before`` after a reshape to ``after``."""
    return compressed(written_out(label, before, after))


def written_out(label: NDArray[Any], before: Sequence[int], after: Sequence[int]) -> NDArray[Any]:
    """Returns a label, or a mask over one, after a reshape, with all positions of the dimensions over which it varied.

    Only dimensions that the reshape mixes and over which the label varies are written out: O(their size), not O(size
    of the tensor).
    """
    shape: list[int] = []
    now: list[int] = []
    i = j = 0
    while i < len(before) or j < len(after):
        first, start = i, j
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while left != right:
            if left < right:
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        whole = all(size == 1 for size in label.shape[first:i])
        now += [1] * (i - first) if whole else before[first:i]
        shape += [1] * (j - start) if whole else after[start:j]
    return np.broadcast_to(label, now).reshape(shape)


def along(units: Units, label: Label, dim: int, size: int, reason: str) -> Atoms:
    """Returns the atoms along one dimension, of a size; atoms that vary along the others are united.

    ``reason`` freezes units that only a part of a row belongs to.
    """
    rows = np.moveaxis(label, dim, 0).reshape(label.shape[dim], -1)
    if rows.shape[1] > 1:
        ragged = (rows == 0).any(axis=1) & (rows != 0).any(axis=1)
        units.freeze(rows[ragged], reason)
        units.unite(rows, rows.max(axis=1, keepdims=True))
        rows = rows.max(axis=1, keepdims=True)
    return units.find(np.broadcast_to(rows[:, 0], (size,)).copy())
