"""Gradual pruning: sparser step by step, with or without units that come back; of weights, and of whole filters.

GMP in two flavours. By Zhu & Gupta 2017 and Gale et al. 2019: uniform, the first layer dense and the last at most 80 %
sparse, masks only, so that a removed weight keeps its value and may return. As in GraNet's comparison: one ranking
over all layers, and what is removed is gone. The budget says which: ``Uniform(d, first=1.0, last=0.2)`` with
``masks_only=True``, or ``Global(d)``.

GraNet (Liu et al. 2021, arXiv 2106.10404, Alg. 1) adds neuroregeneration: after every resize each layer drops
⌈r·k⌉ of its k weights and grows as many by |gradient|. With ``initial`` sparsity above 0 it starts from a random ERK
mask. The cubic's end point is imposed: the last resize is exactly at the asked density.

Filters go in rounds (Lubana & Dick, arXiv 2009.11839): one epoch before each, and after round k of n the fraction k·p/n
of all filters is gone, so that round k removes p/(n − (k − 1)·p) of what is left. With regrowth (GraNet's appendix),
each round drops, one step later, a share of every layer's filters by L1 norm and grows as many by Σ|g|: only the filter
of the convolution is zeroed, γ and β stay, since otherwise the chain rule leaves no gradient to grow by. Behind a ReLU
that takes β > 0: a zeroed filter comes out of its norm as β, and the gradient of ReLU at or below zero is zero.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.method import Method, Request, Setup
from halpiee.methods.phases import Design, Drop, Grow, Phase, Recipe, Resize, Train, at_density, density_of
from halpiee.methods.registry import method
from halpiee.options import option
from halpiee.saliency.criterion import Criterion
from halpiee.saliency.gradient import Gradient, GraSP, LossPreservation
from halpiee.saliency.magnitude import Magnitude
from halpiee.saliency.registry import InMode, Inverted, criterion_of
from halpiee.sparsity.distribution import ERK, Budget, Global
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.schedule import Cosine, Cubic
from halpiee.structure.groups import Structure


@dataclass(frozen=True)
class Regrowth:
    """GraNet's neuroregeneration: each layer drops the share r of its active weights and grows as many.

    Attributes:
        start: r at the first step; it falls along half a cosine over the whole training.
        end: r at the last step.
        until: to the ``end`` of the training, as the text and the released code have it, or only while ``pruning``, as
            Algorithm 1 has it.
        by: the criterion that grows.
    """

    start: float = 0.5
    end: float = 0.005
    until: Literal["end", "pruning"] = "end"
    by: Criterion = field(default_factory=Gradient)


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """The steps at which a gradual pruning resizes, and the density it begins with."""

    total_steps: int  # optimizer steps of the whole training
    interval: int  # ΔT
    initial: float = 1.0  # density before the first resize
    first: float = 0.0  # share of the training where the cubic begins (t0)
    last: float = 0.5  # share where it ends (t_f); the grid t0 + k·ΔT ends at or before it

    @property
    def grid(self) -> tuple[int, int]:
        """The step t0, and how many intervals the cubic takes from there.

        Raises:
            UsageError: no resize fits.
        """
        first, last, total, interval = self.first, self.last, self.total_steps, self.interval
        asked = interval >= 1 and 0 <= first < last <= 1
        t0 = round(first * total) if asked else 0
        n = int(round(last * total, 6) - t0) // interval if asked else 0
        if n < 1:
            raise UsageError(
                f"resizes every {interval} steps between {first:.0%} and {last:.0%} of {total} steps were asked, "
                "and none fits; train longer, or give a shorter interval= (--interval)"
            )
        return t0, n


def gradual(
    budget: Budget, ramp: Ramp, *, masks_only: bool = False, regrowth: Regrowth | None = None
) -> Recipe:
    """Returns gradual pruning as phases; a start at the initial density goes before.

    The density of the last budget is approached along the cubic, at the steps of the ramp; with ``masks_only`` what was
    removed may return with its last values; ``regrowth`` follows every resize.

    Raises:
        UsageError: no resize fits, or a budget without a density.
    """
    total_steps, interval, density = ramp.total_steps, ramp.interval, density_of(budget)
    t0, n = ramp.grid
    end = t0 + n * interval
    curve = Cubic(1 - ramp.initial, 1 - density, t0, end)
    among: Literal["alive", "all"] = "all" if masks_only else "alive"
    last = max(end, total_steps - 1) if regrowth and regrowth.until == "end" else end
    phases: list[Phase] = []
    at = 0
    for step in range(t0 if t0 > 0 else interval, last + 1, interval):
        regrow = regrowth if step < total_steps else None
        if regrow:
            phases += [Train(step - at - 1), Train(1, collect=True, criterion=regrow.by, gradient="all")]
        else:
            phases.append(Train(step - at))
        at = step
        if t0 < step <= end or (step == t0 and ramp.initial < 1):
            target = density if step == end else 1 - curve(step)
            phases.append(Resize(budget=at_density(budget, target), among=among))
        if regrow:
            share = Cosine(regrow.start, regrow.end, total_steps)(step)
            phases += [
                Drop(share, by=Magnitude(), within="layer", rounding="ceil"),
                Grow(share, by=regrow.by, within="layer", values="zero"),
            ]
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
            budget,
            Ramp(total_steps=given.total_steps, interval=o.interval, first=o.first, last=o.last),
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
        last = o.last if o.last is not None else (0.6875 if initial == 0 else 0.5)
        ramp = Ramp(
            total_steps=given.total_steps, interval=o.interval, initial=1 - initial, first=o.first, last=last
        )
        phases = gradual(budget, ramp, regrowth=o.regrowth)
        return given.design((*start, *phases), Magnitude(), units=units)

    @classmethod
    def arguments(cls, request: Request) -> dict[str, Any]:
        """Returns the options that were typed; ``fraction`` and ``regrow_until`` are those of neuroregeneration."""
        named = {"fraction": "start", "regrow_until": "until"}
        typed = {field: request.options[name] for name, field in named.items() if name in request.options}
        return {**super().arguments(request), **({"regrowth": Regrowth(**typed)} if typed else {})}


def recipe(
    budget: Budget, *, rounds: int, interval: int, regrow: float = 0.0, batches: bool = False
) -> Recipe:
    """Returns filter pruning as phases.

    The budget is what is left after the last of ``rounds``, ``interval`` training steps before each; a round then
    exchanges the share ``regrow`` of every layer's filters. With ``batches`` scores are taken over the method's
    batches, not over the steps before the round.

    Raises:
        UsageError: no round, a share outside [0, 1), or a budget without a density.
    """
    if rounds < 1 or interval < 1 or not 0 <= regrow < 1:
        raise UsageError(
            f"{rounds} rounds every {interval} steps with a regrowth of {regrow} were asked; "
            "rounds and steps are at least 1, regrowth a share from 0 up to 1"
        )
    last = density_of(budget)
    phases: list[Phase] = []
    for k in range(1, rounds + 1):
        resized = budget if k == rounds else at_density(budget, 1 - k * (1 - last) / rounds)
        phases += [Train(interval, collect=not batches), Resize(budget=resized, batches=batches)]
        if regrow:
            phases += [
                Train(1, collect=True, criterion=Gradient(), gradient="all"),
                Drop(regrow, by=Magnitude(), within="layer"),
                Grow(regrow, by=Gradient(), within="layer", values="zero"),
            ]
    return tuple(phases)


@dataclass(frozen=True)
class Options:
    """The options of filter pruning."""

    criterion: Criterion | str = option("l1", "A criterion or its name.")
    rounds: int = option(1, "n, the number of rounds.")
    interval: int | None = option(
        None,
        "Training steps before each round (the paper: one epoch); by default the first half of training.",
    )
    regrow: float = option(
        0.0, "Share of every layer's filters that each round then exchanges by gradient, one step later."
    )
    pinned: Collection[str] = option((), "Paths of convolutions that stay whole, like protect.")


@method(
    "filter",
    paper="Li et al. 2017, arXiv 1608.08710; Lubana & Dick 2021, arXiv 2009.11839",
    units=("filters",),
    budgets=("global", "uniform"),
    options=Options,
)
class FilterPruning(Method):
    """Removes whole convolution filters by any criterion, in one shot or rounds.

    Args: see ``Method``, and ``Options`` for its own. ``structure`` is what ``shrink`` cuts by. Without ``batches``,
    scores are collected over the training steps before each round, which all criteria but those of second order allow.

    Raises:
        UsageError: the rounds do not fit into the training.
    """

    def design(self, given: Setup, options: Options) -> Design:
        """Returns the rounds."""
        o, budget, units = options, given.limit, given.asked_units
        whole = frozenset({o.pinned} if isinstance(o.pinned, str) else o.pinned)
        whole |= frozenset({given.protect} if isinstance(given.protect, str) else given.protect)
        if units is None or units == "filters":
            units = Filters(given.model, pinned=whole, norm_follows=not o.regrow)
        if not isinstance(units, Filters):
            raise UsageError(
                f"filter pruning was asked of {type(units).__name__}; give units=halpiee.sparsity.Filters(model)"
            )
        if o.regrow and units.zero_is_dead:
            raise UsageError(
                "regrowth was asked of filters whose norm goes with them: its zero leaves no gradient to grow by; "
                "use Filters(…, norm_follows=False)"
            )
        total, extra = given.total_steps, int(bool(o.regrow))
        steps = o.interval if o.interval is not None else max(1, total // 2 // max(o.rounds, 1))
        needed = o.rounds * (steps + extra)
        if needed > total:
            raise UsageError(
                f"{o.rounds} rounds every {steps} steps take {needed} steps, and the training has {total}; "
                "train longer, or ask for fewer rounds"
            )
        over = given.batches is not None
        phases = recipe(budget, rounds=o.rounds, interval=steps, regrow=o.regrow, batches=over)
        criterion = criterion_of(o.criterion, given.seed)
        if over and isinstance(o.criterion, str):
            criterion = in_evaluation(criterion)
        return given.design(phases, criterion, units=units)

    @classmethod
    def arguments(cls, request: Request) -> dict[str, Any]:
        """Returns the options that were typed, and batches for criteria that cannot be read off training steps.

        Residual networks keep their first convolution whole (Lubana & Dick 2021).
        """
        o = {
            name: request.options[name]
            for name in ("criterion", "interval", "rounds", "regrow")
            if name in request.options
        }
        of = str(request.options.get("criterion", Options.criterion)).removeprefix("inverted-")
        images = 2560 if of.startswith("loss") else None  # as in the paper's code: 20 batches of 128
        batches = request.examples(images) if of.startswith(("grasp", "synflow", "loss")) else None
        pinned = first_conv(request.model) if any_residual(request.structure()) else frozenset()
        return {**o, "batches": batches, "pinned": pinned, "units": None}

    @torch.no_grad()
    def shrink(self) -> tuple[nn.Module, Optimizer]:
        """Returns the compact model and its optimizer; norms of removed filters go with them for good."""
        if self._compact is None:
            self.refuse_foreign()
            self.finish()
            assert isinstance(self.units, Filters)
            for path, norm in self.units.norms.items():
                own = self.units.owner(path)
                for name in ("weight", "bias"):
                    tensor = self._parameters.get(f"{norm}.{name}")
                    if own in self.alive and tensor is not None:
                        tensor.masked_fill_(~self.alive[own].to(tensor.device), 0.0)
        return super().shrink()


def in_evaluation(criterion: Criterion) -> Criterion:
    """Returns a measure of gradient flow with batch norms in evaluation, as its paper has it; others as they are.

    A batch norm in training mode undoes the scale of the filter before it: there θᵀg = 0, and so θᵀHg = −‖g‖² for each
    filter, and the largest gradients would go first.
    """
    if isinstance(criterion, Inverted):
        return replace(criterion, of=in_evaluation(criterion.of))
    if isinstance(criterion, GraSP):
        return replace(criterion, norms="eval")
    return InMode(criterion) if isinstance(criterion, LossPreservation) else criterion


def first_conv(model: nn.Module) -> frozenset[str]:
    """Returns the path of the first convolution."""
    convs = (path for path, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd))
    return frozenset(itertools.islice(convs, 1))


def any_residual(structure: Structure) -> bool:
    """Whether several convolutions write to one group: residual networks protect the first (Lubana & Dick 2021)."""
    writers = Counter(name for layer in structure.layers for name, _ in layer.out_groups)
    return max(writers.values(), default=0) > 1
