"""Single changes of a choice: what every other option of every group would gain and cost, kept up to date.

Used to fill a choice up to its budget, to bring one back within it, and to make one cheaper. Changing one
group recomputes only the groups it shares a cost with.
"""

from __future__ import annotations

import numpy as np

from halpiee.selection.terms import Grid, IntArray

__all__ = ["descend", "fill", "repair"]


class _Moves:
    """All single changes of a choice, the options of all groups one after the other.

    Attributes:
        gain: float ``[options]``, value gained by changing to that option.
        extra: float ``[options]``, cost added.
        wider: bool ``[options]``, whether it is wider than the present one.
    """

    def __init__(self, grid: Grid, choice: IntArray) -> None:
        self.grid = grid
        self.choice = np.array(choice, dtype=np.int64)
        self.group = np.repeat(np.arange(grid.n_groups), [len(v) for v in grid.values])
        self.first = np.concatenate([[0], np.cumsum([len(v) for v in grid.values])])
        self.gain, self.extra = np.empty(len(self.group)), np.empty(len(self.group))
        self.wider = np.zeros(len(self.group), dtype=np.bool_)
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


def fill(grid: Grid, choice: IntArray, room: float) -> IntArray:
    """Returns a choice in which no group has a better, or a wider and no worse, option that still fits.

    Takes the change of most value per cost that fits, until there is none.
    """
    moves = _Moves(grid, choice)
    least = 1e-9 * max(abs(room), 1e-300)
    while True:
        fits = moves.extra <= room - moves.cost
        at = np.flatnonzero(fits & ((moves.gain > 0) | (moves.wider & (moves.gain >= 0))))
        if len(at) == 0:
            return moves.choice
        rate = moves.gain[at] / np.maximum(moves.extra[at], least)
        moves.take(int(at[np.lexsort((moves.gain[at], rate))[-1]]))


def repair(grid: Grid, choice: IntArray, room: float) -> IntArray | None:
    """Returns a choice within ``room``, reached by giving up the least value per cost, or ``None``."""
    moves = _Moves(grid, choice)
    while moves.cost > room:
        at = np.flatnonzero(moves.extra < -1e-12 * abs(moves.cost))
        if len(at) == 0:
            return None
        saved = np.minimum(-moves.extra[at], moves.cost - room)
        moves.take(int(at[np.argmin(-moves.gain[at] / saved)]))
    return moves.choice


def descend(grid: Grid, choice: IntArray) -> IntArray:
    """Returns a choice that no single change makes cheaper."""
    moves = _Moves(grid, choice)
    while True:
        at = int(np.argmin(moves.extra))
        if moves.extra[at] >= -1e-12 * abs(moves.cost):
            return moves.choice
        moves.take(at)
