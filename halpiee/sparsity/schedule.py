"""Curves: how a quantity changes over the steps of a training.

A curve is a frozen dataclass called with a step; every formula is the paper's, with the end point included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from halpiee.errors import UsageError


class Curve(Protocol):
    """A number for every step."""

    def __call__(self, step: float) -> float:
        """Returns the value at ``step``."""


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: float) -> float:
        """Returns the value."""
        return self.value


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from ``start`` to ``end`` over ``steps`` steps, then ``end``.

    ``v(t) = end + (start − end)/2 · (1 + cos(π t/T))``: with ``end = 0`` the drop fraction of RigL (Evci et al.
    2020, Sec. 3), with 0.5 → 0.005 that of GraNet's neuroregeneration.

    Examples:
        >>> [round(Cosine(0.3, 0.0, steps=100)(step), 4) for step in (0, 50, 100)]
        [0.3, 0.15, 0.0]
    """

    start: float
    end: float
    steps: float

    def __call__(self, step: float) -> float:
        """Returns the value at ``step``."""
        done = min(max(step / self.steps, 0.0), 1.0)
        return self.end + (self.start - self.end) / 2 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Cubic:
    """Gradual sparsity of Zhu & Gupta 2017 (GraNet, Eq. 1): ``s_f + (s_i − s_f)(1 − (t − t0)/(tf − t0))³``."""

    start: float
    end: float
    first: float
    last: float

    def __call__(self, step: float) -> float:
        """Returns the value at ``step``; ``start`` before ``first``, exactly ``end`` from ``last`` on."""
        if step >= self.last:
            return self.end
        done = max((step - self.first) / (self.last - self.first), 0.0)
        return self.end + (self.start - self.end) * (1 - done) ** 3


@dataclass(frozen=True)
class Exponential:
    """Geometric decay ``start · (end/start)^(t/T)``: HALP's targets and, by its appendix, IEE's Ω.

    An exponential cannot reach 0, so ``end`` must be positive.
    """

    start: float
    end: float
    steps: float

    def __post_init__(self) -> None:
        if self.start <= 0 or self.end <= 0:
            raise UsageError(
                f"an exponential curve from {self.start} to {self.end} was asked; both ends must be positive: "
                "give a floor above 0, or use a cosine"
            )

    def __call__(self, step: float) -> float:
        """Returns the value at ``step``."""
        done = min(max(step / self.steps, 0.0), 1.0)
        return self.start * float((self.end / self.start) ** done)
