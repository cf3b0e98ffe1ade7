"""Which units to keep so that the network meets a latency and loses as little score as possible.

``choose`` keeps all of ``must``, adds only from ``may``, the best-scoring units of a group first, and never exceeds the
budget; prune and grow are the same call on complementary sets. ``select`` is ``choose`` with everything free. The
number of units per group comes from ``solve_grid``, over the candidate widths of the cost. ``uniform`` gives every
group the same share of its units instead, as large as the budget allows, and ``scaled`` removes whole blocks, too.

``select_lazily`` starts from few measurements: it solves, measures the cells of the selection, and solves again, until
all are measured. The first selection rests on the corners of every table. Each round measures the cells of the
network it chose; when all of these are known, the cells one candidate narrower and wider, group by group; when those
are known too, the selection no longer changes. Wrong prices elsewhere can hide a better network: the *regret*, measured
in ``docs/results.md``.
"""

from __future__ import annotations

import math
import numbers
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Unpack

import numpy as np
from torch import Tensor

from halpiee.errors import BudgetError, UsageError, need
from halpiee.selection.cost import Also, Cost, LatencyCost
from halpiee.selection.grid import FloatArray, Searching
from halpiee.selection.limits import solve_within
from halpiee.selection.options import blocks, offer
from halpiee.selection.solve import solve_grid
from halpiee.structure.groups import Structure
from halpiee.structure.plan import Selection
from latency.op import CONTRACTIONS

if TYPE_CHECKING:
    from halpiee.sparsity.distribution import Latency
    from latency.op import Op
    from latency.predict import Calibration
    from latency.sweeping import LazySweep


def select(
    scores: Mapping[str, Tensor], cost: Cost, budget_us: float | str | Latency, **searching: Unpack[Searching]
) -> Selection:
    """Selects the units of a network that meet a latency with the most score.

    Args:
        scores: every prunable group: Tensor ``[size]``, higher is more worth keeping.
        cost: the latency model, or another cost of the network.
        budget_us: the most of it: the largest latency, calibrated, in µs; as text (``"50%"``, ``"12.5ms"``) or
            ``Latency`` also a share of the dense latency.
        **searching: ``solver`` (``joint``, ``cpsat``, or ``linear``, which may miss the budget), ``gap``,
            ``time_limit_s``, ``seed``: see ``halpiee.solve_grid``.

    Raises:
        UsageError: no latency, a prunable group without scores, or scores that do not fit.
        BudgetError: a budget below the narrowest network; ``.minimum`` holds its latency in µs.
    """
    need(scores, Mapping, "scores", "give {group name: a score per unit}, as halpiee.score returns")
    missing = [g.name for g in cost.structure.prunable if g.name not in scores]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:5]) + (" …" if len(missing) > 5 else "")
        raise UsageError(
            f"scores of every prunable group are needed; {len(missing)} are missing: {shown}; "
            "score them, or use choose(…), which leaves groups without scores whole"
        )
    return choose(scores, cost, _in_unit(budget_us, cost), **searching)


def _in_unit(given: object, cost: Cost) -> float:
    """Returns a budget in the unit of a cost."""
    from halpiee.sparsity.distribution import Latency, as_budget

    if isinstance(given, numbers.Real) and not isinstance(given, bool):
        return math.inf if given > 1e300 else float(given)  # type: ignore[operator]
    budget = as_budget(given, latency=True)
    if not isinstance(budget, Latency):
        raise UsageError(
            f"a selection within {budget} was asked; give a latency in µs, such as 800 or '50%'; densities are for "
            "halpiee.prune_once and the methods"
        )
    return budget.us if budget.us is not None else (budget.fraction or 1.0) * cost.dense


