"""Which units to freeze, from the record of a smaller copy: do the forward's own numbers follow the channels?

A reshape, a slice or a divisor written as a number stays the same when channels are removed. So every prunable group
loses some units, and the smaller copy runs with the *original* units as labels. Units are frozen where an op fails,
unites two different units, moves the remaining channels differently (``Move``), or has other scalars, and where an
output has another shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halpiee.structure.groups import Structure
from halpiee.structure.labels import Atoms, CheckedUnits, Finding, together
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import Move, stays_the_same
from halpiee.structure.shrink import Cut, alive_of

DOES_NOT_FOLLOW = "a size or an index there does not follow the channels"

ANOTHER_PATH = "the forward takes another path at another width"

FAILS = "the forward fails at other widths"

CHECKS = "checks its widths"
"""Reason of a failure in a module at none of the ops that are recorded."""


@dataclass(frozen=True)
class Misplaced:
    """An op that moves the remaining channels differently than in the full network."""

    place: int  # its number among the moves
    units: Atoms  # those whose channels it moves
    reason: str


def irregular_keeps(structure: Structure) -> list[dict[str, Tensor]]:
    """Returns keeps that take an irregular share of the units out of the prunable groups.

    Groups of one size lose different numbers in at least one keep: only then a forward fails that cuts one by the width
    of another. A size has few widths, so many groups of a small one need several keeps: the digits of a group's number
    say how many units it loses in each. The last keep leaves few units, the more the fewer the first one leaves, to
    find a forward that compares a width with a number or another width; at least two, as torch takes other paths at a
    width of one.
    """
    generator = torch.Generator().manual_seed(1)
    groups_of = Counter(group.size for group in structure.prunable)
    told_apart = dict.fromkeys(groups_of, 1)
    keeps: list[dict[str, Tensor]] = []
    few = {}
    while groups_of and (not keeps or any(told_apart[size] < n for size, n in groups_of.items())):
        digits = {size: widths(size, first=not keeps) for size in groups_of}
        numbers: Counter[int] = Counter()
        keep = {}
        for group in structure.prunable:
            digit = numbers[group.size] // told_apart[group.size] % digits[group.size]
            numbers[group.size] += 1
            keep[group.name] = irregular(group.size, digit, generator, first=not keeps)
            if not keeps:
                few[group.name] = torch.randperm(group.size, generator=generator) < 2 + digit
        keeps.append(keep)
        told_apart = {size: n * digits[size] for size, n in told_apart.items()}
    return [*keeps, few] if few else keeps


def widths(size: int, *, first: bool) -> int:
    """Returns how many widths a group can have in a keep; every group loses some in the first one."""
    if first:
        return size - 3 - max(0, size // 3 - 2) if size > 3 else 1
    return max(2, size - 1)


def irregular(size: int, digit: int, generator: torch.Generator, *, first: bool) -> Tensor:
    """Returns a mask that removes a third, and ``digit`` more, in the first keep, ``digit`` units in the others."""
    mask = torch.ones(size, dtype=torch.bool)
    if not first:
        mask[torch.randperm(size, generator=generator)[:digit]] = False
    elif size > 3:
        # the ends find cuts that begin or end at a fixed place; torch takes other paths at a width of 1
        mask[[0, -1]] = False
        others = 3 + torch.randperm(size - 4, generator=generator)
        mask[others[: max(0, size // 3 - 2) + digit]] = False
    else:
        mask[torch.randint(size, (1,), generator=generator)] = False
    return mask


def differences(
    structure: Structure,
    full: Recorder,
    small: Recorder,
    error: Exception | None,
    misplaced: Misplaced | None,
) -> list[Finding]:
    """Returns the units that must stay: where the smaller model failed, united units or differed.

    ``full`` is the record of the full model, ``small`` of the smaller one, with the structure's units as atoms and the
    ``error`` that its forward raised; ``misplaced`` is the first op that moves the remaining channels differently.
    """
    assert isinstance(small.units, CheckedUnits)
    if misplaced is not None and (error is None or small.failed_at != full.moves[misplaced.place].where):
        return [(misplaced.units, misplaced.reason)]
    found = [(units, f"{where}: {DOES_NOT_FOLLOW}") for units, where in small.units.met]
    if found:
        return found[:1] if error is None else found
    if error is not None:
        return failure(structure, small, error)
    for (name, scalars, _), (other, others, label) in zip(full.scalars, small.scalars, strict=False):
        if name != other:
            return [(everything(structure), ANOTHER_PATH)]
        if scalars != others:
            return [(known(small, label), f"{name}: a number computed from the width")]
    if full.made != small.made:
        changed = [n for a, b in zip(full.made, small.made, strict=False) if a != b for n in a]
        named = [g for g in structure.prunable if g.size in changed] or list(structure.prunable)
        return [(together(map(unit_range, named)), "a number computed from the width becomes a tensor")]
    if len(full.scalars) != len(small.scalars):
        return [(everything(structure), ANOTHER_PATH)]
    if full.output_shapes != small.output_shapes:
        return [(everything(structure), "the outputs change their shape with the width")]
    return []


def moved_differently(
    structure: Structure,
    full: Recorder,
    moves: Sequence[Move],
    cut: Cut,
    reached: Callable[[Move], bool] = lambda move: True,
) -> Misplaced | None:
    """Returns the first op that moves the remaining channels differently than in the full network.

    ``moves`` are those of the smaller network; ``reached`` says whether it came as far as a move of the full one.
    """
    numbers = np.full(len(full.units), -1, dtype=np.int64)
    numbers[structure.details["roots"]] = np.arange(structure.n_units)
    known: dict[int, tuple[Atoms, NDArray[np.bool_]]] = {}

    def units(label: Atoms) -> tuple[Atoms, NDArray[np.bool_]]:
        """Unit numbers of a label, each once, and which of its elements stay; many moves share a label."""
        if id(label) not in known:
            found = numbers[full.units.find(label)]
            known[id(label)] = np.unique(found), alive_of(cut.alive, found)
        return known[id(label)]

    for place, move in enumerate(full.moves):
        other = moves[place] if place < len(moves) else None
        if other is None and not reached(move):
            break
        followed = other is not None and move.is_like(other)
        if not move.axes and followed:
            continue
        if not move.axes:
            return Misplaced(place, everything(structure), ANOTHER_PATH)
        touched = np.unique(together(units(axis)[0] for axis in move.axes))
        left = [units(axis)[1] for axis in move.axes]
        if other is None or not followed or not stays_the_same(move, other, left):
            what = " with literal bounds" if move.dim is not None else f": {DOES_NOT_FOLLOW}"
            return Misplaced(place, touched[touched >= 0], f"{move.where}{what}")
    return None


def failure(structure: Structure, small: Recorder, error: Exception) -> list[Finding]:
    """Returns the units at the op, or else in the module, whose forward failed."""
    reason = f"{small.failed_at or type(error).__name__} with sizes that do not follow the channels"
    prunable = everything(structure)
    units = np.intersect1d(known(small, together(small.failed)), prunable)
    if not units.size:
        inside = [s.units for s in structure.slots if (s.tensor + ".").startswith(small.last_module + ".")]
        units = np.intersect1d(together(inside), prunable)
        prefix = small.last_module + "."
        across = [  # groups on layers inside and outside of the module
            unit_range(g)
            for g in structure.prunable
            if len({(layer + ".").startswith(prefix) for layer, _ in g.members}) == 2
        ]
        if across:  # a module that checks widths checks those of its inputs; its inner ones may follow
            units = together(across)
        reason = f"the forward of {small.last_module or 'the network'} {CHECKS}: {first_line(error)}"
    if not units.size:
        return [(prunable, f"{FAILS}: {first_line(error)}")]
    return [(units, reason)]


def first_line(error: Exception) -> str:
    """Returns the first line of an error, at most 100 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:100]


def unit_range(group: Any) -> Atoms:
    """Returns the unit numbers of a group."""
    return np.arange(group.start, group.start + group.size, dtype=np.int64)


def everything(structure: Structure) -> Atoms:
    """Returns the unit numbers of all prunable groups."""
    return together(unit_range(g) for g in structure.prunable)


def known(small: Recorder, atoms: Atoms) -> Atoms:
    """Returns the unit numbers among atoms of the smaller model's record."""
    roots = np.unique(small.units.find(atoms.reshape(-1)))
    assert isinstance(small.units, CheckedUnits)
    return roots[(roots > 0) & (roots <= small.units.n_units)] - 1
