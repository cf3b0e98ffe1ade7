"""Exact max-plus variable elimination over a coupling graph.

``max over all states of Σ tables`` is found by eliminating one variable after the other: join the tables that
mention it, take the maximum over it, pass the result on. The coupling graph of a CNN is almost a chain, so
the joined tables stay small. A sum of widths is made by an adder, which eliminates its two summands in one
step (a max-plus convolution): a concat of many groups never becomes a table over all of them.

Where a joined table would exceed ``limit`` cells it is split and each part is maximised by itself
(mini-buckets): the result is then an upper bound instead of the maximum, and ``exact`` is false.

Complexity: the sum of the joined tables' sizes. The slow reference is the maximum over all combinations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from halpiee.selection.convolution import adder_first, pull, push
from halpiee.selection.ordering import Step, order
from halpiee.selection.terms import Adder, FloatArray, Grid

__all__ = ["Elimination"]

SLICE = 1 << 16
"""Cells that are joined at a time: half a megabyte, within a second-level cache."""


class Elimination:
    """A plan: in which order variables are eliminated, made once, run for every λ.

    Args:
        domains: number of states per variable.
        scopes: variables of every factor, ascending.
        adders: how sums are made.
        limit: cells that a joined table may have.

    Attributes:
        steps: in the order they are taken; the message of step i is table ``n_factors + i``.
        exact: whether the result is the maximum, not only a bound on it.
    """

    def __init__(
        self,
        domains: Sequence[int],
        scopes: Sequence[tuple[int, ...]],
        adders: Sequence[Adder] = (),
        *,
        limit: float = 4e6,
    ) -> None:
        self.domains = list(domains)
        self.factor_scopes = [tuple(s) for s in scopes]
        self.n_factors = len(scopes)
        self.steps, self.exact = order(self.domains, self.factor_scopes, adders, limit)

    @classmethod
    def of(cls, grid: Grid, *, limit: float = 4e6) -> Elimination:
        """Plans for a grid: one table per group (its value and own cost), then one per wider factor."""
        scopes: list[tuple[int, ...]] = [(g,) for g in range(grid.n_groups)]
        scopes += [f.scope for f in grid.factors if f.scope[0] >= grid.n_groups or len(f.scope) > 1]
        return cls(grid.domains, scopes, grid.adders, limit=limit)

    def run(self, tables: Sequence[FloatArray]) -> tuple[float, list[FloatArray]]:
        """Eliminates everything.

        Args:
            tables: one per factor, axes in the order of its scope.

        Returns:
            The maximum (an upper bound where the plan is not exact), and all tables: the factors', then the
            messages.
        """
        store, total = list(tables), 0.0
        for step in self.steps:
            if step.adder is None:
                message = self._maximum(step, store)
            else:
                message = push(step.adder, step.scope, step.message, self.domains, self.join(step, store))
            if not step.message:
                total += float(message)
            store.append(message)
        return total, store

    def join(self, step: Step, store: Sequence[FloatArray], without: int | None = None) -> FloatArray:
        """Returns the sum of a step's tables over its scope, one of them left out on request."""
        shape = tuple(self.domains[v] for v in step.scope)
        total: FloatArray = np.zeros(())
        for part, small in step.parts:
            if part != without:
                total = total + store[part].reshape(small)
        return total if total.shape == shape else np.broadcast_to(total, shape)

    def decode(self, store: Sequence[FloatArray]) -> list[int]:
        """Returns the states that attain the maximum (good ones, where the maximum is only a bound)."""
        states = [0] * len(self.domains)
        again: list[FloatArray] = []
        for step in reversed(self.steps):
            if step.adder is not None:
                self._decode_adder(step, step.adder, store, states)
                again = []
                continue
            row = self._at(step, store, states, step.gone)
            if step.again:
                again.append(row)
                continue
            for other in again:
                row = row + other
            again = []
            states[step.gone[0]] = int(np.argmax(row))
        return states

    def _maximum(self, step: Step, store: Sequence[FloatArray]) -> FloatArray:
        """Returns the joined table's maximum over the variable eliminated, a slice of it at a time.

        Slices stay in the processor's cache; whole tables would go to memory and back twice.
        """
        shape = [self.domains[v] for v in step.scope]
        axis = step.scope.index(step.gone[0])
        cells = math.prod(shape)
        if cells <= SLICE or len(shape) == 1:
            return np.asarray(self.join(step, store).max(axis=axis))
        along = 0 if axis else 1  # the first axis that stays, so the first of the message
        rows = max(1, SLICE * shape[along] // cells)
        tables = [store[part].reshape(small) for part, small in step.parts]
        message = np.empty([n for a, n in enumerate(shape) if a != axis])
        buffer = np.empty([rows if a == along else n for a, n in enumerate(shape)])
        whole: tuple[slice, ...] = (slice(None),) * along
        for first in range(0, shape[along], rows):
            here = slice(first, min(first + rows, shape[along]))
            parts = [t[(*whole, here)] if t.shape[along] > 1 else t for t in tables]
            joined = buffer[(*whole, slice(0, here.stop - first))]
            np.add(parts[-1], sum(parts[:-1], np.zeros(())), out=joined)
            np.max(joined, axis=axis, out=message[here])
        return message

    def _at(
        self, step: Step, store: Sequence[FloatArray], states: Sequence[int], keep: Sequence[int]
    ) -> FloatArray:
        """Returns a step's joined table where all variables but ``keep`` are in their states."""
        total: FloatArray = np.zeros([self.domains[v] for v in step.scope if v in keep])
        for part, small in step.parts:
            index = tuple(
                slice(None) if v in keep else states[v] if n > 1 else 0
                for v, n in zip(step.scope, small, strict=True)
            )
            total = total + store[part].reshape(small)[index]
        return total

    def outside(self, store: Sequence[FloatArray]) -> list[FloatArray]:
        """Returns, per step, the maximum over everything not behind its message, over the message's axes.

        A message plus its outside is the max-marginal: the best total for each of its states.
        """
        reader = {part - self.n_factors: i for i, step in enumerate(self.steps) for part, _ in step.parts}
        roots = [i for i, step in enumerate(self.steps) if not step.message]
        total = sum(float(store[self.n_factors + i]) for i in roots)
        found: list[FloatArray] = [np.zeros(())] * len(self.steps)
        for i in range(len(self.steps) - 1, -1, -1):
            if not self.steps[i].message:
                found[i] = np.asarray(total - float(store[self.n_factors + i]))
                continue
            step = self.steps[reader[i]]
            table = self.join(step, store, without=self.n_factors + i) + self.pull(step, found[reader[i]])
            axes = tuple(a for a, v in enumerate(step.scope) if v not in self.steps[i].message)
            found[i] = table.max(axis=axes)
        return found

    def pull(self, step: Step, message: FloatArray) -> FloatArray:
        """Returns a table over a step's message over its scope; −∞ where a sum is not its summands'."""
        if step.adder is None:
            return np.expand_dims(message, step.scope.index(step.gone[0]))
        return pull(step.adder, step.scope, step.message, self.domains, message)

    def _decode_adder(self, step: Step, adder: Adder, store: Sequence[FloatArray], states: list[int]) -> None:
        summands = [v for v in step.scope if v in (adder.left, adder.group)]
        table = adder_first(adder, summands, self._at(step, store, states, summands))
        left = states[adder.out] - adder.steps
        possible = (left >= 0) & (left < table.shape[0])
        if adder.group not in step.gone:
            possible &= np.arange(len(left)) == states[adder.group]
        elif adder.left is not None and adder.left not in step.gone:
            possible &= left == states[adder.left]
        if not possible.any():
            possible = np.ones(len(left), dtype=np.bool_)
            left = np.clip(left, 0, table.shape[0] - 1)
        options = np.flatnonzero(possible)
        k = int(options[np.argmax(table[left[options], options])])
        if adder.group in step.gone:
            states[adder.group] = k
        if adder.left is not None and adder.left in step.gone:
            states[adder.left] = int(left[k])
