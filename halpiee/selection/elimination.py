"""Exact max-plus variable elimination over a coupling graph.

``max over all states of Σ tables`` is found by eliminating one variable after the other: join the tables that
mention it, take the maximum over it, pass the result on. The coupling graph of a CNN is almost a chain, so
the joined tables stay small: the variable, or the sum, whose joined table is smallest goes next. A sum of widths is
made by an adder, which eliminates its two summands in one step (a max-plus convolution): a concat of many groups
never becomes a table over all of them.

Where a joined table would exceed ``limit`` entries it is split and each part is maximised by itself
(mini-buckets): the result is then an upper bound instead of the maximum, and ``exact`` is false.

Complexity: the sum of the joined tables' sizes. The slow reference is the maximum over all combinations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from halpiee.selection.grid import Adder, FloatArray, Grid

SLICE = 1 << 16
"""Entries that are joined at a time: half a megabyte, within a second-level cache."""


class Elimination:
    """A plan: in which order variables are eliminated, made once, run for every λ.

    ``domains`` are the numbers of states of the variables, ``scopes`` the variables of every factor, ascending; a sum
    of ``adders`` can be used once its left summand is made; a joined table has at most ``limit`` entries where that can
    be helped. The message of step i of ``steps`` is table ``n_factors + i``; ``exact`` says that the result is the
    maximum, not only a bound.
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
        planner = _Planner(self.domains, self.factor_scopes, adders, limit)
        while planner.alive or planner.pending:
            planner.eliminate_next()
        self.steps, self.exact = planner.steps, planner.exact

    @classmethod
    def of(cls, grid: Grid, *, limit: float = 4e6) -> Elimination:
        """Plans for a grid: one table per group (its value and own cost), then one per wider factor."""
        scopes: list[tuple[int, ...]] = [(g,) for g in range(grid.n_groups)]
        scopes += [f.scope for f in grid.factors if f.scope[0] >= grid.n_groups or len(f.scope) > 1]
        return cls(grid.domains, scopes, grid.adders, limit=limit)

    def run(self, tables: Sequence[FloatArray]) -> tuple[float, list[FloatArray]]:
        """Returns the maximum (an upper bound where the plan is not exact) and all tables: the factors', the messages.

        ``tables`` are one per factor, axes in the order of its scope.
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
            states[step.gone[0]] = int(np.argmax(sum(again, row)))
            again = []
        return states

    def _maximum(self, step: Step, store: Sequence[FloatArray]) -> FloatArray:
        """Returns the joined table's maximum over the variable eliminated, a slice of it at a time.

        Slices stay in the processor's cache; whole tables would go to memory and back twice.
        """
        shape = [self.domains[v] for v in step.scope]
        axis = step.scope.index(step.gone[0])
        entries = math.prod(shape)
        if entries <= SLICE or len(shape) == 1:
            return np.asarray(self.join(step, store).max(axis=axis))
        along = 0 if axis else 1  # the first axis that stays, so the first of the message
        rows = max(1, SLICE * shape[along] // entries)
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
        """Returns a table over a step's message over its scope; −∞ where a sum is not that of its summands."""
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


@dataclass(frozen=True)
class Step:
    """One elimination."""

    gone: tuple[int, ...]  # variables that are eliminated here
    scope: tuple[int, ...]  # axes of the joined table, ascending
    # ``(table id, shape to broadcast it to the joined table)``; ids count factors first, then messages; the
    # largest table comes last
    parts: tuple[tuple[int, tuple[int, ...]], ...]
    adder: Adder | None  # the sum that is made here, or ``None``
    message: tuple[int, ...]  # axes of its message, ascending
    again: bool = False  # whether this is a further mini-bucket of the variable eliminated by the step before


