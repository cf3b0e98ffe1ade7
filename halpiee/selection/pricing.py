"""The ops of a network with their tables, and the widths of both sides of each as a function of the counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from halpiee.errors import ProfileError
from halpiee.selection.cells import Cells, TableSource, table_of
from halpiee.structure.groups import GroupRef, Structure, TimedOp
from latency.op import CONTRACTIONS

__all__ = ["OpSide", "Priced", "price"]


@dataclass(frozen=True)
class OpSide:
    """One side of an op: channels per unit of each prunable group, and the channels that never change."""

    units: tuple[tuple[str, int], ...]
    fixed: int

    def channels(self, counts: Mapping[str, int]) -> int:
        """Returns the channels where ``counts`` holds every prunable group."""
        return self.fixed + sum(mult * counts[name] for name, mult in self.units)


@dataclass(frozen=True)
class Priced:
    """An op with its cells."""

    name: str
    kind: str
    cells: Cells
    ins: OpSide
    outs: OpSide


def price(structure: Structure, tables: TableSource) -> tuple[tuple[Priced, ...], tuple[str, ...]]:
    """Returns the ops that have a table, and as ``layer (kind)`` what takes time and has none.

    The latter are timed ops whose table is not there, and ops of a kind that no profile has entries for.

    Raises:
        ProfileError: a conv or linear op without a table.
    """
    priced, missing, refused = [], [], []
    cells: dict[str, Cells | None] = {}
    for timed in structure.ops:
        key = timed.op.table_key()
        if key not in cells:
            table = table_of(tables, timed.op)
            cells[key] = None if table is None else Cells(table, _label(timed))
        found = cells[key]
        name = f"{timed.layer} ({timed.op.kind})"
        if found is not None:
            ins = _side(structure, timed.in_groups, timed.op.c_in)
            outs = _side(structure, timed.out_groups, timed.op.c_out)
            priced.append(Priced(timed.layer, timed.op.kind, found, ins, outs))
        elif timed.op.kind in CONTRACTIONS:
            refused.append(name)
        else:
            missing.append(name)
    if refused:
        shown = ", ".join(refused[:5]) + (f" and {len(refused) - 5} more" if len(refused) > 5 else "")
        raise ProfileError(
            f"a latency was asked for {len(priced) + len(missing) + len(refused)} ops; the profile has "
            f"no table for {shown}; profile this model at this input size, batch and precision: "
            "halpiee profile MODEL"
        )
    missing += [f"{module} ({name})".lstrip() for module, name in structure.details.get("unpriced", ())]
    return tuple(priced), tuple(dict.fromkeys(missing))


def _side(structure: Structure, refs: tuple[GroupRef, ...], channels: int) -> OpSide:
    """Returns a side; channels of no group, or of a group that is not prunable, never change."""
    units: dict[str, int] = {}
    for name, mult in refs:
        if structure.by_name[name].prunable:
            units[name] = units.get(name, 0) + mult
    varying = sum(mult * structure.by_name[name].size for name, mult in units.items())
    return OpSide(tuple(sorted(units.items())), channels - varying)


def _label(timed: TimedOp) -> str:
    """Returns a layer with the groups that set its width."""
    ins, outs = (" + ".join(name for name, _ in refs) for refs in (timed.in_groups, timed.out_groups))
    return f"{timed.layer} (groups {ins} → {outs})"
