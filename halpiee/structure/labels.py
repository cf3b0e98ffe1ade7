"""Which unit each element of a tensor belongs to, kept as small as it varies.

A label has the dimensions of its tensor, with size 1 along every dimension where it does not vary, so the
label of ``[N, C, H, W]`` is ``[1, C, 1, 1]``. An activation has one label; a tensor made of parameters alone
has one label per parameter dimension (``axes``), because an element of a weight belongs to a row and to a
column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halpiee.structure.units import Atoms, Units

__all__ = ["Tag", "along", "compressed", "moved", "reshaped", "varying", "written_out"]

Scalar = TypeVar("Scalar", bound=np.generic)

Label = NDArray[np.int64]
"""Atoms of a tensor's elements; size 1 along the dimensions where they do not vary."""


@dataclass(frozen=True)
class Tag:
    """What the tracer knows of one tensor.

    Attributes:
        axes: its labels; at most one for an activation.
        parameter: whether it is made of parameters and buffers alone.
        zero: whether its elements are exactly 0 for a unit whose producers' rows and affine are 0.
        source: name of the parameter or buffer it is made of, the first one of several.
    """

    axes: tuple[Label, ...] = ()
    parameter: bool = False
    zero: bool = False
    source: str = ""

    def with_axes(self, axes: Iterable[Label]) -> Tag:
        """Returns the same tag with other labels, those that label nothing left out."""
        return replace(self, axes=tuple(a for a in axes if a.any()))


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
    """Returns the label of a tensor whose elements ``move`` rearranges, at its present roots.

    Args:
        units: the union-find.
        label: label of the tensor before.
        shape: shape of the tensor before.
        move: the op itself, run on the labels.
    """
    full = torch.from_numpy(np.require(label, requirements=["C", "W"])).expand(shape)
    after = move(full)
    for dim in range(after.dim()):
        if after.stride(dim) == 0 and after.size(dim) > 1:
            after = after.narrow(dim, 0, 1)
    return compressed(units.find(after.numpy()))


def reshaped(label: Label, before: Sequence[int], after: Sequence[int]) -> Label:
    """Returns the label of a tensor of shape ``before`` after a reshape to ``after``."""
    return compressed(written_out(label, before, after))


def written_out(label: NDArray[Scalar], before: Sequence[int], after: Sequence[int]) -> NDArray[Scalar]:
    """Returns a label, or a mask over one, after a reshape, with all positions of the dimensions over which it varied.

    Dimensions that the reshape leaves apart from each other stay apart, so that only those are written out
    over which a label varies: O(size of these), not O(size of the tensor).
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
    """Returns the atoms along one dimension; what varies along the others is united: it stays rectangular.

    Args:
        units: the union-find.
        label: a compressed label.
        dim: the dimension to read.
        size: the tensor's size there.
        reason: why units stay where only a part of a row belongs to one.
    """
    rows = np.moveaxis(label, dim, 0).reshape(label.shape[dim], -1)
    if rows.shape[1] > 1:
        ragged = (rows == 0).any(axis=1) & (rows != 0).any(axis=1)
        units.freeze(rows[ragged], reason)
        units.unite(rows, rows.max(axis=1, keepdims=True))
        rows = rows.max(axis=1, keepdims=True)
    return units.find(np.broadcast_to(rows[:, 0], (size,)).copy())