class _Planner:
    """The state of the planning: which variables are left, and which tables mention them."""

    def __init__(
        self, domains: Sequence[int], scopes: Sequence[tuple[int, ...]], adders: Sequence[Adder], limit: float
    ) -> None:
        self.domains, self.limit = domains, limit
        self.steps: list[Step] = []
        self.exact = True
        self.n_factors = len(scopes)
        self.scope_of = dict(enumerate(scopes))
        self.tables_of: dict[int, set[int]] = {v: set() for v in range(len(domains))}
        for i, scope in self.scope_of.items():
            for v in scope:
                self.tables_of[v].add(i)
        self.alive = set(range(len(domains)))
        self.pending = dict(enumerate(adders))
        self.work: dict[int, float] = {}

    def eliminate_next(self) -> None:
        """Plans the cheapest elimination that is possible now."""
        tied = {v for a in self.pending.values() for v in (a.left, a.group, a.out)}
        made = {a.out for a in self.pending.values()}
        cheapest: tuple[float, int, int] | None = None
        for v in self.alive - tied:
            if v not in self.work:
                self.work[v] = self._entries(self._joined((v,), None))
            cheapest = min(cheapest or (math.inf, 2, 0), (self.work[v], 0, v))
        for i, adder in self.pending.items():
            if adder.left not in made:
                entries = self._entries(self._joined(self._done_with(i), adder))
                cheapest = min(cheapest or (math.inf, 2, 0), (entries, 1, i))
        assert cheapest is not None
        _, is_adder, which = cheapest
        gone = self._done_with(which) if is_adder else (which,)
        adder_now = self.pending.pop(which) if is_adder else None
        ids = sorted({i for v in gone for i in self.tables_of[v]})
        for n, bucket in enumerate(self._buckets(ids, adder_now)):
            self._eliminate(bucket, gone, adder_now if n == 0 else None, again=n > 0)
        self.alive -= set(gone)

    def _done_with(self, i: int) -> tuple[int, ...]:
        """Returns the summands of an adder that no other adder needs."""
        others = [a for j, a in self.pending.items() if j != i]
        left, group = self.pending[i].left, self.pending[i].group
        gone = [left] if left is not None and all(a.left != left for a in others) else []
        return tuple(sorted(gone + [group] * all(a.group != group for a in others)))

    def _joined(self, gone: Iterable[int], adder: Adder | None) -> set[int]:
        """Returns the variables of the table that eliminating ``gone`` joins."""
        scope = {u for v in gone for i in self.tables_of[v] for u in self.scope_of[i]} | set(gone)
        return scope | _summands(adder)

    def _entries(self, scope: Iterable[int]) -> float:
        return math.prod(float(self.domains[v]) for v in scope)

    def _buckets(self, ids: list[int], adder: Adder | None) -> list[list[int]]:
        """Returns the tables in mini-buckets within the limit; the first one is the adder's, if there is one."""
        base = _summands(adder)
        if self._entries({v for i in ids for v in self.scope_of[i]} | base) <= self.limit:
            return [ids]
        buckets: list[tuple[set[int], list[int]]] = [(set(base), [])] if adder is not None else []
        for i in sorted(ids, key=lambda i: (-self._entries(self.scope_of[i]), i)):
            for scope, members in buckets:
                if self._entries(scope | set(self.scope_of[i])) <= self.limit:
                    scope.update(self.scope_of[i])
                    members.append(i)
                    break
            else:
                buckets.append((set(self.scope_of[i]), [i]))
        self.exact = self.exact and len(buckets) == 1
        return [members for _, members in buckets]

    def _eliminate(
        self, bucket: list[int], gone: tuple[int, ...], adder: Adder | None, *, again: bool
    ) -> None:
        """Adds the step of one bucket; without an adder one step per variable, which reads the message before."""
        scope = {v for i in bucket for v in self.scope_of[i]}
        for i in bucket:
            for v in self.scope_of[i]:
                self.tables_of[v].discard(i)
                self.work.pop(v, None)
        if adder is not None:
            message = self._add(bucket, scope | _summands(adder), gone, adder, again=False)
        else:
            for v in [v for v in gone if v in scope] or gone[:1]:
                message = self._add(bucket, scope | {v}, (v,), None, again=again)
                bucket, scope = [message], set(self.scope_of[message])
        for v in self.scope_of[message]:
            self.tables_of[v].add(message)
            self.work.pop(v, None)

    def _add(
        self, bucket: list[int], scope: set[int], gone: tuple[int, ...], adder: Adder | None, *, again: bool
    ) -> int:
        """Adds one step and returns the id of its message."""
        axes = tuple(sorted(scope))
        parts = tuple(
            (i, tuple(self.domains[v] if v in self.scope_of[i] else 1 for v in axes)) for i in bucket
        )
        parts = tuple(sorted(parts, key=lambda part: (math.prod(part[1]), part[0])))
        message = scope - set(gone) | ({adder.out} if adder is not None else set())
        self.steps.append(Step(gone, axes, parts, adder, tuple(sorted(message)), again))
        number = self.n_factors + len(self.steps) - 1
        self.scope_of[number] = tuple(sorted(message))
        return number


