"""Dynamic sparse training: a fixed number of weights, exchanged within every layer while it trains.

Static: a random mask for good. SET (Mocanu et al. 2018), RigL (Evci et al. 2020), their ITOP intervals (Liu et al.
2021) and SNFS (Dettmers & Zettlemoyer 2019) drop the smallest weights of a layer every ΔT steps and grow as many: at
random, by |gradient|, by |momentum|. What all of them share, and released code often misses:

- counts are exact: a layer of k active weights loses ⌊f(t)·k⌋ and gains as many;
- what was just dropped may be grown again; it then keeps its value and its momentum, it has never left;
- what is new starts at zero, with zero momentum (SNFS trains the momentum of all weights, and keeps it);
- the step is done first, then the masks change by the gradient of that step (as in the ports to PyTorch;
  RigL's own code replaces the step).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from halpiee.errors import UsageError
from halpiee.methods.method import Method, Request, Setup
from halpiee.methods.phases import Design, Drop, Grow, Phase, Resize, Shuffle, Start, Train, update_steps
from halpiee.methods.registry import method
from halpiee.methods.scores import Momentum
from halpiee.options import option
from halpiee.saliency.criterion import Criterion
from halpiee.saliency.gradient import Gradient
from halpiee.saliency.magnitude import Given, Magnitude
from halpiee.sparsity.distribution import ERK, Budget, Global, PerLayer
from halpiee.sparsity.granularity import Units
from halpiee.sparsity.mask import Mask
from halpiee.sparsity.schedule import Cosine

Init = Literal["random", "magnitude"]


def beginning(budget: Budget, init: Init, mask: Mask | None = None) -> tuple[Phase, ...]:
    """Returns the first choice of units: given, random, or the largest of given weights; Global spreads as ERK."""
    if mask is not None:
        return (Resize(by=Given(mask), among="all", event="init"),)
    if init == "magnitude":
        return (Resize(by=Magnitude(), among="all", event="init"),)
    spread = ERK(budget.density) if isinstance(budget, Global) else None
    return (Start(budget=spread),)


@dataclass(frozen=True)
class StaticOptions:
    """The options of a mask that does not change."""

    init: Init = option("random", "Random units, or the largest of the given weights (magnitude).")
    mask: Mask | None = option(None, "The units themselves: those that another training ended with, say.")
    shuffle: bool = option(False, "Shuffle the mask within each layer: an ablation.")


@method(
    "static",
    paper="Mocanu et al. 2018, arXiv 1707.04780",
    budgets=("erk", "uniform", "global", "nm"),
    options=StaticOptions,
)
class Static(Method):
    """A random mask that never changes (Mocanu et al. 2018): the least that a sparse training has to beat.

    Args: see ``Method``, and ``StaticOptions`` for its own. Exactly one of a budget (``Global`` is spread as ERK) and a
    ``mask`` is given.

    Raises:
        UsageError: neither a budget nor a mask, or both.
    """

    def design(self, given: Setup, options: StaticOptions) -> Design:
        """Returns the one choice of units."""
        mask = options.mask
        if (given.budget is None) == (mask is None):
            raise UsageError(
                "a static mask is either given or drawn; give exactly one of budget=… and mask=…"
            )
        if mask is not None:
            if odd := [n for n, k in mask.items() if not isinstance(k, Tensor) or k.dtype != torch.bool]:
                raise UsageError(
                    f"a mask was given whose {odd[0]!r} is no bool tensor; give halpiee.sparsity.Mask, or bool tensors"
                )
            shares = {name: int(kept.sum()) / kept.numel() for name, kept in mask.items()}
            given = replace(given, budget=PerLayer(shares))
            _check_mask(mask, given.units)
        phases = beginning(given.limit, options.init, mask)
        return given.design((*phases, *((Shuffle(given.seed),) if options.shuffle else ())), Magnitude())


def _check_mask(mask: Mask, units: Units) -> None:
    """Refuses a mask of another network."""
    found = {name: tuple(kept.shape) for name, kept in mask.items()}
    for name, size in units.sizes.items():
        if found.get(name) != size:
            raise UsageError(
                f"a mask was given whose {name!r} is {found.get(name, 'missing')}, and this network's is {size}; "
                "give the mask of this very network"
            )


@dataclass(frozen=True)
class RigLOptions:
    """The options of an exchange of weights, with the values of RigL's paper."""

    interval: int = option(100, "ΔT, the steps between two updates.")
    fraction: float = option(
        0.3, "α, the share of a layer's active weights that the first update would exchange."
    )
    floor: float = option(0.0, "What half a cosine lets the fraction fall to.")
    end: float = option(0.75, "Share of the training after which updates have ended.")
    values: Literal["zero", "last"] = option("zero", "Grown weights start at zero, or at their last values.")
    average: int = option(1, "Steps whose gradients are averaged for growing.")
    init: Init = option("random", "Random units, or the largest of the given weights (magnitude).")


