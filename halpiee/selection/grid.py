"""The normal form of a grid problem, which every solver works on, and the solution that every solver returns.

Cost terms become *factors*: tables over one or two variables, all terms with the same variables added up. A
variable is a group (its domain: the options) or a *sum* of the widths of several groups (a concat; its
domain: the multiples of the widths' greatest common step). Sums are built by *adders*, ``out = left + step of
one group``, and share prefixes where one concat continues another (DenseNet), which keeps elimination narrow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypedDict, get_args

import numpy as np
from numpy.typing import NDArray

from halpiee.errors import UsageError, need

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Side = int | tuple[int, ...] | None
Solver = Literal["joint", "linear", "cpsat"]

TOLERANCE = 5e-10
"""Relative excess over the budget that counts as rounding: half of the contract's."""


class Searching(TypedDict, total=False):
    """How the verbs of this package search: their last keyword arguments."""

    # ``joint`` (dual bound, exact elimination, frontier; the default), ``cpsat`` (OR-Tools, hinted by
    # ``joint``) or ``linear`` (HALP's own formulation, which keeps *its own* cost within the budget)
    solver: Solver
    gap: float  # relative gap to prove before stopping, 1e-3 by default
    time_limit_s: float | None  # seconds, after which the best answer so far is returned with its gap
    seed: int  # of whatever is random (CP-SAT's search)


@dataclass(frozen=True)
class Search:
    """How to search, checked; see ``Searching``."""

    solver: Solver = "joint"
    gap: float = 1e-3
    time_limit_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver):
            raise UsageError(f"solver={self.solver!r} was asked; choose 'joint', 'linear' or 'cpsat'")
        need(self.gap, (int, float), "a gap", "give a number of at least 0, such as 1e-3")
        if not self.gap >= 0:
            raise UsageError(f"gap={self.gap!r} was asked; give a number of at least 0, such as 1e-3")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise UsageError(
                f"time_limit_s={self.time_limit_s!r} was asked; give seconds above 0, or None for no limit"
            )


def relative_gap(value: float, upper_bound: float) -> float:
    """Returns how far from optimal ``value`` can be at most: (upper bound − value) / |upper bound|."""
    return (upper_bound - value) / max(abs(upper_bound), 1e-12)


@dataclass(frozen=True)
class GridSolution:
    """One option per group, with its proof.

    Attributes:
        choice: int64 ``[G]``, the chosen option of every group.
        cost: true cost of ``choice``, in the budget's unit.
        value: ``Σ values[g][choice[g]]``.
        upper_bound: no choice within the budget has a higher value. For ``linear`` it bounds the linearised
            problem, the one that solver solves.
        budget: the largest cost allowed.
        path: how it was solved: ``whole`` (the best options all fit), ``dual`` (Lagrangian bound and repair),
            ``frontier`` (Pareto elimination), ``mini-bucket`` (the coupling is too wide for exact elimination: the
            bound is relaxed), ``cpsat``, ``linear``; ``+time`` is appended when the time limit cut it short.
        own_cost: cost of ``choice`` in the solver's own terms; differs from ``cost`` only for ``linear``.
    """

    choice: IntArray
    cost: float
    value: float
    upper_bound: float
    budget: float
    path: str
    own_cost: float

    @property
    def gap(self) -> float:
        """Certified relative gap: (upper_bound − value) / max(|upper_bound|, 1e-12)."""
        return relative_gap(self.value, self.upper_bound)

    @property
    def meets_budget(self) -> bool:
        """Whether the true cost is within the budget, up to a relative 1e-9."""
        return self.cost <= self.budget + 1e-9 * abs(self.budget)

    @property
    def slack(self) -> float:
        """The unused part of the budget, in its unit."""
        return self.budget - self.cost


class Term(NamedTuple):
    """One checked cost term: ``cost [n_in, n_out]``."""

    ins: Side
    outs: Side
    cost: FloatArray


class Factor(NamedTuple):
    """A cost table over variables in ascending order, one axis each."""

    scope: tuple[int, ...]
    table: FloatArray


class Adder(NamedTuple):
    """``out = left + steps[option of group]``; ``left`` is ``None`` where the sum starts."""

    left: int | None
    group: int
    out: int
    steps: IntArray


