"""How much is kept where: the budgets a method is given, and the Erdős–Rényi-kernel distribution.

A budget is a small value that says what is limited; ``halpiee.methods.pools`` binds it to the units of a model.
Densities are shares that are *kept*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from halpiee.errors import UsageError

__all__ = ["ERK", "NM", "Budget", "Global", "Latency", "Uniform", "erk"]


@dataclass(frozen=True)
class Latency:
    """A latency of the whole network.

    Attributes:
        us: in microseconds; or
        fraction: as a share of the measured dense latency, in (0, 1].
    """

    us: float | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.us is None) == (self.fraction is None):
            raise UsageError("a latency budget is either us=… or fraction=…; give exactly one of them")
        if self.us is not None and not (math.isfinite(self.us) and self.us > 0):
            raise UsageError(f"a latency budget of {self.us} µs was asked; give a positive number")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UsageError(
                f"a latency budget of {self.fraction} of the dense latency was asked; give a share above 0 and up to 1"
            )


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise UsageError(
            f"a density of {density} was asked; density is the share that is kept, above 0 and up to 1"
        )


@dataclass(frozen=True)
class Uniform:
    """The same density in every layer."""

    density: float

    def __post_init__(self) -> None:
        _check_density(self.density)


@dataclass(frozen=True)
class ERK:
    """Erdős–Rényi-kernel densities at a total density (Evci et al. 2020)."""

    density: float

    def __post_init__(self) -> None:
        _check_density(self.density)


@dataclass(frozen=True)
class Global:
    """One pool over all layers: the best-scoring units anywhere, at least one a layer."""

    density: float

    def __post_init__(self) -> None:
        _check_density(self.density)


@dataclass(frozen=True)
class NM:
    """Keep ``n`` of ``m`` consecutive input weights."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n <= self.m:
            raise UsageError(f"{self.n}:{self.m} was asked; N:M keeps N of M, with 0 < N <= M")


Budget = Latency | Uniform | ERK | Global | NM


def erk(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Returns Erdős–Rényi-kernel densities whose weighted mean is exactly ``density``.

    ``d_l = ε · Σ dims_l / Π dims_l``; layers that would exceed 1 are made dense and ε is solved again for the rest
    (Mocanu et al. 2018; Evci et al. 2020, Sec. 3).

    Args:
        shapes: layer → weight shape ``(n_out, n_in, *kernel)``.
        density: share of all weights that is kept.

    Raises:
        UsageError: an impossible density, or one that the dense layers alone exceed.
    """
    _check_density(density)
    if not shapes:
        raise UsageError("ERK densities of no layers were asked; give at least one weight shape")
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / size[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(shapes):
        sparse = [name for name in shapes if name not in dense]
        room = sum(density * size[n] for n in sparse) - sum((1 - density) * size[n] for n in dense)
        if room < 0:
            raise UsageError(
                f"ERK at density {density} is infeasible: {sorted(dense)} would be dense and exceed it; "
                "ask for a higher density or use Uniform"
            )
        epsilon = room / sum(raw[n] * size[n] for n in sparse)
        widest = max(raw[n] for n in sparse)
        if epsilon * widest <= 1:
            return {name: 1.0 if name in dense else epsilon * raw[name] for name in shapes}
        dense |= {n for n in sparse if raw[n] == widest}
    return dict.fromkeys(shapes, 1.0)
