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

from collections.abc import Sequence

import numpy as np

from halpiee.selection.convolution import adder_first, pull, push
from halpiee.selection.ordering import Step, order
from halpiee.selection.terms import Adder, FloatArray, Grid

__all__ = ["Elimination"]


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
        self._buffers: dict[int, FloatArray] = {}

    @classmethod
    def of(cls, grid: Grid, *, limit: float = 4e6) -> Elimination:
        """Plans for a grid: one table per group (its value and own cost), then one per wider factor."""
        scopes: list[tuple[int, ...]] = [(g,) for g in range(grid.n_groups)]
        scopes += [f.scope for f in grid.factors if f.scope[0] >= grid.n_groups or len(f.scope) > 1]
        return cls(grid.domains, scopes, grid.adders, limit=limit)

    def run(self, tables: Sequence[FloatArray]) -> tuple[float, list[FloatArray], list[FloatArray]]:
        """Eliminates everything.

        Args:
            tables: one per factor, axes in the order of its scope.

        Returns:
            The maximum (an upper bound where the plan is not exact), all tables with the messages after the
            factors, and the joined table of every step.
        """
        store, joined, total = list(tables), [], 0.0
        for i, step in enumerate(self.steps):
            table = self.join(step, store, buffer=i)
            joined.append(table)
            message = self._pass_on(step, table)
            if not step.message:
                total += float(message)
            store.append(message)
        return total, store, joined

    def join(
        self,
        step: Step,
        store: Sequence[FloatArray],
        without: int | None = None,
        *,
        buffer: int | None = None,
    ) -> FloatArray:
        """Returns the sum of a step's tables over its scope, one of them left out on request.

        With ``buffer`` the sum of that step is written over the one of the run before: fresh pages for large
        tables cost more than the additions.
        """
        shape = tuple(self.domains[v] for v in step.scope)
        tables = [store[part].reshape(small) for part, small in step.parts if part != without]
        if len(tables) < 2:
            return np.broadcast_to(tables[0], shape) if tables else np.zeros(shape)
        tables.sort(key=np.size)
        total = tables[0]
        for table in tables[1:-1]:
            total = total + table
        if buffer is None:
            return np.broadcast_to(total + tables[-1], shape)
        if buffer not in self._buffers:
            self._buffers[buffer] = np.empty(shape)
        return np.add(total, tables[-1], out=self._buffers[buffer])

    def decode(self, joined: Sequence[FloatArray]) -> list[int]:
        """Returns the states that attain the maximum (good ones, where the maximum is only a bound)."""
        states = [0] * len(self.domains)
        again: list[FloatArray] = []
        for step, table in zip(reversed(self.steps), reversed(joined), strict=True):
            if step.adder is not None:
                again = []
                self._decode_adder(step, step.adder, table, states)
                continue
            (v,) = step.gone
            row = table[tuple(slice(None) if u == v else states[u] for u in step.scope)]
            if step.again:
                again.append(row)
                continue
            for other in again:
                row = row + other
            again = []
            states[v] = int(np.argmax(row))
        return states

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

    def _pass_on(self, step: Step, table: FloatArray) -> FloatArray:
        if step.adder is None:
            return np.asarray(table.max(axis=step.scope.index(step.gone[0])))
        return push(step.adder, step.scope, step.message, self.domains, table)

    def _decode_adder(self, step: Step, adder: Adder, table: FloatArray, states: list[int]) -> None:
        table = adder_first(adder, step.scope, table)
        rest = tuple(states[v] for v in step.scope if v not in (adder.left, adder.group))
        index: tuple[int | slice, ...] = (slice(None), slice(None), *rest)
        table = table[index]
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
