"""The inner problem of the Lagrangian dual, and exact elimination with costs, which closes what its bound leaves open.

``Dual`` gives the best choice at a multiplier λ and its bound. ``Frontier`` runs the same elimination, but a message
holds, per state, the (cost, value) pairs of the choices behind it that no other one beats on both. A pair is dropped
when even its best completion, by the dual's max-marginals at λ, is worth no more than the best known choice: near the
optimum of the dual almost every pair is. Where more than ``cap`` pairs remain, those of the lowest bounds are dropped,
and the best of these bounds enters the result: it is always certified, and exact when none was dropped.

The slow reference is the enumeration of all choices.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from halpiee.selection.elimination import Elimination, Step
from halpiee.selection.grid import FloatArray, Grid, IntArray


class Dual:
    """The inner problem of a grid, planned once; ``limit`` bounds the entries of a table of the elimination.

    Attributes:
        known: ``(value, cost, choice)`` of every choice that was best at some multiplier, where that is
            exact: points of the upper hull, good starting points for any budget.
    """

    def __init__(self, grid: Grid, *, limit: float = 4e6) -> None:
        self.grid = grid
        self.plan = Elimination.of(grid, limit=limit)
        self.own = [np.zeros(n) for n in grid.domains[: grid.n_groups]]
        self.wide = []
        for factor in grid.factors:
            if len(factor.scope) == 1 and factor.scope[0] < grid.n_groups:
                self.own[factor.scope[0]] = factor.table
            else:
                self.wide.append(factor.table)
        self.known: list[tuple[float, float, IntArray]] = []
        self._answers: dict[tuple[float, float], tuple[float, IntArray]] = {}

    def tables(self, multiplier: float, weight: float = 1.0) -> list[FloatArray]:
        """Returns ``weight · values − multiplier · costs`` as one table per factor of the plan."""
        tables = [weight * v - multiplier * c for v, c in zip(self.grid.values, self.own, strict=True)]
        return tables + [-multiplier * c for c in self.wide]

    def best(self, multiplier: float, weight: float = 1.0) -> tuple[float, IntArray]:
        """Returns the maximum of ``weight · V − multiplier · C``, or a bound on it, and its choice."""
        key = (multiplier, weight)
        if key not in self._answers:
            bound, store = self.plan.run(self.tables(multiplier, weight))
            states = self.plan.decode(store)
            choice = np.array(states[: self.grid.n_groups], dtype=np.int64)
            self._answers[key] = (bound - multiplier * self.grid.constant, choice)
            if self.plan.exact:
                self.known.append((self.grid.value(choice), self.grid.cost(choice), choice))
        return self._answers[key]

    def around(self, room: float) -> tuple[tuple[float, float, IntArray] | None, ...]:
        """Returns the known choices next to a budget: the dearest within it, the cheapest beyond it."""
        within = [point for point in self.known if point[1] <= room]
        beyond = [point for point in self.known if point[1] > room]
        return (
            max(within, key=lambda p: (p[1], p[0]), default=None),
            min(beyond, key=lambda p: (p[1], -p[0]), default=None),
        )


CHUNK = 1_000_000
"""Pairs that are joined at once."""


@dataclass(frozen=True)
class _Points:
    """Pairs of one message, sorted by state."""

    key: IntArray  # int64 ``[n]``, state of the message's variables, raveled
    cost: FloatArray  # float ``[n]``
    value: FloatArray  # float ``[n]``
    gone: IntArray  # int64 ``[n, m]``, states of the variables eliminated by this step
    back: tuple[tuple[int, IntArray], ...]  # per message that was read, (its step, [n] which of its points)


class Frontier:
    """One elimination at a fixed multiplier λ, best the minimiser of the dual, whose plan must be exact."""

    def __init__(self, dual: Dual, multiplier: float, room: float) -> None:
        self.dual, self.grid, self.multiplier, self.room = dual, dual.grid, multiplier, room
        self.plan = dual.plan
        _, self.store = self.plan.run(dual.tables(multiplier))
        self.outside = self.plan.outside(self.store)
        self.offset = multiplier * (room - self.grid.constant)
        self.costs: list[FloatArray] = [*dual.own, *dual.wide]

    def reach(self, threshold: float, *, cap: int, until: float = math.inf) -> tuple[IntArray | None, float]:
        """Returns the best choice of more value than ``threshold``, if any, and a bound on all within the budget.

        A message holds at most ``cap`` pairs; ``until`` is the ``time.monotonic()`` at which to give up.
        """
        self._threshold, self._cap, self._lost = threshold, cap, threshold
        points: list[_Points] = []
        for i, step in enumerate(self.plan.steps):
            if time.monotonic() > until:
                return None, math.inf
            points.append(self._eliminate(i, step, points))
        roots = [i for i, step in enumerate(self.plan.steps) if not step.message]
        total = self._combine(roots, points)
        fits = np.flatnonzero(total.cost + self.grid.constant <= self.room)
        if len(fits) == 0:
            return None, self._lost
        best = int(fits[np.argmax(total.value[fits])])
        states = [0] * len(self.plan.domains)
        for root, at in total.back:
            self._trace(points, root, int(at[best]), states)
        choice = np.array(states[: self.grid.n_groups], dtype=np.int64)
        return choice, max(self._lost, self.grid.value(choice))

    def _eliminate(self, i: int, step: Step, points: list[_Points]) -> _Points:
        plan = self.plan
        bound = plan.join(step, self.store) + plan.pull(step, self.outside[i]) + self.offset
        flat = np.flatnonzero(bound.ravel() > self._threshold)
        states = np.zeros((1, 0), int)
        if bound.ndim:
            states = np.stack(np.unravel_index(flat, bound.shape), axis=1)
        axis = {v: a for a, v in enumerate(step.scope)}
        rows = _Rows(np.arange(len(flat)), bound.ravel()[flat], np.zeros(len(flat)), np.zeros(len(flat)), [])
        children = []
        for part, _ in step.parts:
            if part >= plan.n_factors:
                children.append(part)
                continue
            index = tuple(states[:, axis[v]] for v in plan.factor_scopes[part])
            rows.cost += self.costs[part][index]
            if part < self.grid.n_groups:
                rows.value += self.grid.values[part][index]
        for part in children:
            child = plan.steps[part - plan.n_factors]
            key = self._key(child.message, [states[:, axis[v]] for v in child.message])
            gone_part = self.store[part].ravel()[key]
            rows = self._join(rows, points[part - plan.n_factors], key, gone_part, part - plan.n_factors)
        state = states[rows.state]
        columns = {v: state[:, a] for v, a in axis.items()}
        if step.adder is not None:
            left = 0 if step.adder.left is None else columns[step.adder.left]
            columns[step.adder.out] = left + step.adder.steps[columns[step.adder.group]]
        key = self._key(step.message, [columns[v] for v in step.message], len(rows.state))
        keep = self._thin(key, rows)
        gone = np.zeros((len(key), 0), int)
        if step.gone:
            gone = np.stack([columns[v] for v in step.gone], axis=1)
        back = tuple((j, at[keep]) for j, at in rows.back)
        return _Points(key[keep], rows.cost[keep], rows.value[keep], gone[keep], back)

    def _join(
        self, rows: _Rows, child: _Points, key_of_state: IntArray, message: FloatArray, index: int
    ) -> _Rows:
        """Returns every row with every point of the message at its state whose bound is above the threshold."""
        key = key_of_state[rows.state]
        first, last = np.searchsorted(child.key, key), np.searchsorted(child.key, key, side="right")
        counts = last - first
        rate = child.value - self.multiplier * child.cost
        ends = np.cumsum(counts)
        pieces: list[_Rows] = []
        begin = 0
        while begin < len(counts) or not pieces:
            before = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + CHUNK, side="right")))
            end = min(end, len(counts))
            n = counts[begin:end]
            which = np.repeat(np.arange(begin, end), n)
            at = np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first[begin:end], n)
            bound = (rows.bound - message[rows.state])[which] + rate[at]
            good = bound > self._threshold
            which, at, bound = which[good], at[good], bound[good]
            piece = _Rows(
                rows.state[which],
                bound,
                rows.cost[which] + child.cost[at],
                rows.value[which] + child.value[at],
                [*((j, back[which]) for j, back in rows.back), (index, at)],
            )
            pieces.append(piece.take(self._thin(piece.state, piece)))
            begin = end
        joined = _Rows.concatenate(pieces)
        return joined.take(self._thin(joined.state, joined)) if len(pieces) > 1 else joined

    def _thin(self, key: IntArray, rows: _Rows) -> IntArray:
        """Returns which rows stay, sorted by key and cost: every key's frontier, at most ``cap`` in all."""
        order = np.lexsort((-rows.value, rows.cost, key))
        if len(order) == 0:
            return np.asarray(order)
        sorted_key = key[order]
        rank = np.unique(rows.value[order], return_inverse=True)[1].astype(np.int64)
        block = np.cumsum(np.concatenate([[0], sorted_key[1:] != sorted_key[:-1]]))
        level = rank + block * (len(order) + 1)
        highest = np.maximum.accumulate(level)
        stays = np.concatenate([[True], level[1:] > highest[:-1]])
        order = order[stays]
        if len(order) > self._cap:
            bound = rows.bound[order]
            limit = np.partition(bound, len(bound) - self._cap)[len(bound) - self._cap]
            chosen = bound >= limit
            self._lost = max(self._lost, float(bound[~chosen].max(initial=-math.inf)))
            order = order[chosen]
        return np.asarray(order)

    def _combine(self, roots: list[int], points: list[_Points]) -> _Points:
        """Returns the points of independent parts of the problem taken together."""
        whole = sum(float(self.store[self.plan.n_factors + i]) for i in roots)
        rows = _Rows(np.zeros(1, int), np.array([whole + self.offset]), np.zeros(1), np.zeros(1), [])
        for i in roots:
            message = np.array([float(self.store[self.plan.n_factors + i])])
            rows = self._join(rows, points[i], np.zeros(1, dtype=np.int64), message, i)
        none = np.zeros((len(rows.state), 0), dtype=np.int64)
        return _Points(rows.state, rows.cost, rows.value, none, tuple(rows.back))

    def _trace(self, points: list[_Points], i: int, at: int, states: list[int]) -> None:
        todo = [(i, at)]
        while todo:
            i, at = todo.pop()
            for v, state in zip(self.plan.steps[i].gone, points[i].gone[at], strict=True):
                states[v] = int(state)
            todo += [(j, int(back[at])) for j, back in points[i].back]

    def _key(self, scope: tuple[int, ...], columns: list[IntArray], n: int = 1) -> IntArray:
        key = np.zeros(len(columns[0]) if columns else n, dtype=np.int64)
        for v, column in zip(scope, columns, strict=True):
            key = key * self.plan.domains[v] + column
        return key