def choose(
    scores: Mapping[str, Tensor],
    cost: Cost,
    budget: float,
    *,
    must: Mapping[str, Tensor] | None = None,
    may: Mapping[str, Tensor] | None = None,
    protect: Collection[str] = (),
    values: Mapping[str, FloatArray] | None = None,
    **searching: Unpack[Searching],
) -> Selection:
    """Keeps all of ``must`` and adds the best of ``may`` (BoolTensors ``[size]`` by group) within a budget of a cost.

    Within a group units are added by score, ties by index. Widths are the candidates of the cost plus the number of
    units of ``must``; a group that may not vanish keeps at least one unit. Afterwards no group has a next allowed width
    of no less value that still fits (``joint`` and ``cpsat``). Groups without scores, and those to ``protect``, keep
    both whole.

    ``values`` are, per group, what keeping its best 0, 1, … units is worth, float ``[size + 1]``; by default the sum of
    their scores. Removing a block (``options.blocks``) costs what the widths of 0 of its groups add up to.
    ``searching`` is as for ``halpiee.solve_grid``; ``linear`` takes Eq. 5 around ``must`` where there is one (grow),
    else around all that may stay.

    Raises:
        UsageError: unknown groups, wrong shapes, scores that are not finite, a group that would be left empty, or
            ``linear`` of a cost with further limits; a BudgetError: ``must`` and the narrowest widths do not fit.
    """
    offers = offer(scores, cost, must=must, may=may, protect=protect, values=values)
    limits = [(cost, budget)]
    if not offers.free:
        limits += [(one.cost, one.most) for one in cost.also]
        none = np.zeros(0, dtype=np.int64)
        whole = offers.selection(limits, none, value=0.0, upper_bound=0.0, path="whole")
        for (limited, most), used in zip(limits, whole.used, strict=True):
            if used > most + 1e-9 * abs(most):
                raise _too_small(limited, most, used)
        return whole
    if cost.also:
        return solve_within(offers, [Also("the budget", cost, budget), *cost.also], **searching)
    start = None
    if searching.get("solver") == "linear":
        grow = any(bool(one.must.any()) for one in offers.free.values())
        start = [0 if grow else len(one.counts) - 1 for one in offers.free.values()]
    try:
        found = solve_grid(
            offers.values, offers.terms, cost.to_raw(budget), widths=offers.counts, start=start, **searching
        )
    except BudgetError as error:
        raise _too_small(cost, budget, cost.from_raw(error.minimum)) from None
    return offers.selection(
        limits, found.choice, value=found.value, upper_bound=found.upper_bound, path=found.path
    )


def _too_small(
    cost: Cost, budget: float, minimum: float, what: str = "budget", least: str = "narrowest network allowed"
) -> BudgetError:
    share = f", or for a share of the dense latency as text: '{budget:.0%}'" if 0 < budget <= 1 else ""
    return BudgetError(
        f"a {what} of {budget:.1f} {cost.unit} was asked; the {least} takes {minimum:.1f} "
        f"{cost.unit}; ask for at least {math.ceil(minimum * 10) / 10:.1f} {cost.unit}{share}",
        minimum=minimum,
    )


ROUNDS = 40
"""Rounds of measuring at most; a plan usually asks for fewer than ten."""


def select_lazily(
    scores: Mapping[str, Tensor],
    structure: Structure,
    tables: LazySweep,
    budget: float | str | Latency,
    *,
    calibration: Calibration | None = None,
    gap: float = 1e-3,
    protect: Collection[str] = (),
    offer: Callable[[LatencyCost], LatencyCost] = lambda cost: cost,
) -> tuple[Selection, LatencyCost]:
    """Returns a selection whose every cell, and those next to it, was measured, and the cost it was found with.

    ``tables`` is a lazy sweep, opened with the ops of this structure. ``gap`` holds for the prices known at the time;
    ``offer`` restricts the candidate widths of a cost: ``lambda cost: cost.restricted(…)``.

    Raises:
        BudgetError: a budget below the narrowest network.
    """
    for _ in range(ROUNDS):
        cost = offer(LatencyCost(structure, tables.profile, calibration))
        selection = choose(scores, cost, _in_unit(budget, cost), gap=gap, protect=protect)
        counts = selection.counts
        if not tables.measure(_cells(structure, counts)) and not tables.measure(_neighbours(cost, counts)):
            break
    return selection, cost


def _cells(structure: Structure, counts: Mapping[str, int]) -> list[tuple[Op, int, int]]:
    """Returns the cell of every op at some counts."""
    return [(timed.op, *structure.sides(timed, counts)) for timed in structure.ops]


def _neighbours(cost: LatencyCost, counts: Mapping[str, int]) -> list[tuple[Op, int, int]]:
    """Returns the cells of the networks that differ by one candidate width of one group."""
    found: dict[tuple[Op, int, int], None] = {}
    for name, options in cost.candidates.items():
        at = bisect_left(options, counts[name])
        for other in options[max(0, at - 1) : at + 2]:
            found.update(dict.fromkeys(_cells(cost.structure, {**counts, name: other})))
    return list(found)


def uniform(
    cost: Cost, budget: float, *, protect: Collection[str] = (), gone: Collection[str] = ()
) -> dict[str, int]:
    """Returns the counts of the widest uniform network within a budget; see ``widest``.

    Widths are the candidates of the cost above 0; protected groups stay whole, those in ``gone`` are removed.

    Raises:
        BudgetError: a budget below the narrowest uniform network; ``.minimum`` holds its latency.
    """
    sizes = {g.name: g.size for g in cost.structure.prunable}
    options = {name: [k for k in cost.candidates[name] if k > 0] for name in sizes}
    options |= {name: [0] for name in gone} | {name: [sizes[name]] for name in protect if name in sizes}

    def measure(counts: Mapping[str, int]) -> float:
        return cost.total(counts) if all(one.holds(counts) for one in cost.also) else math.inf

    counts = widest(sizes, options, measure, budget)
    if counts is not None:
        return counts
    narrowest = {name: allowed[0] for name, allowed in options.items()}
    for one in cost.also:
        if not one.holds(narrowest):
            used = one.cost.total(narrowest)
            raise BudgetError(
                f"{one.name}: at most {one.most:.6g} {one.cost.unit} were asked of a uniform network; the "
                f"narrowest one takes {used:.6g}; ask for at least that",
                minimum=used,
            )
    raise _too_small(cost, budget, cost.total(narrowest), "uniform network", "narrowest one")


