"""What may be chosen: per group the units in order of preference, the widths allowed, and what they are worth.

Scores and masks are checked here, and turned into the values and terms of a grid problem. Which sides of ops never
change width, and which groups the papers' recipes leave whole, is answered here too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from halpiee.errors import UsageError, unknown
from halpiee.selection.cost import Cost
from halpiee.selection.grid import FloatArray, IntArray, Side, relative_gap
from halpiee.structure.groups import GroupRef, Structure
from halpiee.structure.plan import Selection

if TYPE_CHECKING:
    from latency.op import Op

__all__ = ["RECIPES", "Offer", "Offers", "first_group", "fixed_sides", "offer", "protected"]


@dataclass(frozen=True)
class Offer:
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


@dataclass(frozen=True)
class Offers:
    """A choice of widths as a grid problem on raw sums of ops.

    Attributes:
        free: groups whose width is chosen, in the order of the grid.
        whole: groups that are not chosen, with what they keep.
        terms: for ``solve_grid``, with the budget ``cost.to_raw(limit)``; what no choice changes is a term with two
            fixed sides.
    """

    free: dict[str, Offer]
    whole: dict[str, Tensor]
    terms: list[tuple[Side, Side, FloatArray]]

    @property
    def values(self) -> list[FloatArray]:
        """Per free group the value of every width."""
        return [offer.values for offer in self.free.values()]

    @property
    def counts(self) -> list[IntArray]:
        """Per free group the widths allowed."""
        return [offer.counts for offer in self.free.values()]

    def keep(self, choice: IntArray) -> dict[str, Tensor]:
        """Returns bool ``[size]`` per group for one option per free group."""
        keep = dict(self.whole)
        for k, (name, one) in zip(choice, self.free.items(), strict=True):
            keep[name] = one.keep(int(one.counts[k]))
        return keep

    def selection(
        self,
        limits: Sequence[tuple[Cost, float]],
        choice: IntArray,
        *,
        value: float,
        upper_bound: float,
        path: str,
    ) -> Selection:
        """Returns a choice as a selection within some limits; the first one's cost gives groups and next step."""
        kept, (cost, _) = self.keep(choice), limits[0]
        keep = {g.name: kept[g.name] for g in cost.structure.prunable}
        counts = {name: int(mask.sum()) for name, mask in keep.items()}
        return Selection(
            keep=keep,
            used=tuple(limited.total(counts) for limited, _ in limits),
            budgets=tuple(float(most) for _, most in limits),
            value=value,
            upper_bound=upper_bound,
            gap=relative_gap(value, upper_bound),
            next_step=cost.next_step(counts, {name: one.counts for name, one in self.free.items()}),
            path=path,
        )


def offer(
    scores: Mapping[str, Tensor],
    cost: Cost,
    *,
    must: Mapping[str, Tensor] | None = None,
    may: Mapping[str, Tensor] | None = None,
    protect: Collection[str] = (),
) -> Offers:
    """Returns what may be chosen; the arguments are those of ``choose``.

    Raises:
        UsageError: unknown groups, wrong shapes, scores that are not finite, a group that would be left
            empty.
    """
    must, may = must or {}, may or {}
    for given, what in (
        (scores, "scores"),
        (must, "must"),
        (may, "may"),
        (dict.fromkeys(protect), "protect"),
    ):
        _check_names(given, cost, what)
    free: dict[str, Offer] = {}
    whole: dict[str, Tensor] = {}
    for group in cost.structure.prunable:
        needed = _mask(must, group.name, group.size, default=False, what="must")
        possible = _mask(may, group.name, group.size, default=True, what="may")
        score = _score(scores, group.name, group.size) if group.name in scores else None
        if group.name in protect or score is None:
            whole[group.name] = needed | possible
        else:
            free[group.name] = _offer(
                group.name, score, needed, possible & ~needed, cost.candidates[group.name], group.may_vanish
            )
    fixed = {name: np.array([int(mask.sum())]) for name, mask in whole.items()}
    terms = cost.grid({**{name: one.counts for name, one in free.items()}, **fixed})
    return Offers(free, whole, terms)


def _offer(
    name: str, score: Tensor, must: Tensor, may: Tensor, candidates: tuple[int, ...], may_vanish: bool
) -> Offer:
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
    return Offer(must, order, widths, sums[widths - base])


def _check_names(given: Mapping[str, object], cost: Cost, what: str) -> None:
    for name in given:
        if name not in cost.structure.by_name:
            hint = unknown(name, cost.structure.by_name, before="; ")
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


def fixed_sides(structure: Structure) -> dict[Op, tuple[bool, bool]]:
    """Returns for every op whether C_in and C_out are the same in every selection; for ``latency.sweep``.

    Ops that occur several times count as fixed where all of them are.
    """
    prunable = {group.name for group in structure.prunable}

    def fixed(refs: tuple[GroupRef, ...]) -> bool:
        return not any(name in prunable for name, _ in refs)

    found: dict[Op, tuple[bool, bool]] = {}
    for timed in structure.ops:
        ins, outs = found.get(timed.op, (True, True))
        found[timed.op] = (ins and fixed(timed.in_groups), outs and fixed(timed.out_groups))
    return found


RECIPES = ("resnet50", "mobilenet_v1")
"""Networks whose recipes in HALP and IEE leave the first convolution whole."""


def first_group(structure: Structure) -> str | None:
    """Returns the group that the first layer alone produces, or ``None``.

    HALP and IEE never prune the first convolution of ResNet-50 and MobileNet-V1: it is cheap, and everything reads
    it. Where the stem writes into a residual stream with other layers, protecting it would pin the whole stream, so
    there is nothing to protect.
    """
    if not structure.layers:
        return None
    first = structure.layers[0]
    for name, _ in first.out_groups:
        producers = {
            layer.name for layer in structure.layers if any(name == other for other, _ in layer.out_groups)
        }
        own = {layer for layer in producers if not _passes_through(structure, layer)}
        if structure.by_name[name].prunable and own == {first.name}:
            return name
    return None


def protected(structure: Structure, model: str, *, asked: bool | None = None) -> tuple[str, ...]:
    """Returns the groups that stay whole: the first one where it is asked for, or is the recipe of a network.

    Args:
        structure: of the network.
        model: its MODEL string.
        asked: whether the first group is protected; ``None``: as the recipes have it.
    """
    if not (model in RECIPES if asked is None else asked):
        return ()
    name = first_group(structure)
    return () if name is None else (name,)


def _passes_through(structure: Structure, name: str) -> bool:
    """Returns whether a layer only hands its channels on: a depthwise one writes the group that it reads."""
    layer = next(layer for layer in structure.layers if layer.name == name)
    return bool(layer.in_groups) and layer.in_groups == layer.out_groups
