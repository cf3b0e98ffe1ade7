"""What one op was, as the dispatcher saw it, and what is noted of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from halpiee.structure.labels import Label
from halpiee.structure.units import Atoms

__all__ = [
    "Call",
    "Event",
    "LayerCall",
    "NormCall",
    "Role",
    "Side",
    "Spread",
    "Timing",
    "random_like",
    "tensors_of",
]

Side = Literal["out", "in", "norm"]

Role = tuple[Side, str]
"""Side of a layer (``out``, ``in``, ``norm``) and kind of the layer that a parameter dimension serves."""


@dataclass
class Call:
    """One op as the dispatcher saw it.

    Attributes:
        name: op name without namespace and overload, for example ``convolution``.
        func: the overload itself.
        args: positional arguments.
        kwargs: keyword arguments.
        out: what it returned.
        module: path of the innermost module that was running.
        api: name of the torch function that led to it.
        reads: value numbers of its tensor inputs.
    """

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    module: str
    api: str
    reads: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        """The op and where it ran, as reasons name it."""
        return f"{self.name} in {self.module}" if self.module else self.name

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Its tensor inputs, in order, those in lists included."""
        return tensors_of([self.args, self.kwargs])

    @cached_property
    def outputs(self) -> list[Tensor]:
        """Its tensor outputs, in order."""
        return tensors_of(self.out)


def tensors_of(value: Any) -> list[Tensor]:
    """Returns the tensors in nested lists, tuples, dicts and objects with fields, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors_of(v)]
    if isinstance(value, list | tuple | set):
        return [t for v in value for t in tensors_of(v)]
    if hasattr(value, "__dataclass_fields__") or hasattr(value, "tensors"):
        return [t for v in vars(value).values() for t in tensors_of(v)]
    return []


def random_like(value: Any, generator: torch.Generator) -> Any:
    """Returns the same nested inputs with floating tensors drawn from a normal distribution."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator).to(dtype=value.dtype, device=value.device)
    if isinstance(value, dict):
        return {k: random_like(v, generator) for k, v in value.items()}
    if isinstance(value, list):
        return [random_like(v, generator) for v in value]
    if isinstance(value, tuple):
        items = [random_like(v, generator) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


@dataclass(frozen=True)
class LayerCall:
    """One conv or linear call: its name, kind and the atoms on its two sides."""

    name: str
    kind: str
    ins: Atoms
    outs: Atoms


@dataclass(frozen=True)
class NormCall:
    """One norm over channels whose statistics must leave removed channels out.

    Attributes:
        module: path of the norm module.
        atoms: atoms along its channel dimension.
    """

    module: str
    atoms: Atoms


@dataclass(frozen=True)
class Timing:
    """What a rule knows of the time its op takes.

    Attributes:
        kind: kind of the timed op.
        ins: atoms of the channels that go in.
        outs: atoms of the channels that come out.
        fields: the other fields of the timed op.
        layer: name of the layer, where it is one.
    """

    kind: str
    ins: Atoms
    outs: Atoms
    fields: dict[str, Any] = field(default_factory=dict)
    layer: str = ""


@dataclass(frozen=True)
class Event:
    """One op in execution order, timed or not.

    Attributes:
        name: name of the op.
        module: path of the module.
        reads: value numbers it reads.
        writes: value numbers of its outputs.
        timing: what is known of its time, or None.
        batch: first size of the network's first input.
        unpriced: whether it takes time of its own that no timed op stands for.
        number: how many ops ran before it.
        changed: whether its rule has united or frozen units.
    """

    name: str
    module: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    timing: Timing | None
    batch: int = 1
    unpriced: bool = False
    number: int = 0
    changed: bool = False


@dataclass(frozen=True)
class Spread:
    """A reshape that spreads channels over several dimensions: what is left has to stay rectangular.

    Attributes:
        label: atoms after the reshape.
        where: the op and its module.
        all_rows: whether also rows of which all is one unit are tied.
        place: number of the reshape among the moves.
    """

    label: Label
    where: str
    all_rows: bool
    place: int
