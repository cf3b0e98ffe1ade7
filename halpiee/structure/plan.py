"""A selection, and a selection bound to a model: a plan, as JSON that cuts a fresh copy in another process.

The file of a plan holds all that cutting needs (the unit at each position of each tensor, run-length coded, and the
numbers that modules hold), so applying a plan traces nothing and needs no inputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor, nn

from halpiee.errors import StructureError, need
from halpiee.structure.groups import Structure
from halpiee.structure.labels import together
from halpiee.structure.shrink import alive_of, apply_kept, holds_number, kept_in
from latency.files import parsed, read_bytes, sound, write

SCHEMA = 1
"""Version of the file's layout."""

MOST_UNITS = 2**26
"""Most units and positions of a plan; the widest layer of the known networks has 2**16."""

Count = Annotated[int, Meta(ge=0, le=MOST_UNITS)]
Name = Annotated[str, Meta(max_length=1024)]

Run = Annotated[list[Annotated[int, Meta(ge=-MOST_UNITS, le=MOST_UNITS)]], Meta(min_length=3, max_length=3)]
"""``[first, step, count]``: ``count`` numbers from ``first`` on."""

Runs = list[Run]
"""Such triples, which spell an integer array."""

Number = tuple[
    Name,
    Name,
    Annotated[int, Meta(ge=0, le=64)] | None,
    Runs,
    Count,
    Annotated[int, Meta(ge=1, le=MOST_UNITS)],
]
"""A number that a module holds: module path, attribute, index or None, units counted, factor, divisor."""


@dataclass(frozen=True)
class Selection:
    """Which units of which groups or layers are kept, their cost, and a certified gap to the optimum.

    Attributes:
        keep: group or layer → BoolTensor of its shape; a solved selection names every prunable group.
        used: per limit what the selection costs, in its unit; the first one is the budget. Empty without prices.
        budgets: per limit the most that was allowed.
        value: sum of the scores of the units that were chosen; NaN where none were given.
        upper_bound: no selection within the limits has a higher value.
        gap: certified relative gap, (upper_bound − value) / |upper_bound|; NaN where nothing was solved.
        next_step: smallest extra cost, in the unit of the first limit, of any group's next allowed width; NaN where
            nothing can grow.
        path: how the solver got there; see ``halpiee.GridSolution``.
    """

    keep: Mapping[str, Tensor]
    used: tuple[float, ...] = ()
    budgets: tuple[float, ...] = ()
    value: float = math.nan
    upper_bound: float = math.nan
    gap: float = math.nan
    next_step: float = math.nan
    path: str = ""

    @cached_property
    def counts(self) -> dict[str, int]:
        """Units kept, per group or layer."""
        return {name: int(mask.sum()) for name, mask in self.keep.items()}

    @property
    def slack(self) -> float:
        """The unused part of the first limit; NaN without one."""
        return self.budgets[0] - self.used[0] if self.budgets and self.used else math.nan

    @property
    def latency_us(self) -> float:
        """The used part of the first limit, in its unit: µs of a latency; NaN where nothing was priced."""
        return self.used[0] if self.used else math.nan

    @property
    def budget_us(self) -> float:
        """The first limit, in its unit; NaN without one."""
        return self.budgets[0] if self.budgets else math.nan

    slack_us = slack

    @property
    def next_step_us(self) -> float:
        """``next_step``, of a latency in µs."""
        return self.next_step


@dataclass(frozen=True)
class PlannedGroup:
    """One prunable group: its size and the units that stay, ascending."""

    name: Name
    start: Count
    size: Annotated[int, Meta(ge=1, le=MOST_UNITS)]
    kept: list[Count]


