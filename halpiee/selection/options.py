"""The widths that may be chosen: per group the units in order of preference, the widths allowed, and their values.

Scores and masks are checked here, and turned into the values and terms of a grid problem. Here, too: which sides of
ops never change width, and which groups the papers' recipes leave whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halpiee.errors import UsageError, unknown
from halpiee.selection.cost import Cost
from halpiee.selection.grid import FloatArray, IntArray, Side, relative_gap
from halpiee.structure.groups import GroupRef, Structure
from halpiee.structure.plan import Selection
from latency.op import CONTRACTIONS

if TYPE_CHECKING:
    from latency.op import Op


@dataclass(frozen=True)
class Offer:
    """The widths of one group that may be chosen."""

    must: Tensor  # bool ``[size]``, kept in any case
    order: Tensor  # units that may be added, best first
    counts: IntArray  # int ``[n]``, widths to choose from, ascending
    values: FloatArray  # float ``[n]``, summed score of the units added at each width

    def keep(self, count: int) -> Tensor:
        """Returns bool ``[size]`` with ``count`` units."""
        keep = self.must.clone()
        keep[self.order[: count - int(self.must.sum())]] = True
        return keep


@dataclass(frozen=True)
class Offers:
    """A choice of widths as a grid problem on raw sums of ops."""

    free: dict[str, Offer]  # groups whose width is chosen, in the order of the grid
    whole: dict[str, Tensor]  # groups that are not chosen, with the units they keep
    # for ``solve_grid``, with the budget ``cost.to_raw(limit)``; what no choice changes is a term with two
    # fixed sides
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
    values: Mapping[str, FloatArray] | None = None,
) -> Offers:
    """Returns the widths that may be chosen; the arguments are those of ``choose``.

    Groups of one block vanish together or not at all (``blocks``): without one of them the others compute a constant.
    Removing the block costs all scores of its groups, or the ``values`` of their widths of 0.

    Raises:
        UsageError: unknown groups, wrong shapes, scores that are not finite, a group that would be left empty.
    """
    must, may = must or {}, may or {}
    for what, given in {"scores": scores, "must": must, "may": may, "protect": protect}.items():
        for name in given:
            if name not in cost.structure.by_name:
                hint = unknown(name, cost.structure.by_name, before="; ")
                raise UsageError(f"{what} names the group {name!r}, which the structure does not have{hint}")
    free: dict[str, Offer] = {}
    whole: dict[str, Tensor] = {}
    for group in cost.structure.prunable:
        needed = _mask(must, group.name, group.size, default=False, what="must")
        possible = _mask(may, group.name, group.size, default=True, what="may")
        score = _score(scores, group.name, group.size) if group.name in scores else None
        if group.name in protect or score is None:
            whole[group.name] = needed | possible
        else:
            curve = None if values is None else values.get(group.name)
            candidates = cost.candidates[group.name]
            free[group.name] = _offer(group.name, score, needed, possible & ~needed, candidates, curve)
    chained = chains(cost.structure)
    free = _whole_blocks(free, {name: int(mask.sum()) for name, mask in whole.items()}, chained)
    fixed = {name: np.array([int(mask.sum())]) for name, mask in whole.items()}
    terms = cost.grid({**{name: one.counts for name, one in free.items()}, **fixed})
    return Offers(free, whole, [*terms, *_barriers(free, chained, 2 * abs(cost.raw({})) + 1)])


@dataclass(frozen=True)
class Chained:
    """Two groups that may vanish, one read by the layer that writes the other."""

    first: str  # the group that is read
    second: str  # the group that is written
    # whether all that is written into ``second`` reads ``first`` alone: without it ``second`` is constant
    feeds: bool
    serves: bool  # whether all that reads ``first`` writes ``second``: without that nothing needs ``first``

    def forbidden(self, first: IntArray, second: IntArray) -> NDArray[np.bool_]:
        """Returns where one of the two is removed and the other then computes or serves nothing."""
        lost = (first[:, None] == 0) & (second[None] > 0) & self.feeds
        return np.asarray(lost | ((first[:, None] > 0) & (second[None] == 0) & self.serves))


def chains(structure: Structure) -> list[Chained]:
    """Returns the pairs of groups inside blocks that may be removed whole; O(ops)."""
    gone = {g.name for g in structure.prunable if g.may_vanish}
    readers: dict[str, set[frozenset[str]]] = {}
    writers: dict[str, set[frozenset[str]]] = {}
    for timed in structure.ops if gone else ():
        if timed.op.kind not in CONTRACTIONS:
            continue
        ins, outs = (frozenset(name for name, _ in refs) for refs in (timed.in_groups, timed.out_groups))
        if ins == outs:
            continue
        for name in ins:
            readers.setdefault(name, set()).add(outs)
        for name in outs:
            writers.setdefault(name, set()).add(ins)
    found = []
    for first in sorted(gone):
        for outs in sorted(readers.get(first, ()), key=sorted):
            for second in sorted(outs & gone):
                feeds = writers[second] == {frozenset((first,))}
                serves = readers[first] == {frozenset((second,))}
                if feeds or serves:
                    found.append(Chained(first, second, feeds, serves))
    return found


def blocks(structure: Structure) -> list[tuple[str, ...]]:
    """Returns the groups that vanish together, block by block, in the order of the structure."""
    block = {g.name: {g.name} for g in structure.prunable if g.may_vanish}
    for pair in chains(structure):
        if pair.feeds and pair.serves:
            joined = block[pair.first] | block[pair.second]
            block.update(dict.fromkeys(joined, joined))
    order = [g.name for g in structure.prunable]
    return list(dict.fromkeys(tuple(sorted(found, key=order.index)) for found in block.values()))


def _whole_blocks(
    free: Mapping[str, Offer], fixed: Mapping[str, int], chained: Sequence[Chained]
) -> dict[str, Offer]:
    """Returns the offers without the widths of 0 that a fixed neighbour forbids."""
    found = dict(free)
    for _ in chained:  # a group without its 0 forbids that of the next
        for pair in chained:
            for name, other in ((pair.first, pair.second), (pair.second, pair.first)):
                one = found.get(name)
                widths = found[other].counts if other in found else np.array([fixed[other]])
                if one is None or one.counts[0] > 0 or len(one.counts) == 1:
                    continue
                zero = np.zeros(1, dtype=np.int64)
                sides = (zero, widths) if name == pair.first else (widths, zero)
                if pair.forbidden(*sides).all():
                    found[name] = replace(one, counts=one.counts[1:], values=one.values[1:])
    return found


def _barriers(
    free: Mapping[str, Offer], chained: Sequence[Chained], height: float
) -> list[tuple[Side, Side, FloatArray]]:
    """Returns terms that lift the pairs forbidden by ``Chained`` above every budget."""
    number = {name: i for i, name in enumerate(free)}
    found: list[tuple[Side, Side, FloatArray]] = []
    for pair in chained:
        if pair.first in free and pair.second in free:
            forbidden = pair.forbidden(free[pair.first].counts, free[pair.second].counts)
            if forbidden.any():
                found.append((number[pair.first], number[pair.second], forbidden * np.float64(height)))
    return found


def _offer(
    name: str, score: Tensor, must: Tensor, may: Tensor, candidates: tuple[int, ...], curve: FloatArray | None
) -> Offer:
    units = may.nonzero().flatten()
    order = units[torch.argsort(score[units], descending=True, stable=True)]
    base, most = int(must.sum()), int(must.sum()) + len(order)
    counts = {k for k in candidates if base <= k <= most}
    if base > 0:
        counts.add(base)
    if not counts and most > 0:
        counts.add(most)
    if not counts:
        raise UsageError(
            f"must and may together leave no unit in {name!r}, which may not vanish; "
            "offer at least one unit of it"
        )
    widths = np.array(sorted(counts), dtype=np.int64)
    if curve is None:
        curve = np.concatenate([np.zeros(1 + base), np.cumsum(score[order].numpy())])
    elif curve.shape != (len(must) + 1,) or not np.isfinite(curve).all():
        raise UsageError(
            f"values[{name!r}] must be {len(must) + 1} finite numbers, one for each width from 0 on; found shape "
            f"{curve.shape}"
        )
    return Offer(must, order, widths, curve[widths] - curve[base])


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
    score = torch.as_tensor(scores[name]).detach().to("cpu", torch.float64)
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
    it. Where the stem writes into a residual stream with other layers, protecting it would freeze the whole stream, so
    there is nothing to protect. A depthwise layer, which writes the group that it reads, produces none.
    """
    for name, _ in structure.layers[0].out_groups if structure.layers else ():
        producers = {
            layer.name
            for layer in structure.layers
            if any(name == other for other, _ in layer.out_groups)
            if not layer.in_groups or layer.in_groups != layer.out_groups
        }
        if structure.by_name[name].prunable and producers == {structure.layers[0].name}:
            return name
    return None


def protected(structure: Structure, model: str, *, asked: bool | None = None) -> tuple[str, ...]:
    """Returns the groups to protect: the first one where ``asked``; where that is ``None``, if MODEL has a recipe."""
    if not (model in RECIPES if asked is None else asked):
        return ()
    name = first_group(structure)
    return () if name is None else (name,)