def scaled(cost: Cost, budget: float, *, protect: Collection[str] = ()) -> dict[str, int]:
    """Returns the counts of a network within a budget whose depth and width are scaled down alike.

    The blocks that may be removed whole are counted per residual stream; d of each stream's blocks go, the last first,
    the first block stays. For each d the widest uniform network is taken; of these the one whose share of blocks is
    nearest to its mean share of units, in their logarithms (compound scaling: Tan & Le 2019, arXiv 1905.11946). Without
    such blocks, as in a structure that was traced without ``vanish=True``, it is ``uniform``.

    Raises:
        BudgetError: a budget below the narrowest of these networks; ``.minimum`` holds what that takes.
    """
    streams = list(_streams(cost.structure, protect).values())
    total = sum(map(len, streams))
    best: tuple[float, dict[str, int]] | None = None
    lowest = math.inf
    for gone in range(max(map(len, streams), default=1)):
        removed = [block for stream in streams for block in stream[1:][::-1][:gone]]
        try:
            gone_groups = {name for block in removed for name in block}
            counts = uniform(cost, budget, protect=protect, gone=gone_groups)
        except BudgetError as error:
            lowest = min(lowest, error.minimum)
            continue
        kept = [counts[g.name] / g.size for g in cost.structure.prunable if counts[g.name]]
        depth = 1 - len(removed) / total if total else 1.0
        off = abs(math.log(depth) - math.log(sum(kept) / len(kept)))
        if best is None or off < best[0]:
            best = off, counts
    if best is None:
        raise _too_small(cost, budget, lowest, "network", "smallest one")
    return best[1]


def _streams(structure: Structure, protect: Collection[str]) -> dict[frozenset[str], list[tuple[str, ...]]]:
    """Returns the blocks that may be removed whole, in order, by the groups that they write into."""
    found: dict[frozenset[str], list[tuple[str, ...]]] = {}
    for block in blocks(structure):
        if set(block) & set(protect):
            continue
        written = frozenset(
            name
            for timed in structure.ops
            if timed.op.kind in CONTRACTIONS and {name for name, _ in timed.in_groups} & set(block)
            for name, _ in timed.out_groups
            if name not in block
        )
        found.setdefault(written, []).append(block)
    return found


def widest(
    sizes: Mapping[str, int],
    options: Mapping[str, Sequence[int]],
    measure: Callable[[Mapping[str, int]], float],
    limit: float,
    *,
    rising: bool = False,
) -> dict[str, int] | None:
    """Returns the counts of the widest uniform network of at most ``limit`` by ``measure``, or None where none fits.

    At a ratio r every group keeps the one of its ``options`` (ascending, above 0) nearest to r · size, the wider one of
    two equally near. The largest r whose network fits is taken. Then single groups step to their next option while one
    fits, always the one with the largest remainder (r · size − count) / (next − count), the first of equal ones, with r
    where the ratio stopped. Afterwards no single step of any group fits.

    Where the size never falls as a group grows (``rising``) the ratio is found by bisection, else by a search of all
    ratios at which a count changes, from the widest down.
    """
    steps = {
        name: [Fraction(a + b, 2 * sizes[name]) for a, b in pairwise(allowed)]
        for name, allowed in options.items()
    }
    ratios = sorted({ratio for found in steps.values() for ratio in found})

    def rounded(n: int) -> dict[str, int]:
        """Returns the network of the n-th ratio; that of 0 is the narrowest."""
        if n == 0:
            return {name: allowed[0] for name, allowed in options.items()}
        return {name: allowed[bisect_right(steps[name], ratios[n - 1])] for name, allowed in options.items()}

    def fits(counts: Mapping[str, int]) -> bool:
        return measure(counts) <= limit

    numbers = range(len(ratios) + 1)
    if rising:
        at = bisect_right(numbers, False, key=lambda n: not fits(rounded(n))) - 1
    else:
        at = next((n for n in reversed(numbers) if fits(rounded(n))), -1)
    if at < 0:
        return None
    counts = rounded(at)
    stopped = ratios[at] if at < len(ratios) else Fraction(1)
    grown = True
    while grown:
        # A step that did not fit fits later only where another one made the network cheaper.
        grown = False
        left = {name for name in options if counts[name] < options[name][-1]}
        while left:
            wider = {name: options[name][bisect_right(options[name], counts[name])] for name in left}
            name = max(
                (name for name in options if name in left),
                key=lambda name: (stopped * sizes[name] - counts[name]) / (wider[name] - counts[name]),
            )
            if fits({**counts, name: wider[name]}):
                counts[name], grown = wider[name], True
            if counts[name] != wider[name] or counts[name] == options[name][-1]:
                left.remove(name)
    return counts