@dataclass(frozen=True)
class Plan:
    """Which units of which model are kept, and the predicted latency.

    Attributes:
        groups: the prunable groups, with the units that stay.
        n_units: number of units of all groups.
        shapes: tensor name → shape of the dense model.
        slots: tensor name → dimension (as text, for JSON) → runs of unit numbers, −1 where a position always stays.
        attributes: module path, attribute, index or None, runs of the units counted, factor, divisor.
        model: the MODEL string that builds the dense model, where it is known.
        arguments: arguments of its builder.
        latency_us: predicted latency of the selection.
        budget_us: latency that was asked for, or None.
        upper_bound: no selection within the budget has a higher value, or None.
        gap: distance of the selection's value to it, relative, or None.
        target: what ``latency_us`` was predicted for: device, backend, dtype, batch, threads, as far as known.
        inputs: shapes, without their batch dimension, of the inputs it was traced for; empty in files of old.
    """

    groups: tuple[PlannedGroup, ...]
    n_units: Count
    shapes: dict[Name, list[Count]]
    slots: dict[Name, dict[Annotated[str, Meta(pattern="^[0-7]$")], Runs]]
    attributes: list[Number]
    model: Name = ""
    arguments: dict[Name, Any] = field(default_factory=dict)
    latency_us: float | None = None
    budget_us: float | None = None
    upper_bound: float | None = None
    gap: float | None = None
    target: dict[Name, str | int | float | None] = field(default_factory=dict)
    inputs: list[list[Annotated[int, Meta(ge=1, le=MOST_UNITS)]]] = field(default_factory=list)

    @classmethod
    def from_selection(
        cls,
        structure: Structure,
        selection: Selection,
        *,
        model: str = "",
        arguments: Mapping[str, Any] | None = None,
        budget_us: float | None = None,
        target: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Binds a selection to the structure it was made for.

        ``model`` is the MODEL string that builds the dense model, with ``arguments`` of its builder; ``budget_us`` the
        latency that was asked for, in µs; ``target`` what the latency was predicted for.

        Raises:
            StructureError: the selection's keep does not fit the structure.
        """
        need(
            getattr(selection, "keep", None),
            Mapping,
            "a keep",
            "give the selection that halpiee.select returns",
        )
        alive = structure.keep_vector(selection.keep)
        kept = {g: np.flatnonzero(alive[g.start : g.start + g.size]).tolist() for g in structure.prunable}
        return cls(
            groups=tuple(PlannedGroup(g.name, g.start, g.size, units) for g, units in kept.items()),
            n_units=structure.n_units,
            shapes={name: list(shape) for name, shape in structure.details["shapes"].items()},
            slots=slots_of(structure),
            attributes=[
                (a.module, a.name, a.at, runs(a.units), a.mul, a.div) for a in structure.details["attributes"]
            ],
            model=model,
            arguments=dict(arguments or {}),
            latency_us=known(selection, "latency_us"),
            budget_us=budget_us if budget_us is not None else known(selection, "budget_us"),
            upper_bound=known(selection, "upper_bound"),
            gap=known(selection, "gap"),
            target=dict(target or {}),
            inputs=[list(shape) for shape in structure.details.get("inputs", ())],
        )

    @property
    def image(self) -> tuple[int, ...] | None:
        """(channels, height, width) of the one image that the network takes; ``None`` where the plan does not say."""
        found = self.inputs[0] if len(self.inputs) == 1 else []
        return tuple(found) if len(found) == 3 else None

    @property
    def counts(self) -> dict[str, int]:
        """Units that stay, per prunable group."""
        return {group.name: len(group.kept) for group in self.groups}

    @property
    def keep(self) -> dict[str, Tensor]:
        """The keep of every prunable group, as bool tensors ``[size]``."""
        found = {}
        for group in self.groups:
            mask = torch.zeros(group.size, dtype=torch.bool)
            mask[group.kept] = True
            found[group.name] = mask
        return found

    def apply(self, fresh_model: nn.Module) -> nn.Module:
        """Returns the pruned copy of a dense model, which is not changed.

        Args:
            fresh_model: a model of the traced one's shapes, with any weights.

        Raises:
            StructureError: a layer of the model is not the traced one's; the message names it.
        """
        need(fresh_model, nn.Module, "a model", "give a dense network of the traced one's shapes")
        alive = np.ones(self.n_units, dtype=np.bool_)
        for group in self.groups:
            alive[group.start : group.start + group.size] = False
            alive[group.start + np.asarray(group.kept, dtype=np.int64)] = True
        slots = (
            (n, int(dim), spelled(units)) for n, dims in self.slots.items() for dim, units in dims.items()
        )
        kept = kept_in(slots, alive)
        attributes = [
            (module, name, at, int(alive_of(alive, spelled(units)).sum()) * mul // div)
            for module, name, at, units, mul, div in self.attributes
        ]
        modules = dict(fresh_model.named_modules())
        for module, name, at, _ in attributes:
            if module in modules and not holds_number(modules[module], name, at):
                raise StructureError(
                    f"the plan sets the number {name!r}{'' if at is None else f'[{at}]'} of the layer {module!r}, "
                    "which holds none there; use the model that was traced, or write the plan again with halpiee plan"
                )
        shapes = {name: tuple(shape) for name, shape in self.shapes.items()}
        compact = apply_kept(fresh_model, kept, attributes, shapes)
        assert isinstance(compact, nn.Module)
        return compact

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes the plan as JSON, one line per group and tensor; with ``overwrite`` over a file that is there.

        Raises:
            OutputInUseError: the file is there and may not be replaced; nothing was written.
            WriteError: it cannot be written.
        """
        need(path, (str, Path), "a plan's path", "give the path of a file to write")
        write(path, self.text(), overwrite=overwrite)

    def text(self) -> str:
        """Returns the JSON that ``save`` writes."""
        return indented({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Reads a plan.

        Raises:
            StructureError: the file is not there, is no plan, or has another schema version.
        """
        need(path, (str, Path), "a plan's path", "give the path of the file that halpiee plan writes")
        what = f"the plan {path}"
        again = "write it again with halpiee plan"
        data = read_bytes(Path(path), what=what, advice="write one with halpiee plan", error=StructureError)
        record = parsed(data, what=what, advice=again, error=StructureError)
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            found = record.get("schema") if isinstance(record, dict) else type(record).__name__
            raise StructureError(
                f"{what} has schema {repr(found)[:40]}, this version reads {SCHEMA}; {again}"
            )
        if odd := sorted(record.keys() - {"schema", *(f.name for f in fields(cls))}):
            raise StructureError(
                f"{what} lacks or adds a field ({odd[0][:80]!r}, which no plan has); {again}"
            )
        plan = sound(record, cls, what=what, advice=again, error=StructureError)
        if wrong := contradiction(plan) if plan.groups else "it has no group, and so would cut nothing":
            raise StructureError(f"{what} contradicts itself: {wrong}; {again}")
        return plan


def contradiction(plan: Plan) -> str | None:
    """Returns why the parts of a plan contradict each other, so that cutting would fail, or None."""
    end = 0
    for group in sorted(plan.groups, key=lambda g: g.start):
        last = -1
        for unit in group.kept:
            if not last < unit < group.size:
                return f"group {group.name!r} of {group.size} units keeps {unit} behind {last}"
            last = unit
        if group.start < end or group.start + group.size > plan.n_units:
            return f"group {group.name!r} has the units {group.start} to {group.start + group.size - 1}, not its own"
        end = group.start + group.size
    if len(plan.counts) < len(plan.groups):
        return "two groups have one name"
    for name, shape in plan.shapes.items():
        if math.prod(shape) > MOST_UNITS * 64 or len(shape) > 8:
            return f"tensor {name!r} is of shape {shape[:8]}"
    for name, dims in plan.slots.items():
        for dim, coded in dims.items():
            held = plan.shapes.get(name, [])
            if int(dim) >= len(held):
                return f"dimension {dim} of tensor {name!r} is sliced, which has {len(held)}"
            if sum(count for _, _, count in coded) != held[int(dim)] or _outside(coded, plan.n_units):
                return f"dimension {dim} of tensor {name!r} has {held[int(dim)]} positions, and other units"
    if (unheld := cut_nowhere(plan)) is not None:
        return f"unit {unheld} is cut, and lies in no tensor"
    for module, name, _, coded, _, _ in plan.attributes:
        if not name.isidentifier() or name.startswith("__"):
            return f"{name!r} of module {module!r} is no attribute"
        if sum(count for _, _, count in coded) > MOST_UNITS or _outside(coded, plan.n_units):
            return f"attribute {name!r} of module {module!r} counts other units"
    told = {name: getattr(plan, name) or 0.0 for name in ("latency_us", "budget_us", "upper_bound", "gap")}
    if odd := [f"{name} is {value}" for name, value in told.items() if not math.isfinite(value)]:
        return odd[0]
    if any(math.prod(shape) > MOST_UNITS or len(shape) > 8 for shape in plan.inputs):
        return f"inputs are of shape {plan.inputs[0][:8]}"
    return None


def cut_nowhere(plan: Plan) -> int | None:
    """Returns the first unit that goes and lies in no tensor, or None."""
    cut = np.zeros(plan.n_units, dtype=np.bool_)
    for group in plan.groups:
        cut[group.start : group.start + group.size] = True
        cut[group.start + np.asarray(group.kept, dtype=np.int64)] = False
    for coded in (one for dims in plan.slots.values() for one in dims.values()):
        units = spelled(coded)
        cut[units[units >= 0]] = False
    return int(cut.argmax()) if cut.any() else None


def _outside(coded: Runs, n_units: int) -> bool:
    """Whether runs spell anything but −1 and units."""
    ends = [(count, first, first + step * (count - 1)) for first, step, count in coded]
    return any(count < 1 or min(a, b) < -1 or max(a, b) >= n_units for count, a, b in ends)


def known(selection: Selection, name: str) -> float | None:
    """Returns a number of a selection as a float; ``None`` where it is NaN or missing."""
    value = getattr(selection, name, None)
    return None if value is None or math.isnan(value) else float(value)


def slots_of(structure: Structure) -> dict[str, dict[str, Runs]]:
    """Returns the unit numbers of every slot that a prunable unit is in, as runs."""
    prunable = np.zeros(structure.n_units, dtype=np.bool_)
    for group in structure.prunable:
        prunable[group.start : group.start + group.size] = True
    found: dict[str, dict[str, Runs]] = {}
    for slot in structure.slots:
        if prunable[slot.units[slot.units >= 0]].any():
            found.setdefault(slot.tensor, {})[str(slot.dim)] = runs(slot.units)
    return found


def runs(values: NDArray[np.int64]) -> Runs:
    """Returns ``[first, step, count]`` triples that spell an array, steps being 0 or 1 where they can."""
    found: Runs = []
    for value in values.tolist():
        if found:
            first, step, count = found[-1]
            if count == 1 and value - first in (0, 1):
                found[-1] = [first, value - first, 2]
                continue
            if count > 1 and value == first + step * count:
                found[-1][2] += 1
                continue
        found.append([value, 0, 1])
    return found


def spelled(coded: Runs) -> NDArray[np.int64]:
    """Returns the array that runs spell."""
    return together(first + step * np.arange(count, dtype=np.int64) for first, step, count in coded)


def indented(record: dict[str, Any]) -> str:
    """Returns JSON with one line per item of the top-level lists and dicts: short, and good to compare."""
    lines = []
    for key, value in record.items():
        text = json.dumps(value)
        if value and isinstance(value, dict | list | tuple):
            named = value.items() if isinstance(value, dict) else ((None, item) for item in value)
            items = (("" if k is None else f"{json.dumps(k)}: ") + json.dumps(v) for k, v in named)
            text = f"{text[0]}\n  " + ",\n  ".join(items) + f"\n {text[-1]}"
        lines.append(f"{json.dumps(key)}: {text}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"