@method(
    "rigl",
    paper="Evci et al. 2020, arXiv 1911.11134",
    budgets=("erk", "uniform", "global", "nm"),
    options=RigLOptions,
    summary="drops the smallest weights, grows those of the largest gradient",
)
class RigL(Method):
    """Drops the smallest weights, grows those of the largest gradient (Evci et al. 2020).

    Args: see ``Method``, and ``RigLOptions`` for its own. A ``Global`` budget is spread as ERK.

    Raises:
        UsageError: no update fits, channels (a zero channel has no gradient), an optimizer that cannot be masked.
    """

    grow_by: Criterion | Literal["random"] = Gradient()
    within: Literal["layer", "shared"] = "layer"
    dense_momentum = False

    def design(self, given: Setup, options: RigLOptions) -> Design:
        """Returns a start and the exchanges."""
        o = options
        if given.units.zero_is_dead:
            raise UsageError(
                f"{given.name} was asked to exchange units whose zeros have zero gradients for ever; "
                "use weights, filters with norm_follows=False, or IEE"
            )
        if not 0 < o.fraction < 1:
            raise UsageError(
                f"{given.name} was asked to exchange a share of {o.fraction}; give one between 0 and 1"
            )
        grow_by = Momentum(given.optimizer) if self.dense_momentum else self.grow_by
        phases = self._exchanges(given.total_steps, o, grow_by)
        return given.design((*beginning(given.limit, o.init), *phases), Magnitude())

    def _exchanges(
        self, total_steps: int, o: RigLOptions, grow_by: Criterion | Literal["random"]
    ) -> Iterator[Phase]:
        """Yields the phases after the start; refuses where no update fits, or too many gradients are averaged."""
        if not 1 <= o.average <= o.interval:
            raise UsageError(
                f"an average over the gradients of {o.average} steps every {o.interval} was asked; "
                f"give 1 to {o.interval}"
            )
        fraction = Cosine(o.fraction, o.floor, o.end * total_steps)
        update: Literal["alive", "all"] = "all" if self.dense_momentum else "alive"
        for step in update_steps(total_steps, o.interval, o.end):
            share = fraction(step)
            if not isinstance(grow_by, str) and grow_by.per_step:
                yield Train(o.interval - o.average, update=update)
                yield Train(o.average, update=update, collect=True, criterion=grow_by, gradient="all")
            else:
                yield Train(o.interval, update=update)
            yield Drop(share, by=Magnitude(), within="layer")
            yield Grow(share, by=grow_by, within=self.within, values=o.values)

    @classmethod
    def arguments(cls, request: Request) -> dict[str, Any]:
        """Returns the options that were typed; ``last`` is the share of the training where updates end."""
        last = {"end": request.options["last"]} if "last" in request.options else {}
        return {**super().arguments(request), **last}


@method(
    "set",
    paper="Mocanu et al. 2018, arXiv 1707.04780",
    budgets=("erk", "uniform", "global", "nm"),
    options=RigLOptions,
)
class SET(RigL):
    """Drops the smallest weights, grows random ones (Mocanu et al. 2018)."""

    grow_by = "random"


@method(
    "snfs",
    paper="Dettmers & Zettlemoyer 2019, arXiv 1907.04840",
    units=("weights",),
    budgets=("erk", "uniform", "global"),
    options=RigLOptions(fraction=0.5, end=1.0),
)
class SNFS(RigL):
    """Drops the smallest weights, grows by momentum, shared between layers (Dettmers & Zettlemoyer 2019).

    What all layers lose goes to each in proportion to the mean |momentum| of its active weights. Every step trains
    the momentum of all weights, so its weight gradients are dense.
    """

    within = "shared"
    dense_momentum = True


@method(
    "rigl-itop",
    paper="Liu et al. 2021, arXiv 2102.02887",
    budgets=("erk", "uniform", "global", "nm"),
    options=RigLOptions(interval=4000, fraction=0.5, floor=0.005, end=1.0),
)
class RigLITOP(RigL):
    """RigL with rare updates to the end of training, so that more weights are tried (Liu et al. 2021, for CIFAR)."""


@method(
    "set-itop",
    paper="Liu et al. 2021, arXiv 2102.02887",
    budgets=("erk", "uniform", "global", "nm"),
    options=RigLOptions(interval=1500, fraction=0.5, floor=0.005, end=1.0),
)
class SETITOP(SET):
    """SET with rare updates to the end of training (Liu et al. 2021, CIFAR settings)."""
