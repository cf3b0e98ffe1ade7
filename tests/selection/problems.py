"""Random small problems of every shape a network gives, and their answer by enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from halpiee.selection.grid import FloatArray, IntArray, Side

Choice = Sequence[int] | IntArray

SHAPES = ("chain", "tree", "residual", "concat", "depthwise", "any")


@dataclass
class Problem:
    values: list[Any]
    terms: list[tuple[Side, Side, FloatArray]]
    widths: list[Any]
    budget: float = 0.0

    def entry(self, side: Side, choice: Choice) -> int:
        if side is None:
            return 0
        if isinstance(side, tuple):
            return sum(int(self.widths[g][choice[g]]) for g in side)
        return int(choice[side])

    def cost(self, choice: Choice) -> float:
        return sum(float(t[self.entry(i, choice), self.entry(o, choice)]) for i, o, t in self.terms)

    def value(self, choice: Choice) -> float:
        return sum(float(v[k]) for v, k in zip(self.values, choice, strict=True))

    def choices(self) -> Iterator[tuple[int, ...]]:
        return itertools.product(*(range(len(v)) for v in self.values))

    def enumerate(self) -> tuple[float, float]:
        """Returns the best value within the budget (−inf if there is none) and the cheapest cost."""
        room = self.budget + 1e-9 * abs(self.budget)
        costs = [(self.cost(c), self.value(c)) for c in self.choices()]
        best = max((v for c, v in costs if c <= room), default=-np.inf)
        return best, min(c for c, _ in costs)


def random_problem(rng: np.random.Generator, shape: str) -> Problem:
    """Returns a problem with at most about 1,000 choices, its budget a random quantile of all costs."""
    n_groups = int(rng.integers(2, 6))
    n = [int(rng.integers(1, 5 if n_groups > 3 else 7)) for _ in range(n_groups)]
    concave = rng.random() < 0.4
    values = [
        np.cumsum(np.sort(rng.random(k))[::-1])
        if concave
        else rng.normal(size=k) * rng.choice([0, 1], p=[0.1, 0.9])
        for k in n
    ]
    widths = [np.sort(rng.choice(10, size=k, replace=False)) * int(rng.choice([1, 4])) for k in n]
    sides = _sides(rng, shape, n_groups)
    terms = []
    for ins, outs in sides:
        length = [
            1
            if s is None
            else len(values[s])
            if isinstance(s, int)
            else 1 + sum(int(widths[g][-1]) for g in s)
            for s in (ins, outs)
        ]
        if ins is not None and ins == outs:
            length[1] = length[0]
        table = rng.random(length)
        if rng.random() < 0.7:
            table = np.cumsum(np.cumsum(table, axis=0), axis=1) + rng.random(length)
        terms.append((ins, outs, table))
    problem = Problem(values, terms, widths)
    costs = [problem.cost(c) for c in problem.choices()]
    problem.budget = float(np.quantile(costs, rng.random()))
    if rng.random() < 0.3:
        problem.budget = float(rng.choice(costs))
    return problem


def _sides(rng: np.random.Generator, shape: str, n: int) -> list[tuple[Side, Side]]:
    def some() -> tuple[int, ...]:
        return tuple(int(g) for g in rng.choice(n, size=int(rng.integers(2, n + 1)), replace=False))

    def single() -> int:
        return int(rng.integers(n))

    chain: list[tuple[Side, Side]] = [(None if g == 0 else g - 1, g) for g in range(n)]
    if shape == "chain":
        return [*chain, (n - 1, None)]
    if shape == "tree":
        return [(None if g == 0 else int(rng.integers(g)), g) for g in range(n)]
    if shape == "residual":
        return [(None, 0), *((0, g) for g in range(1, n)), *((g, 0) for g in range(1, n)), (0, None)]
    if shape == "depthwise":
        return [*chain, *((g, g) for g in range(n) if rng.random() < 0.7)]
    if shape == "concat":
        nested: list[tuple[Side, Side]] = [(tuple(range(g)), g) for g in range(2, n)]
        return [(None, 0), (0, 1), *nested, (tuple(range(n)), None), (some(), some())]
    kinds: list[Callable[[], Side]] = [lambda: None, single, single, some]
    sides = [(kinds[rng.integers(4)](), kinds[rng.integers(4)]()) for _ in range(int(rng.integers(1, 7)))]
    return [(i, i) if rng.random() < 0.15 else (i, o) for i, o in sides]
