"""Does an op that moves elements do the same to what is left of them? Only then may some of them go.

Every other op works position by position, or reads channels in the order in which a weight holds them. So a smaller
network is the larger one without some channels exactly when each of its moves, done to what is left, gives what is
left of the larger one's: ``move(cut(x)) = cut(move(x))``. This sees the order of channels within one unit, too, which
no comparison of units can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halpiee.structure.labels import Label, written_out

__all__ = ["Move", "stays_the_same"]

Mask = NDArray[np.bool_]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Move:
    """One op that moves elements, as it ran.

    Attributes:
        name: name of the op.
        module: path of the module it ran in.
        at: number of ops before it.
        axes: labels of its input.
        before: shape of its input.
        after: shape of its first output.
        run: the op itself, from a tensor of the input's shape to its outputs; None for a reshape, whose shape tells.
        dim: the dimension that it cuts, where that is all it does, or None.
    """

    name: str
    module: str
    at: int
    axes: tuple[Label, ...]
    before: Shape
    after: Shape
    run: Callable[[Tensor], list[Tensor]] | None
    dim: int | None = None

    @property
    def where(self) -> str:
        """The op and where it ran, as reasons name it."""
        return f"{self.name} in {self.module}" if self.module else self.name

    def is_like(self, other: Move) -> bool:
        """Returns whether both are the same step of a forward; which op does a reshape hangs on strides."""
        same_op = self.run is None is other.run or self.name == other.name
        return same_op and self.module == other.module


def stays_the_same(full: Move, small: Move, alive: Sequence[Mask]) -> bool:
    """Returns whether a move of the smaller network is the larger one's, on what is left.

    Args:
        full: the move in the larger network.
        small: the same move in the smaller one.
        alive: which elements of each of the larger one's labels stay.
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
        same_places(narrow(a), narrow(b), stays) for a, b in zip(moved, moved_left, strict=True)
    )


def kept_along(shape: Sequence[int], masks: Sequence[Mask]) -> list[NDArray[np.int64]] | None:
    """Returns the positions that stay along each dimension, or None where what stays is no rectangle."""
    if all(bool(mask.all()) for mask in masks):
        return [np.arange(size) for size in shape]
    grid = np.ones([1] * len(shape), dtype=np.bool_)
    for mask in masks:
        grid = grid & mask
    kept = []
    for dim, size in enumerate(shape):
        if grid.shape[dim] == 1:
            kept.append(np.arange(size))
        else:
            others = tuple(d for d in range(grid.ndim) if d != dim)
            kept.append(np.flatnonzero(grid.any(axis=others)))
    inside = [k if n != 1 else np.zeros(1, np.int64) for k, n in zip(kept, grid.shape, strict=True)]
    return kept if bool(grid[np.ix_(*inside)].all()) else None


def narrow(ids: Tensor) -> NDArray[np.int64]:
    """Returns the ids with size 1 along the dimensions over which they were only expanded."""
    for dim in range(ids.dim()):
        if ids.stride(dim) == 0 and ids.size(dim) > 1:
            ids = ids.narrow(dim, 0, 1)
    return ids.numpy()


def same_places(full: NDArray[np.int64], small: NDArray[np.int64], stays: Mask) -> bool:
    """Returns whether what stays of the one is the other, in the same order."""
    kept = kept_along(full.shape, [stays[full]])
    return kept is not None and np.array_equal(full[np.ix_(*kept)], small)