@dataclass
class Grid:
    """A problem in normal form; variables ``0 … G−1`` are the groups, later ones are sums.

    Attributes:
        touching: per group the factors that depend on it (derived).
        near: per group the groups that share a factor with it, itself included (derived).
    """

    values: list[FloatArray]  # per group float ``[n_g]``
    domains: list[int]  # number of states of every variable
    constant: float = 0.0  # cost of what does not depend on any choice
    factors: list[Factor] = field(default_factory=list)  # cost tables; at most one per scope
    # how sums are made, in an order in which every ``left`` is ready
    adders: list[Adder] = field(default_factory=list)
    # per sum variable its ``{group: steps [n_g]}``
    members: dict[int, dict[int, IntArray]] = field(default_factory=dict)
    terms: list[Term] = field(default_factory=list)  # the terms as given (what ``linear`` linearises)
    widths: list[IntArray] | None = None  # as given

    def __post_init__(self) -> None:
        self.touching: list[list[Factor]] = [[] for _ in self.values]
        self.near: list[set[int]] = [{g} for g in range(len(self.values))]
        for factor in self.factors:
            groups = self.groups_of(factor)
            for g in groups:
                self.touching[g].append(factor)
                self.near[g].update(groups)

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(self.values)

    def groups_of(self, factor: Factor) -> list[int]:
        """Returns the groups a factor depends on, directly or through a sum."""
        return sorted({g for v in factor.scope for g in self.members.get(v, (v,))})

    def states(self, choice: IntArray) -> list[int]:
        """Returns the state of every variable, groups and sums."""
        states = [int(k) for k in choice] + [0] * (len(self.domains) - self.n_groups)
        for v, members in self.members.items():
            states[v] = sum(int(steps[states[g]]) for g, steps in members.items())
        return states

    def cost(self, choice: IntArray) -> float:
        """Returns the true cost of a choice."""
        states = self.states(choice)
        return self.constant + sum(float(f.table[tuple(states[v] for v in f.scope)]) for f in self.factors)

    def value(self, choice: IntArray) -> float:
        """Returns the value of a choice."""
        return float(sum(value[k] for value, k in zip(self.values, choice, strict=True)))

    def solution(self, choice: IntArray, upper_bound: float, budget: float, path: str) -> GridSolution:
        """Returns a choice with its cost, value and proof."""
        cost = self.cost(choice)
        return GridSolution(choice, cost, self.value(choice), upper_bound, budget, path, own_cost=cost)

    def row(self, states: Sequence[int], g: int) -> FloatArray:
        """Returns float ``[n_g]``: the cost of all factors that touch a group, for each of its options."""
        total = np.zeros(self.domains[g])
        own = states[g]
        for factor in self.touching[g]:
            index: list[int | IntArray | slice] = []
            for v in factor.scope:
                if v == g:
                    index.append(np.arange(self.domains[g]))
                elif v in self.members and g in self.members[v]:
                    steps = self.members[v][g]
                    index.append(states[v] - steps[own] + steps)
                else:
                    index.append(states[v])
            total += factor.table[tuple(index)]
        return total


def normalise(values: list[FloatArray], terms: list[Term], widths: list[IntArray] | None) -> Grid:
    """Returns the normal form of checked values and terms; equal scopes are added up."""
    domains = [len(v) for v in values]
    builder = _Sums(domains, widths)
    builder.prepare(side for term in terms for side in (term.ins, term.outs))
    constant = 0.0
    tables: dict[tuple[int, ...], FloatArray] = {}
    for term in terms:
        (in_variable, in_rows), (out_variable, out_rows) = builder.axis(term.ins), builder.axis(term.outs)
        table = term.cost[np.ix_(in_rows, out_rows)]
        if in_variable is None and out_variable is None:
            constant += float(table[0, 0])
            continue
        if in_variable == out_variable:
            scope: tuple[int, ...] = (in_variable or 0,)
            table = np.diagonal(table)
        elif in_variable is None:
            scope, table = (out_variable or 0,), table[0]
        elif out_variable is None:
            scope, table = (in_variable,), table[:, 0]
        elif in_variable < out_variable:
            scope = (in_variable, out_variable)
        else:
            scope, table = (out_variable, in_variable), table.T
        tables[scope] = tables[scope] + table if scope in tables else np.array(table)
    return Grid(
        values=values,
        domains=builder.domains,
        constant=constant,
        factors=[Factor(scope, np.ascontiguousarray(table)) for scope, table in tables.items()],
        adders=builder.adders,
        members=builder.members,
        terms=terms,
        widths=widths,
    )


class _Sums:
    """Makes one variable per distinct sum of groups; a longer sum extends the longest one that it contains."""

    def __init__(self, domains: list[int], widths: list[IntArray] | None) -> None:
        self.domains = list(domains)
        self._n_options = list(domains)
        self._widths = widths
        self.adders: list[Adder] = []
        self.members: dict[int, dict[int, IntArray]] = {}
        self._variable: dict[tuple[tuple[int, int], ...], int] = {}
        self._step = 1

    def prepare(self, sides: object) -> None:
        """Makes the sum variables of all tuple sides."""
        wanted = {_multiset(side) for side in sides if isinstance(side, tuple)}  # type: ignore[attr-defined]
        if not wanted or self._widths is None:
            return
        steps = [int(d) for multiset in wanted for g, _ in multiset for d in np.diff(self._widths[g])]
        self._step = math.gcd(*steps) or 1
        for multiset in sorted(wanted, key=lambda m: (sum(n for _, n in m), m)):
            self._make(multiset)

    def axis(self, side: Side) -> tuple[int | None, IntArray]:
        """Returns a side's variable and, for each of its states, the row of the cost table."""
        if side is None:
            return None, np.zeros(1, dtype=np.int64)
        if not isinstance(side, tuple):
            return side, np.arange(self._n_options[side])
        assert self._widths is not None
        if len(side) == 1:
            return side[0], self._widths[side[0]]
        variable = self._variable[_multiset(side)]
        least = sum(int(self._widths[g][0]) for g in side)
        return variable, least + self._step * np.arange(self.domains[variable])

    def _make(self, multiset: tuple[tuple[int, int], ...]) -> None:
        assert self._widths is not None
        need = Counter(dict(multiset))
        if sum(need.values()) == 1:
            return
        left, have = None, Counter[int]()
        for known, variable in self._variable.items():
            if sum(have.values()) < sum(n for _, n in known) and all(need[g] == n for g, n in known):
                left, have = variable, Counter(dict(known))
        for g in sorted(need):
            if g in have:
                continue
            have[g] = need[g]
            steps = need[g] * (self._widths[g] - self._widths[g][0]) // self._step
            members = {**(self.members[left] if left is not None else {}), g: steps}
            out = len(self.domains)
            self.domains.append(1 + sum(int(s[-1]) for s in members.values()))
            self.members[out] = members
            self.adders.append(Adder(left, g, out, steps))
            left = out
            self._variable[tuple(sorted(have.items()))] = out


def _multiset(side: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted(Counter(side).items()))
