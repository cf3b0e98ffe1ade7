"""The verb: which units to keep so that the network meets a latency and loses as little score as possible.

``choose`` keeps all of ``must``, adds only from ``may``, the best-scoring units of a group first, and never
passes the budget; prune and grow are the same call on complementary sets. ``select`` is ``choose`` with
everything free. The number of units per group comes from ``solve_grid``, over the candidate widths of the
cost.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from halpiee.errors import BudgetError, UsageError
from halpiee.selection.cost import LatencyCost
from halpiee.selection.problem import GridSolution, Solver, relative_gap, solve_grid
from halpiee.selection.terms import FloatArray, IntArray

__all__ = ["Selection", "choose", "select"]


@dataclass(frozen=True)
class Selection:
    """Counts per group, which units they are, and how far from optimal that can be at most.

    Attributes:
        keep: every prunable group: BoolTensor ``[size]``.
        counts: every prunable group: units kept.
        latency_us: predicted, calibrated.
        budget_us: what was asked.
        value: sum of the scores of the units that were chosen (``must`` is not counted).
        upper_bound: no selection within the budget has a higher value (``linear``: of its own linearised
            problem).
        next_step_us: smallest extra latency of any group's next allowed width; NaN when nothing can grow.
        solver: ``joint``, ``linear`` or ``cpsat``.
        path: how the solver got there.
    """

    keep: dict[str, Tensor]
    counts: dict[str, int]
    latency_us: float
    budget_us: float
    value: float
    upper_bound: float
    next_step_us: float
    solver: str
    path: str

    @property
    def gap(self) -> float:
        """Certified relative gap: (upper_bound − value) / max(|upper_bound|, 1e-12)."""
        return relative_gap(self.value, self.upper_bound)

    @property
    def slack_us(self) -> float:
        """What is left of the budget."""
        return self.budget_us - self.latency_us


@dataclass(frozen=True)
class _Offer:
    """What one free group offers.

    Attributes:
        must: bool ``[size]``, kept in any case.
        order: units that may be added, best first.
        counts: int ``[n]``, widths to choose from, ascending.
        values: float ``[n]``, summed score of the units added at each width.
    """

    must: Tensor
    order: Tensor
    counts: IntArray
    values: FloatArray

    def keep(self, count: int) -> Tensor:
        """Returns bool ``[size]`` with ``count`` units."""
        keep = self.must.clone()
        keep[self.order[: count - int(self.must.sum())]] = True
        return keep


def select(
    scores: Mapping[str, Tensor],
    cost: LatencyCost,
    budget_us: float,
    *,
    solver: Solver = "joint",
    gap: float = 1e-3,
) -> Selection:
    """Selects the units of a network that meet a latency with the most score.

    Args:
        scores: every prunable group: Tensor ``[size]``, higher is more worth keeping.
        cost: the latency model.
        budget_us: the largest latency, calibrated, in µs.
        solver: ``joint``, ``cpsat`` or ``linear`` (HALP's own formulation, which may miss the budget).
        gap: relative gap to prove.

    Raises:
        UsageError: a prunable group without scores, or scores that do not fit.
        BudgetError: a budget below the narrowest network; ``.minimum`` holds its latency in µs.
    """
    missing = [g.name for g in cost.structure.prunable if g.name not in scores]
    if missing:
        shown = ", ".join(repr(name) for name in missing[:5]) + (" …" if len(missing) > 5 else "")
        raise UsageError(
            f"scores of every prunable group are needed; {len(missing)} are missing: {shown}; "
            "score them, or use choose(…), which leaves groups without scores whole"
        )
    return choose(scores, cost, budget_us, solver=solver, gap=gap)


def choose(
    scores: Mapping[str, Tensor],
    cost: LatencyCost,
    budget_us: float,
    *,
    must: Mapping[str, Tensor] | None = None,
    may: Mapping[str, Tensor] | None = None,
    solver: Solver = "joint",
    gap: float = 1e-3,
    protect: Collection[str] = (),
    time_limit_s: float | None = None,
) -> Selection:
    """Keeps all of ``must`` and adds the best of ``may`` within a latency.

    Within a group units are added by score, ties by index. Widths are the candidates of the cost plus the
    number of units of ``must``; a group that may not vanish keeps at least one unit. Afterwards no group has
    a next allowed width of no less value that still fits (``joint`` and ``cpsat``).

    Args:
        scores: Tensor ``[size]`` per group; a group without scores keeps ``must`` and ``may`` whole.
        cost: the latency model.
        budget_us: the largest latency, calibrated, in µs.
        must: BoolTensor ``[size]`` per group; default: nothing.
        may: BoolTensor ``[size]`` per group; default: everything.
        solver: ``joint``, ``cpsat``, or ``linear``: Eq. 5 around ``must`` where there is one (grow), else
            around everything that may stay (prune).
        gap: relative gap to prove.
        protect: groups that keep ``must`` and ``may`` whole.
        time_limit_s: after this the best selection so far is returned with its gap.

    Raises:
        UsageError: unknown groups, wrong shapes, scores that are not finite, a group that would be left
            empty.
        BudgetError: a budget that ``must`` and the narrowest widths do not fit in; ``.minimum`` in µs.
    """
    must, may = must or {}, may or {}
    _check_names(scores, cost, "scores")
    _check_names(must, cost, "must")
    _check_names(may, cost, "may")
    offers: dict[str, _Offer] = {}
    whole: dict[str, Tensor] = {}
    for group in cost.structure.prunable:
        needed = _mask(must, group.name, group.size, default=False, what="must")
        possible = _mask(may, group.name, group.size, default=True, what="may")
        if group.name in protect or group.name not in scores:
            whole[group.name] = needed | possible
        else:
            score = _score(scores, group.name, group.size)
            offers[group.name] = _offer(
                group.name, score, needed, possible & ~needed, cost.candidates[group.name], group.may_vanish
            )
    options = {name: offer.counts for name, offer in offers.items()}
    fixed = {name: np.array([int(mask.sum())]) for name, mask in whole.items()}
    keep = dict(whole)
    if offers:
        terms, constant_us = cost.grid({**options, **fixed})
        solution = _solve(
            offers, terms, budget_us, constant_us, solver=solver, gap=gap, time_limit_s=time_limit_s
        )
        for k, (name, offer) in zip(solution.choice, offers.items(), strict=True):
            keep[name] = offer.keep(int(offer.counts[k]))
        value, upper_bound, path = solution.value, solution.upper_bound, solution.path
    else:
        value, upper_bound, path = 0.0, 0.0, "whole"
    counts = {g.name: int(keep[g.name].sum()) for g in cost.structure.prunable}
    latency_us = cost.total_us(counts)
    if not offers and latency_us > budget_us * (1 + 1e-9):
        raise BudgetError(
            f"a budget of {budget_us:.1f} µs was asked; nothing may be removed and the network takes "
            f"{latency_us:.1f} µs; ask for at least that",
            minimum=latency_us,
        )
    return Selection(
        keep={g.name: keep[g.name] for g in cost.structure.prunable},
        counts=counts,
        latency_us=latency_us,
        budget_us=float(budget_us),
        value=value,
        upper_bound=upper_bound,
        next_step_us=_next_step_us(cost, counts, options),
        solver=solver,
        path=path,
    )


def _solve(
    offers: dict[str, _Offer],
    terms: list[tuple[int | tuple[int, ...] | None, int | tuple[int, ...] | None, FloatArray]],
    budget_us: float,
    constant_us: float,
    *,
    solver: Solver,
    gap: float,
    time_limit_s: float | None,
) -> GridSolution:
    start = [0 if bool(offer.must.any()) else len(offer.counts) - 1 for offer in offers.values()]
    try:
        return solve_grid(
            [offer.values for offer in offers.values()],
            # A fixed term of the constant keeps the budget, and what is reported of it, in whole latencies.
            [*terms, (None, None, np.array([[constant_us]]))],
            budget_us,
            widths=[offer.counts for offer in offers.values()],
            solver=solver,
            start=start if solver == "linear" else None,
            gap=gap,
            time_limit_s=time_limit_s,
        )
    except BudgetError as error:
        raise BudgetError(
            f"a budget of {budget_us:.1f} µs was asked; the narrowest network allowed takes "
            f"{error.minimum:.1f} µs; "
            f"ask for at least {math.ceil(error.minimum * 10) / 10:.1f} µs",
            minimum=error.minimum,
        ) from None


def _offer(
    name: str, score: Tensor, must: Tensor, may: Tensor, candidates: tuple[int, ...], may_vanish: bool
) -> _Offer:
    units = may.nonzero().flatten()
    order = units[torch.argsort(score[units], descending=True, stable=True)]
    base, most = int(must.sum()), int(must.sum()) + len(order)
    counts = {k for k in candidates if base <= k <= most}
    if base > 0 or may_vanish:
        counts.add(base)
    if not counts and most > 0:
        counts.add(most)
    if not counts:
        raise UsageError(
            f"must and may together leave no unit in {name!r}, which may not vanish; "
            "offer at least one unit of it"
        )
    widths = np.array(sorted(counts), dtype=np.int64)
    sums = np.concatenate([[0.0], np.cumsum(score[order].numpy())])
    return _Offer(must, order, widths, sums[widths - base])


def _next_step_us(cost: LatencyCost, counts: dict[str, int], options: Mapping[str, IntArray]) -> float:
    extra = math.nan
    for name, allowed in options.items():
        wider = allowed[allowed > counts[name]]
        if len(wider):
            step = cost.step_us(counts, name, int(wider[0]))
            extra = step if math.isnan(extra) else min(extra, step)
    return extra


def _check_names(given: Mapping[str, Tensor], cost: LatencyCost, what: str) -> None:
    for name in given:
        if name not in cost.structure.by_name:
            close = difflib.get_close_matches(name, cost.structure.by_name, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"{what} names the group {name!r}, which the structure does not have{hint}")


def _mask(given: Mapping[str, Tensor], name: str, size: int, *, default: bool, what: str) -> Tensor:
    mask = given.get(name)
    if mask is None:
        return torch.full((size,), default, dtype=torch.bool)
    if mask.dtype != torch.bool or tuple(mask.shape) != (size,):
        raise UsageError(
            f"{what}[{name!r}] must be a bool tensor of shape ({size},), one entry per unit; "
            f"found {mask.dtype} {tuple(mask.shape)}"
        )
    return mask.detach().cpu()


def _score(scores: Mapping[str, Tensor], name: str, size: int) -> Tensor:
    score = scores[name].detach().to("cpu", torch.float64)
    if tuple(score.shape) != (size,):
        raise UsageError(
            f"scores[{name!r}] must have shape ({size},), found {tuple(score.shape)}; one per unit"
        )
    if not bool(torch.isfinite(score).all()):
        at = int((~torch.isfinite(score)).nonzero()[0])
        raise UsageError(
            f"scores[{name!r}] holds {float(score[at])} at unit {at}; every score must be finite: "
            "drop the batches that gave NaN or infinity"
        )
    return score
