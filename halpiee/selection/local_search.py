"""Single changes of a choice: what every other option of every group would gain and cost, kept up to date.

Used to fill a choice up to its budget, to bring one back within it, and to make one cheaper. Changing one
group recomputes only the groups it shares a cost with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from halpiee.selection.grid import Grid, IntArray


class _Moves:
    """All single changes of a choice, the options of all groups one after the other."""

    def __init__(self, grid: Grid, choice: IntArray) -> None:
        self.grid = grid
        self.choice = np.array(choice, dtype=np.int64)
        self.group = np.repeat(np.arange(grid.n_groups), [len(v) for v in grid.values])
        self.first = np.concatenate([[0], np.cumsum([len(v) for v in grid.values])])
        self.gain = np.empty(len(self.group))  # value gained by changing to that option
        self.extra = np.empty(len(self.group))  # cost added
        self.wider = np.zeros(len(self.group), dtype=np.bool_)  # than the present option
        self.cost = grid.cost(self.choice)
        self._price(range(grid.n_groups))

    def take(self, at: int) -> None:
        """Changes one group to the option at this place."""
        g = int(self.group[at])
        self.choice[g] = at - self.first[g]
        self.cost = self.grid.cost(self.choice)
        self._price(sorted(self.grid.near[g]))

    def _price(self, groups: range | list[int]) -> None:
        states = self.grid.states(self.choice)
        for g in groups:
            k, here = states[g], slice(self.first[g], self.first[g + 1])
            value = self.grid.values[g]
            row = self.grid.row(states, g)
            self.gain[here] = value - value[k]
            self.extra[here] = row - row[k]
            self.wider[here] = np.arange(len(value)) > k


def fill(grids: Sequence[Grid], choice: IntArray, rooms: Sequence[float]) -> IntArray:
    """Returns a choice in which no group has a better, or a wider and no worse, option within all ``rooms``.

    Takes the change of most value per cost that fits, until there is none; costs are shares of their limits.
    """
    limits = [_Moves(grid, choice) for grid in grids]
    scales = [abs(room) or 1.0 for room in rooms]
    while True:
        fits = limits[0].gain > -np.inf
        for moves, room in zip(limits, rooms, strict=True):
            fits &= moves.extra <= room - moves.cost
        gain = limits[0].gain
        at = np.flatnonzero(fits & ((gain > 0) | (limits[0].wider & (gain >= 0))))
        if len(at) == 0:
            return limits[0].choice
        share = np.zeros(len(at))
        for moves, scale in zip(limits, scales, strict=True):
            share += moves.extra[at] / scale
        rate = gain[at] / np.maximum(share, 1e-9)
        best = int(at[np.lexsort((gain[at], rate))[-1]])
        for moves in limits:
            moves.take(best)


def repair(grids: Sequence[Grid], choice: IntArray, rooms: Sequence[float]) -> IntArray | None:
    """Returns a choice within all ``rooms``, reached by giving up the least value per cost, or ``None``."""
    limits = [_Moves(grid, choice) for grid in grids]
    scales = [abs(room) or 1.0 for room in rooms]
    while True:
        excess = sum(
            max(0.0, m.cost - room) / scale for m, room, scale in zip(limits, rooms, scales, strict=True)
        )
        if excess <= 0:
            return limits[0].choice
        left = np.zeros(len(limits[0].extra))
        for moves, room, scale in zip(limits, rooms, scales, strict=True):
            left += np.maximum(0.0, moves.cost + moves.extra - room) / scale
        saved = excess - left
        at = np.flatnonzero(saved > 1e-12 * excess)
        if len(at) == 0:
            return None
        best = int(at[np.argmin(-limits[0].gain[at] / saved[at])])
        for moves in limits:
            moves.take(best)


def descend(grid: Grid, choice: IntArray) -> IntArray:
    """Returns a choice that no single change makes cheaper."""
    moves = _Moves(grid, choice)
    while True:
        at = int(np.argmin(moves.extra))
        if moves.extra[at] >= -1e-12 * abs(moves.cost):
            return moves.choice
        moves.take(at)
