"""Gradual pruning: sparser step by step along a cubic curve, with or without weights that come back.

GMP in two flavours. By Zhu & Gupta 2017 and Gale et al. 2019: uniform, the first layer dense and the last at most 80 %
sparse, masks only, so that a removed weight keeps its value and may return. As in GraNet's comparison: one ranking
over all layers, and what is removed is gone. The budget says which: ``Uniform(d, first=1.0, last=0.2)`` with
``masks_only=True``, or ``Global(d)``.

GraNet (Liu et al. 2021, arXiv 2106.10404, Alg. 1) adds neuroregeneration: after every resize each layer drops
⌈r·k⌉ of its k weights and grows as many by |gradient|. With ``initial`` sparsity above 0 it starts from a random ERK
mask. The cubic's end point is imposed: the last resize is exactly at the asked density.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from halpiee.errors import UsageError
from halpiee.methods.design import Asked, Design, Setup, at_density, density_of
from halpiee.methods.method import Method
from halpiee.methods.phases import Drop, Grow, Phase, Recipe, Resize, Train
from halpiee.methods.registry import method
from halpiee.options import option
from halpiee.saliency.criterion import Criterion
from halpiee.saliency.gradient import Gradient
from halpiee.saliency.magnitude import Magnitude
from halpiee.saliency.registry import criterion_of
from halpiee.sparsity.distribution import ERK, Budget, Global
from halpiee.sparsity.schedule import Cosine, Cubic

__all__ = ["GMP", "GraNet", "Regrowth", "gradual"]


@dataclass(frozen=True)
class Regrowth:
    """GraNet's neuroregeneration: each layer drops the share r of its active weights and grows as many.

    Attributes:
        start: r at the first step.
        end: what half a cosine over the whole training lets it fall to.
        until: whether it goes on to the ``end`` of the training (as the text and the released code have it), or
            only while it is ``pruning`` (as Algorithm 1 has it).
        by: what is grown.
    """

    start: float = 0.5
    end: float = 0.005
    until: Literal["end", "pruning"] = "end"
    by: Criterion = field(default_factory=Gradient)


def gradual(
    *,
    total_steps: int,
    interval: int,
    budget: Budget,
    density: float,
    initial: float = 1.0,
    first: float = 0.0,
    last: float = 0.5,
    masks_only: bool = False,
    regrowth: Regrowth | None = None,
    criterion: Criterion | None = None,
) -> Recipe:
    """Returns gradual pruning as phases; a start at the initial density goes before.

    Args:
        total_steps: optimizer steps of the whole training.
        interval: ΔT.
        budget: whose density is passed through.
        density: the last one.
        initial: the first one.
        first: share of the training where the cubic begins (t0).
        last: share where it ends (t_f); the grid t0 + k·ΔT ends at or before it.
        masks_only: whether what was removed may return with its last values.
        regrowth: neuroregeneration after every resize, if any.
        criterion: what is ranked; ``None``: the method's own.

    Raises:
        UsageError: no resize fits.
    """
    t0 = round(first * total_steps)
    n = int(round(last * total_steps, 6) - t0) // max(interval, 1)
    if interval < 1 or n < 1 or not 0 <= first < last <= 1:
        raise UsageError(
            f"resizes every {interval} steps between {first:.0%} and {last:.0%} of {total_steps} steps were asked, "
            "and none fits; train longer, or choose a shorter interval"
        )
    curve = Cubic(1 - initial, 1 - density, t0, t0 + n * interval)
    regrow_end = total_steps if regrowth and regrowth.until == "end" else t0 + n * interval + 1
    fraction = None if regrowth is None else Cosine(regrowth.start, regrowth.end, total_steps)
    phases: list[Phase] = []
    at = 0
    step = t0 if t0 > 0 else interval
    while step <= t0 + n * interval or (regrowth is not None and step < regrow_end):
        regrow = regrowth is not None and step < min(regrow_end, total_steps)
        if regrowth is not None and regrow:
            phases += [Train(step - at - 1), Train(1, collect=True, criterion=regrowth.by, gradient="all")]
        else:
            phases.append(Train(step - at))
        at = step
        if t0 < step <= t0 + n * interval or (step == t0 and initial < 1):
            target = density if step == t0 + n * interval else 1 - curve(step)
            among: Literal["alive", "all"] = "all" if masks_only else "alive"
            phases.append(Resize(budget=at_density(budget, target), by=criterion, among=among))
        if fraction is not None and regrowth is not None and regrow:
            share = fraction(step)
            phases += [
                Drop(share, by=Magnitude(), within="layer", rounding="ceil"),
                Grow(share, by=regrowth.by, within="layer", values="zero"),
            ]
        step += interval
    return tuple(phases)


@dataclass(frozen=True)
class GMPOptions:
    """The options of gradual magnitude pruning."""

    criterion: Criterion | str = option("magnitude", "What is ranked, a criterion or its name.")
    interval: int = option(1000, "Steps between two resizes.")
    first: float = option(0.0, "Share of the training where the cubic begins.")
    last: float = option(0.6875, "Share of the training where the cubic ends.")
    masks_only: bool | None = option(
        None, "What was removed keeps its value and may return; by default for budgets per layer only."
    )


@dataclass(frozen=True)
class GraNetOptions:
    """The options of GraNet."""

    initial: float = option(0.0, "Sparsity at the start: 0 is dense, above 0 a random ERK mask.")
    interval: int = option(1000, "ΔT, the steps between two resizes.")
    first: float = option(0.0, "Share of the training where the cubic begins.")
    last: float | None = option(
        None,
        "Share of the training where the cubic ends; by default the paper's 110 of 160 epochs from dense, "
        "80 of 160 from an initial sparsity.",
    )
    regrowth: Regrowth = option(Regrowth(), "neuroregeneration's own settings.")
    init: Literal["random", "magnitude"] = option(
        "random", "An initial sparsity keeps random weights, or the largest of the given ones."
    )


@method(
    "gmp",
    paper="Zhu & Gupta 2017, arXiv 1710.01878; Gale et al. 2019, arXiv 1902.09574",
    units=("weights",),
    budgets=("global", "uniform", "erk"),
    options=GMPOptions,
)
class GMP(Method):
    """Gradual magnitude pruning along a cubic curve.

    Args: see ``Method``, and ``GMPOptions`` for its own. The budget is what is left at the end.

    Raises:
        UsageError: no resize fits, or a budget without a density.
    """

    def design(self, given: Setup, options: GMPOptions) -> Design:
        """Returns the resizes."""
        o, budget, units = options, given.limit, given.units
        phases = gradual(
            total_steps=given.total_steps,
            interval=o.interval,
            budget=budget,
            density=density_of(budget),
            first=o.first,
            last=o.last,
            masks_only=not isinstance(budget, Global) if o.masks_only is None else o.masks_only,
        )
        return given.design(phases, criterion_of(o.criterion, given.seed), units=units)


@method(
    "granet",
    paper="Liu et al. 2021, arXiv 2106.10404",
    units=("weights",),
    budgets=("global", "uniform", "erk"),
    options=GraNetOptions,
)
class GraNet(Method):
    """Gradual magnitude pruning with neuroregeneration (Liu et al. 2021).

    Args: see ``Method``, and ``GraNetOptions`` for its own. The budget is what is left at the end: ``Global`` as in the
    paper; ``Uniform`` and ``ERK`` are variants. GraNet 2× has twice the ``total_steps`` with the same ``interval``.

    Raises:
        UsageError: no resize fits, an initial sparsity beyond the last one, or a budget without a density.
    """

    paper_charges_gradient = False

    def design(self, given: Setup, options: GraNetOptions) -> Design:
        """Returns a start, the resizes and the neuroregeneration."""
        o, budget, units = options, given.limit, given.units
        density, initial = density_of(budget), o.initial
        if not 0 <= initial <= 1 - density:
            raise UsageError(
                f"GraNet was asked to start at a sparsity of {initial} and end at {1 - density:.4g}; "
                "the start is at least 0 and at most the end"
            )
        if units.zero_is_dead:
            raise UsageError(
                "GraNet was asked to regrow units whose zeros have zero gradients for ever; "
                "use weights, or filters with norm_follows=False"
            )
        start: tuple[Phase, ...] = ()
        if initial > 0:
            begin = ERK(1 - initial) if isinstance(budget, Global) else at_density(budget, 1 - initial)
            by: Criterion | Literal["random"] = "random" if o.init == "random" else Magnitude()
            # Layers are rounded one by one: together they may fall short of an end that is as sparse as the start.
            least = budget if isinstance(budget, Global) else None
            start = (Resize(budget=begin, by=by, among="all", event="init", least=least),)
        phases = gradual(
            total_steps=given.total_steps,
            interval=o.interval,
            budget=budget,
            density=density,
            initial=1 - initial,
            first=o.first,
            last=o.last if o.last is not None else (0.6875 if initial == 0 else 0.5),
            regrowth=o.regrowth,
        )
        return given.design((*start, *phases), Magnitude(), units=units)

    @classmethod
    def arguments(cls, asked: Asked) -> dict[str, Any]:
        """Returns the options that were typed; ``fraction`` is the share that neuroregeneration begins with."""
        fraction = asked.options.get("fraction")
        regrowth = {} if fraction is None else {"regrowth": Regrowth(start=fraction)}
        return {**super().arguments(asked), **regrowth}
