"""How many units each layer keeps: the budgets of methods, and the Erdős–Rényi-kernel distribution.

A budget is a small value that says what is limited; ``halpiee.methods.allocator`` binds it to the units of a model.
Densities are shares that are *kept*.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from halpiee.errors import UsageError, need, unknown
from halpiee.ranges import parse_budget

Pinned = Literal["outside", "inside"]
"""Whether layers of a density of their own are outside of the total, or inside of it and the others pay."""


@dataclass(frozen=True, init=False)
class Latency:
    """A latency of the whole network: exactly one of a time and a share.

    Args:
        ms: in milliseconds.

    Attributes:
        us: in microseconds; or
        fraction: as a share of the measured dense latency, in (0, 1].

    Raises:
        UsageError: none or several of them, a number without its unit, or one that is no time or share.
    """

    us: float | None = None
    fraction: float | None = None

    def __init__(
        self, *number: object, us: float | None = None, ms: float | None = None, fraction: float | None = None
    ) -> None:
        forms = "Latency(us=…), Latency(ms=…) or Latency(fraction=…)"
        if number:
            raise UsageError(
                f"Latency({', '.join(map(repr, number))}) was asked, a number without its unit; give {forms}"
            )
        given = {n: v for n, v in (("us", us), ("ms", ms), ("fraction", fraction)) if v is not None}
        if len(given) != 1:
            raise UsageError(
                f"a latency budget of {' and '.join(given) or 'nothing'} was asked; give exactly one: {forms}"
            )
        ((unit, value),) = given.items()
        if not _is_number(value) or not (math.isfinite(value) and value > 0):
            raise UsageError(f"a latency budget of {unit}={value!r} was asked; give a positive number")
        if fraction is not None and fraction > 1:
            raise UsageError(
                f"a latency budget of {fraction} of the dense latency was asked; give a share above 0 and up to 1"
            )
        object.__setattr__(self, "us", us if ms is None else ms * 1000.0)
        object.__setattr__(self, "fraction", fraction)


def _is_number(value: object) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    return not isinstance(value, int) or abs(value) < 2**1000  # what no float holds is none


def _check_density(density: float) -> None:
    if not _is_number(density) or not 0 < density <= 1:
        raise UsageError(
            f"a density of {density!r} was asked; density is the share that is kept, a number above 0 and up to 1"
        )


@dataclass(frozen=True)
class Uniform:
    """The same density in every layer, but where a paper's convention says otherwise.

    RigL (Evci et al. 2020) keeps the first layer dense and does not make up for it: ``Uniform(d, first=1.0)``. Gale
    et al. 2019 also keep a fifth of the last one: ``Uniform(d, first=1.0, last=0.2)``. GraNet keeps a fifth of the
    last layer and lets the others pay for it: ``Uniform(d, last=0.2, pinned="inside")``.

    Attributes:
        density: share that is kept.
        first: density of the first layer that the forward runs, where it differs.
        last: least density of the last one.
        pinned: whether these two are ``outside`` of the total (the other layers have ``density``), or ``inside`` (the
            others are re-balanced, so that ``density`` holds over all).
    """

    density: float
    first: float | None = None
    last: float | None = None
    pinned: Pinned = "outside"

    def __post_init__(self) -> None:
        for density in (self.density, *(d for d in (self.first, self.last) if d is not None)):
            _check_density(density)

    def densities(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
        """Returns layer → density, of weight shapes in the order in which the forward runs the layers.

        Raises:
            UsageError: the pinned layers alone exceed the total that they are inside of.
        """
        names = list(shapes)
        fixed: dict[str, float] = {}
        if self.last is not None and names:
            fixed[names[-1]] = max(self.last, self.density)
        if self.first is not None and names:
            fixed[names[0]] = self.first
        rest = self.density
        if self.pinned == "inside" and len(fixed) < len(names):
            size = {name: math.prod(shape) for name, shape in shapes.items()}
            room = self.density * sum(size.values()) - sum(d * size[n] for n, d in fixed.items())
            rest = room / sum(size[n] for n in names if n not in fixed)
            if not 0 < rest <= 1:
                raise UsageError(
                    f"a uniform density of {self.density} over all layers was asked with {fixed} inside of it, which "
                    f"leaves {rest:.3g} for the others; ask for another density or for pinned='outside'"
                )
        return {name: fixed.get(name, rest) for name in names}


@dataclass(frozen=True)
class ERK:
    """Erdős–Rényi-kernel densities at a total density, the share that is kept (Evci et al. 2020); see ``erk``.

    Layers in ``dense`` stay whole, ``outside`` of the equation (RigL) or ``inside`` of the total (SRigL), as ``pinned``
    says. ``power`` is 1 for ERK, 0 for uniform.
    """

    density: float
    dense: frozenset[str] = frozenset()
    pinned: Pinned = "outside"
    power: float = 1.0

    def __post_init__(self) -> None:
        _check_density(self.density)

    def densities(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
        """Returns layer → density."""
        return erk(shapes, self.density, dense=self.dense, pinned=self.pinned, power=self.power)


@dataclass(frozen=True)
class PerLayer:
    """A density for every layer by name; a layer that is not named stays dense.

    Attributes:
        map: layer (``layer1.0.conv1``) or weight (``layer1.0.conv1.weight``) → share that is kept.
    """

    map: Mapping[str, float]

    def __post_init__(self) -> None:
        if not isinstance(self.map, Mapping):
            raise UsageError(
                f"PerLayer({self.map!r}) was asked; give a density by layer: PerLayer({{'conv1': 0.5}})"
            )
        for density in self.map.values():
            _check_density(density)

    def densities(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
        """Returns layer → density.

        Raises:
            UsageError: a name that is none of the layers.
        """
        names = {**{name.removesuffix(".weight"): name for name in shapes}, **{n: n for n in shapes}}
        for name in self.map:
            if name not in names:
                hint = unknown(name, names, f"the first is {next(iter(shapes))!r}")
                raise UsageError(
                    f"a density for the layer {name!r} was given, it is none of the {len(shapes)}; {hint}"
                )
        given = {names[name]: density for name, density in self.map.items()}
        return {name: given.get(name, 1.0) for name in shapes}


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
        if not (type(self.n) is type(self.m) is int and 0 < self.n <= self.m):
            raise UsageError(f"{self.n}:{self.m} was asked; N:M keeps N of M, integers with 0 < N <= M")


Budget = Latency | Uniform | ERK | PerLayer | Global | NM


def as_budget(given: object, *, latency: bool) -> Budget:
    """Returns a budget, given itself, a share (``0.5``, ``"50%"``), or a time (``"12.5ms"``).

    A share is one of the dense latency with ``latency``, else the density over all layers together.

    Raises:
        UsageError: none of these.
    """
    if isinstance(given, Latency | Uniform | ERK | PerLayer | Global | NM):
        return given
    forms = (
        "give a share such as 0.5 or '50%', a time such as '12.5ms', or one of Latency(us=…), Latency(fraction=…), "
        "Global(density), Uniform(density), ERK(density), PerLayer({layer: density}), NM(n, m)"
    )
    if isinstance(given, str):
        us, share = parse_budget(given)
        if us is not None:
            return Latency(us=us)
        assert share is not None
    elif not _is_number(given):
        raise UsageError(f"a budget of {given!r} was asked; {forms}")
    else:
        share = float(given)  # type: ignore[arg-type]
    if not 0 < share <= 1:
        raise UsageError(f"a budget of {given!r} was asked, which is no share above 0 and up to 1; {forms}")
    return Latency(fraction=share) if latency else Global(share)


def erk(
    shapes: Mapping[str, tuple[int, ...]],
    density: float,
    *,
    dense: Collection[str] = (),
    pinned: Pinned = "outside",
    power: float = 1.0,
) -> dict[str, float]:
    """Returns Erdős–Rényi-kernel densities whose weighted mean is exactly ``density``.

    ``d_l = ε · (Σ dims_l / Π dims_l)^power``; layers that would exceed 1 are made dense and ε is solved again for the
    rest (Mocanu et al. 2018; Evci et al. 2020, Sec. 3).

    Args:
        shapes: layer → weight shape ``(n_out, n_in, *kernel)``.
        density: share of all weights that is kept.
        dense: layers that stay whole.
        pinned: ``outside``: those are left out of the equation, the others have ``density`` among themselves (RigL's
            code); ``inside``: the others pay for them, the total is ``density`` (SRigL's code).
        power: 1 for ERK, 0 for uniform.

    Raises:
        UsageError: an impossible density, or one that the dense layers alone exceed.

    Examples:
        Half of 50 + 200 weights; ``ε · (15 + 30) = 125``.

        >>> {name: round(d, 4) for name, d in erk({"fc1": (10, 5), "fc2": (20, 10)}, 0.5).items()}
        {'fc1': 0.8333, 'fc2': 0.4167}
    """
    need(shapes, Mapping, "shapes", "give {layer: (n_out, n_in, *kernel)}")
    _check_density(density)
    if not shapes:
        raise UsageError("ERK densities of no layers were asked; give at least one weight shape")
    if unknown := set(dense) - set(shapes):
        raise UsageError(f"the layer {min(unknown)!r} was asked to stay dense, it is none of {list(shapes)}")
    flat = [name for name, shape in shapes.items() if len(shape) < 2]
    if flat:
        raise UsageError(
            f"ERK was asked of {flat[0]!r} with shape {shapes[flat[0]]}; it is made for weights with inputs and "
            "outputs: for filters and channels use Uniform, PerLayer or Global"
        )
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: (sum(shape) / size[name]) ** power for name, shape in shapes.items()}
    whole = set(dense)
    counted = set(shapes) - (whole if pinned == "outside" else set())
    while whole < set(shapes):
        sparse = [name for name in shapes if name not in whole]
        room = sum(density * size[n] for n in sparse)
        room -= sum((1 - density) * size[n] for n in whole & counted)
        if room <= 0:
            raise UsageError(
                f"ERK at density {density} is infeasible: {sorted(whole)} would be dense and exceed it; "
                "ask for a higher density or use Uniform"
            )
        epsilon = room / sum(raw[n] * size[n] for n in sparse)
        widest = max(raw[n] for n in sparse)
        if epsilon * widest <= 1:
            return {name: 1.0 if name in whole else epsilon * raw[name] for name in shapes}
        whole |= {n for n in sparse if raw[n] == widest}
    return dict.fromkeys(shapes, 1.0)
