"""Which sides of a network's ops never change width: inputs, outputs, and what is frozen. No cell is measured there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from halpiee.structure.groups import GroupRef, Structure

if TYPE_CHECKING:
    from latency.op import Op

__all__ = ["fixed_sides"]


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