def _summands(adder: Adder | None) -> set[int]:
    if adder is None:
        return set()
    return {adder.group} if adder.left is None else {adder.group, adder.left}


def adder_first(adder: Adder, scope: Sequence[int], table: FloatArray) -> FloatArray:
    """Returns a view of a joined table with the axes left, group, then the rest of the scope in order."""
    table = np.moveaxis(table, scope.index(adder.group), 0)
    if adder.left is None:
        return table[None]
    rest = [v for v in scope if v != adder.group]
    return np.moveaxis(table, 1 + rest.index(adder.left), 0)


def push(
    adder: Adder, scope: Sequence[int], message: Sequence[int], domains: Sequence[int], table: FloatArray
) -> FloatArray:
    """Returns a joined table's maximum over the summands that are not in ``message``, over the axes of ``message``.

    ``scope`` are the axes of the table, which hold the summands; those of the message hold the sum.
    """
    table = adder_first(adder, scope, table)
    n_left, n_group = table.shape[:2]
    rest = [v for v in scope if v not in (adder.left, adder.group)]
    at = np.arange(n_left)
    if adder.out in rest:
        # A table reads both the sum and a summand: keep the entries where the sum equals that of its summands.
        table = np.moveaxis(table, 2 + rest.index(adder.out), 2)
        table = table[at[:, None], np.arange(n_group)[None], at[:, None] + adder.steps[None]]
        rest.remove(adder.out)
    keeps_left, keeps_group = adder.left in message, adder.group in message
    shape = [domains[adder.out]] + [n_left] * keeps_left + [n_group] * keeps_group + list(table.shape[2:])
    out = np.full(shape, -np.inf)
    for k, step in enumerate(adder.steps):
        rows = slice(int(step), int(step) + n_left)
        if keeps_left:
            entries = (at + int(step), at, k) if keeps_group else (at + int(step), at)
            out[entries] = np.maximum(out[entries], table[:, k])
        elif keeps_group:
            out[rows, k] = table[:, k]
        else:
            np.maximum(out[rows], table[:, k], out=out[rows])
    axes = _axes(adder, keeps_left, keeps_group, rest)
    return np.ascontiguousarray(out.transpose([axes.index(v) for v in message]))


def pull(
    adder: Adder, scope: Sequence[int], message: Sequence[int], domains: Sequence[int], table: FloatArray
) -> FloatArray:
    """Returns a table over ``message`` as one over ``scope``, read at ``out = left + steps[group]``.

    Where ``scope`` holds the sum itself, entries in which it is not the sum of its summands are −∞.
    """
    rest = [v for v in scope if v not in (adder.left, adder.group, adder.out)]
    keeps_left, keeps_group = adder.left in message, adder.group in message
    axes = _axes(adder, keeps_left, keeps_group, rest)
    table = table.transpose([list(message).index(v) for v in axes])
    left = np.arange(1 if adder.left is None else domains[adder.left])[:, None]
    group = np.arange(domains[adder.group])[None]
    total = left + adder.steps[None]
    pulled = table[(total, *[left] * keeps_left, *[group] * keeps_group)]
    axes = [-1 if adder.left is None else adder.left, adder.group, *rest]
    if adder.out in scope:
        spread = np.full((*pulled.shape[:2], domains[adder.out], *pulled.shape[2:]), -np.inf)
        spread[left, group, total] = pulled
        pulled, axes = spread, [*axes[:2], adder.out, *rest]
    if adder.left is None:
        pulled, axes = pulled[0], axes[1:]
    return np.asarray(pulled.transpose([axes.index(v) for v in scope]))


def _axes(adder: Adder, keeps_left: bool, keeps_group: bool, rest: list[int]) -> list[int]:
    left = [adder.left] if keeps_left and adder.left is not None else []
    return [adder.out, *left, *([adder.group] if keeps_group else []), *rest]