@dataclass
class _Rows:
    """Partial joins: a state of the step's scope, with the points chosen so far."""

    state: IntArray  # int64 ``[n]``, row of the step's states
    bound: FloatArray  # float ``[n]``, the most that any completion is worth
    cost: FloatArray  # float ``[n]``
    value: FloatArray  # float ``[n]``
    back: list[tuple[int, IntArray]]  # as in ``_Points``

    def take(self, keep: IntArray) -> _Rows:
        """Returns some of the rows."""
        back = [(j, at[keep]) for j, at in self.back]
        return _Rows(self.state[keep], self.bound[keep], self.cost[keep], self.value[keep], back)

    @staticmethod
    def concatenate(pieces: list[_Rows]) -> _Rows:
        """Returns the rows of all pieces."""
        return _Rows(
            np.concatenate([p.state for p in pieces]),
            np.concatenate([p.bound for p in pieces]),
            np.concatenate([p.cost for p in pieces]),
            np.concatenate([p.value for p in pieces]),
            [(j, np.concatenate([p.back[n][1] for p in pieces])) for n, (j, _) in enumerate(pieces[0].back)],
        )


def close_gap(
    grid: Grid,
    dual: Dual,
    multiplier: float,
    room: float,
    value: float,
    upper_bound: float,
    *,
    gap: float,
    until: float,
) -> tuple[IntArray | None, float]:
    """Carries ever larger frontiers until the gap is met; returns the best choice found and a bound."""
    frontier = Frontier(dual, multiplier, room)
    best: IntArray | None = None
    for cap in (2_000, 20_000, 200_000):
        # The smallest bound that meets the gap; rounding of the bounds stays below 1e-12 of them.
        threshold = value + max(gap / (1 + gap) * abs(value), 1e-12 * abs(upper_bound))
        if upper_bound <= threshold or time.monotonic() > until:
            break
        choice, bound = frontier.reach(threshold, cap=cap, until=until)
        if choice is not None and grid.value(choice) > value:
            best, value = choice, grid.value(choice)
        upper_bound = max(min(upper_bound, bound), value)
        if upper_bound - value <= gap * max(abs(upper_bound), 1e-12):
            break
    return best, upper_bound
