"""Do two forwards run the same ops on the same tensors? Then one is the other at another width.

A comparison by name alone is not enough: a block that reads ``norm(x)`` in place of ``x`` at another width runs the
same ops on the same shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from halpiee.structure.calls import Event
from halpiee.structure.movements import RESHAPES

__all__ = ["Step", "parting", "wired"]

COPIES = frozenset({"clone", "contiguous", "detach", "alias", "_to_copy"})
"""Ops that change nothing: a reshape or a product makes them where strides ask for it, torch where tensors are fake."""


@dataclass(frozen=True)
class Step:
    """One op of a forward, with what it reads.

    Attributes:
        name: name of the op; all reshapes have one.
        module: path of the module it ran in.
        reads: where each of its tensors comes from: the name of a parameter or input, or the number of a step and
            of its output; None for what was there before.
    """

    name: str
    module: str
    reads: tuple[Any, ...]


def wired(events: Iterable[Event], given: Mapping[int, str]) -> list[Step]:
    """Returns the ops of a forward in order, copies left out.

    Args:
        events: the ops.
        given: value number → name, for parameters, buffers and inputs.
    """
    sources: dict[int, Any] = dict(given)
    steps: list[Step] = []
    for event in events:
        if event.name in COPIES:
            sources.update(dict.fromkeys(event.writes, sources.get(event.reads[0])))
            continue
        name = "view" if event.name in RESHAPES else event.name
        steps.append(Step(name, event.module, tuple(map(sources.get, event.reads))))
        for index, value in enumerate(event.writes):
            sources[value] = (len(steps) - 1, index)
    return steps


def parting(one: list[Step], other: list[Step]) -> str | None:
    """Returns the module in which two forwards part, or None where they are the same."""
    for a, b in zip(one, other, strict=False):
        if a != b:
            return a.module
    if len(one) == len(other):
        return None
    return max(one, other, key=len)[min(len(one), len(other))].module
