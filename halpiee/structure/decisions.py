"""What a forward on real tensors decides by values: which are above a limit, in which order, how many.

A smaller network has other values. What it would decide is another matter than what follows its channels: so it is
given what the whole one decided, finds as many objects in the same places, and runs the same ops on the same sizes
but for its channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Decisions"]


@dataclass(frozen=True)
class Decision:
    """One op that makes truth values, whole numbers or Python numbers of other values.

    Attributes:
        name: name of the op.
        shapes: shapes of what it reads.
        outcome: its outputs.
    """

    name: str
    shapes: tuple[torch.Size, ...]
    outcome: list[Any]


class Decisions:
    """The decisions of a forward, in order.

    Args:
        earlier: decisions to take again; None where they are taken here.
    """

    def __init__(self, earlier: Decisions | None = None) -> None:
        self._earlier = None if earlier is None else iter(earlier.taken)
        self.taken: list[Decision] = []

    def outcome(self, name: str, reads: list[Tensor], out: Any) -> Any:
        """Returns what an op gives: as it did where it read tensors of the same shapes, where it decides.

        Args:
            name: name of the op.
            reads: the tensors that it reads.
            out: what it gave here.
        """
        parts = list(out) if isinstance(out, list | tuple) else [out]
        if not any(t.is_floating_point() for t in reads) or not any(map(decides, parts)):
            return out
        shapes = tuple(t.shape for t in reads)
        if self._earlier is None:
            self.taken.append(Decision(name, shapes, [copied(p) if decides(p) else None for p in parts]))
            return out
        then = next(self._earlier, None)
        if then is None or then.name != name:
            self._earlier = iter(())  # another path: what was decided on it is not known
            return out
        if then.shapes != shapes or any(part is read for part in parts for read in reads):
            return out
        parts = [copied(a) if decides(b) else b for a, b in zip(then.outcome, parts, strict=True)]
        return type(out)(parts) if isinstance(out, list | tuple) else parts[0]


def decides(part: Any) -> bool:
    """Returns whether a part of what an op gives is a decision."""
    if isinstance(part, Tensor):
        return not part.is_floating_point() and not part.is_complex()
    return isinstance(part, bool | int | float)


def copied(part: Any) -> Any:
    """Returns a copy of a tensor, which the forward may write into."""
    return part.clone() if isinstance(part, Tensor) else part
