"""In which order to eliminate: the variable, or the sum, whose joined table is smallest goes next.

The plan is a list of steps, made once per problem. Where even the smallest joined table is larger than the
limit its factors are shared out among several smaller ones (mini-buckets), and the plan is not exact any
more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from halpiee.selection.terms import Adder

__all__ = ["Step", "order"]


@dataclass(frozen=True)
class Step:
    """One elimination.

    Attributes:
        gone: variables that are eliminated here.
        scope: axes of the joined table, ascending.
        parts: ``(table id, shape to broadcast it to the joined table)``; ids count factors first, then
            messages; the largest table comes last.
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


def order(
    domains: Sequence[int], scopes: Sequence[tuple[int, ...]], adders: Sequence[Adder], limit: float
) -> tuple[list[Step], bool]:
    """Returns the steps of an elimination and whether it is exact.

    Args:
        domains: number of states per variable.
        scopes: variables of every factor, ascending.
        adders: how sums are made; a sum can be used once its left summand is made.
        limit: cells that a joined table may have where that can be helped.
    """
    planner = _Planner(domains, scopes, adders, limit)
    while planner.alive or planner.pending:
        planner.eliminate_next()
    return planner.steps, planner.exact


class _Planner:
    """The state of the planning: which variables are left, and which tables mention them."""

    def __init__(
        self,
        domains: Sequence[int],
        scopes: Sequence[tuple[int, ...]],
        adders: Sequence[Adder],
        limit: float,
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
                self.work[v] = self._cells(self._joined((v,), None))
            cheapest = min(cheapest or (math.inf, 2, 0), (self.work[v], 0, v))
        for i, adder in self.pending.items():
            if adder.left not in made:
                cells = self._cells(self._joined(self._done_with(i), adder))
                cheapest = min(cheapest or (math.inf, 2, 0), (cells, 1, i))
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

    def _cells(self, scope: Iterable[int]) -> float:
        return math.prod(float(self.domains[v]) for v in scope)

    def _buckets(self, ids: list[int], adder: Adder | None) -> list[list[int]]:
        """Returns the tables in mini-buckets within the limit; the first one is the adder's, if there is one."""
        base = _summands(adder)
        if self._cells({v for i in ids for v in self.scope_of[i]} | base) <= self.limit:
            return [ids]
        buckets: list[tuple[set[int], list[int]]] = [(set(base), [])] if adder is not None else []
        for i in sorted(ids, key=lambda i: (-self._cells(self.scope_of[i]), i)):
            for scope, members in buckets:
                if self._cells(scope | set(self.scope_of[i])) <= self.limit:
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
        """Adds the step of one bucket; without an adder one step per variable, the last message being passed on."""
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
