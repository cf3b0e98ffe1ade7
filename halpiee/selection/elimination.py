"""Exact max-plus variable elimination over a coupling graph, and its planning.

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
from dataclasses import dataclass

import numpy as np

from halpiee.selection.convolution import adder_first, pull, push
from halpiee.selection.terms import Adder, FloatArray, Grid

__all__ = ["Elimination", "Step"]


@dataclass(frozen=True)
class Step:
    """One elimination.

    Attributes:
        gone: variables that are eliminated here.
        scope: axes of the joined table, ascending.
        parts: ``(table id, shape to broadcast it to the joined table)``; ids count factors first, then
            messages.
        adder: the sum that is made here, or ``None``.
        message: axes of what is passed on, ascending.
        again: whether this is a further mini-bucket of the variable eliminated by the step before.
    """

    gone: tuple[int, ...]
    scope: tuple[int, ...]
    parts: tuple[tuple[int, tuple[int, ...]], ...]
    adder: Adder | None
    message: tuple[int, ...]
    again: bool = False


class Elimination:
    """A plan: in which order variables are eliminated, made once, run for every λ.

    Args:
        domains: number of states per variable.
        scopes: variables of every factor, ascending.
        adders: how sums are made.
        limit: cells that a joined table may have.
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
        self.limit = limit
        self.exact = True
        self._buffers: dict[int, FloatArray] = {}
        self.steps: list[Step] = []
        self.factor_scopes = [tuple(s) for s in scopes]
        self.n_factors = len(scopes)
        self._plan(list(self.factor_scopes), list(adders))

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

    def _plan(self, scopes: list[tuple[int, ...]], adders: list[Adder]) -> None:
        scope_of = dict(enumerate(scopes))
        tables_of: dict[int, set[int]] = {v: set() for v in range(len(self.domains))}
        for i, scope in scope_of.items():
            for v in scope:
                tables_of[v].add(i)
        alive = set(range(len(self.domains)))
        pending = dict(enumerate(adders))
        work: dict[tuple[str, int], float] = {}

        def gone_with(i: int) -> tuple[int, ...]:
            others = [a for j, a in pending.items() if j != i]
            gone = [v for v in (pending[i].left,) if v is not None and all(a.left != v for a in others)]
            gone += [pending[i].group] * all(a.group != pending[i].group for a in others)
            return tuple(sorted(gone))

        def joined_scope(gone: tuple[int, ...], adder: Adder | None) -> set[int]:
            scope = {u for v in gone for i in tables_of[v] for u in scope_of[i]} | set(gone)
            if adder is not None:
                scope |= {adder.group} | ({adder.left} if adder.left is not None else set())
            return scope

        def size(scope: set[int]) -> float:
            return math.prod(float(self.domains[v]) for v in scope)

        while alive or pending:
            tied = {v for a in pending.values() for v in (a.left, a.group, a.out) if v is not None}
            made = {a.out for a in pending.values()}
            best: tuple[float, int, str, int] | None = None
            for v in alive:
                if v not in tied:
                    key = ("variable", v)
                    if key not in work:
                        work[key] = size(joined_scope((v,), None))
                    best = min(best or (math.inf, 0, "", 0), (work[key], 0, *key))
            for i, adder in pending.items():
                if adder.left not in made:
                    cells = size(joined_scope(gone_with(i), adder))
                    best = min(best or (math.inf, 0, "", 0), (cells, 1, "adder", i))
            assert best is not None
            chosen = pending.get(best[3]) if best[2] == "adder" else None
            gone = gone_with(best[3]) if chosen is not None else (best[3],)
            if chosen is not None:
                del pending[best[3]]
            ids = sorted({i for v in gone for i in tables_of[v]})
            for n, bucket in enumerate(self._split(ids, scope_of, gone, chosen)):
                adder_here = chosen if n == 0 else None
                for step in self._steps_for(bucket, scope_of, gone, adder_here, again=n > 0):
                    new = self.n_factors + len(self.steps)
                    self.steps.append(step)
                    scope_of[new] = step.message
                    for v in step.message:
                        tables_of[v].add(new)
                        work.pop(("variable", v), None)
                for i in bucket:
                    for v in scope_of[i]:
                        tables_of[v].discard(i)
                        work.pop(("variable", v), None)
            alive -= set(gone)

    def _split(
        self, ids: list[int], scope_of: dict[int, tuple[int, ...]], gone: tuple[int, ...], adder: Adder | None
    ) -> list[list[int]]:
        """Returns mini-buckets of tables, each within the limit where its members allow it."""
        base = {v for v in (adder.group, adder.left) if v is not None} if adder is not None else set()
        whole = {v for i in ids for v in scope_of[i]} | base
        if math.prod(float(self.domains[v]) for v in whole) <= self.limit:
            return [ids]
        buckets: list[tuple[set[int], list[int]]] = [(set(base), [])] if adder is not None else []
        for i in sorted(ids, key=lambda i: (-math.prod(self.domains[v] for v in scope_of[i]), i)):
            for scope, members in buckets:
                union = scope | set(scope_of[i])
                if math.prod(float(self.domains[v]) for v in union) <= self.limit:
                    scope.update(union)
                    members.append(i)
                    break
            else:
                buckets.append((set(scope_of[i]), [i]))
        self.exact = self.exact and len(buckets) == 1
        return [members for _, members in buckets]

    def _steps_for(
        self,
        bucket: list[int],
        scope_of: dict[int, tuple[int, ...]],
        gone: tuple[int, ...],
        adder: Adder | None,
        *,
        again: bool,
    ) -> list[Step]:
        scope = {v for i in bucket for v in scope_of[i]}
        if adder is not None:
            scope |= {adder.group} | ({adder.left} if adder.left is not None else set())
            return [self._step(bucket, scope_of, scope, gone, adder, again=False)]
        steps = []
        for v in [v for v in gone if v in scope] or gone[:1]:
            steps.append(self._step(bucket, scope_of, scope | {v}, (v,), None, again=again))
            bucket, scope = [self.n_factors + len(self.steps) + len(steps) - 1], scope - {v}
            scope_of = {**scope_of, bucket[0]: steps[-1].message}
        return steps

    def _step(
        self,
        bucket: list[int],
        scope_of: dict[int, tuple[int, ...]],
        scope: set[int],
        gone: tuple[int, ...],
        adder: Adder | None,
        *,
        again: bool,
    ) -> Step:
        axes = tuple(sorted(scope))
        parts = tuple((i, tuple(self.domains[v] if v in scope_of[i] else 1 for v in axes)) for i in bucket)
        message = set(scope) - set(gone) | ({adder.out} if adder is not None else set())
        return Step(gone, axes, parts, adder, tuple(sorted(message)), again)
