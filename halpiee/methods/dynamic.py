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

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.method import BudgetLike, Method, UnitsLike, default_units, update_steps
from halpiee.methods.momentum import Momentum
from halpiee.methods.phases import Drop, Grow, Phase, Recipe, Resize, Shuffle, Start, Train
from halpiee.methods.pools import bind
from halpiee.methods.unwrap import bare
from halpiee.saliency.criterion import Criterion
from halpiee.saliency.gradient import Gradient
from halpiee.saliency.magnitude import Given, Magnitude
from halpiee.sparsity.distribution import ERK, Budget, Global, PerLayer, as_budget
from halpiee.sparsity.granularity import Units
from halpiee.sparsity.mask import Mask
from halpiee.sparsity.schedule import Cosine, Curve

__all__ = ["SET", "SETITOP", "SNFS", "RigL", "RigLITOP", "Static", "exchange"]

Init = Literal["random", "magnitude"]


def beginning(budget: Budget, init: Init, mask: Mask | None = None) -> tuple[Phase, ...]:
    """Returns the first choice of units: given, random, or the largest of given weights; Global spreads as ERK."""
    if mask is not None:
        return (Resize(by=Given(mask), among="all", event="init"),)
    if init == "magnitude":
        return (Resize(by=Magnitude(), among="all", event="init"),)
    spread = ERK(budget.density) if isinstance(budget, Global) else None
    return (Start(budget=spread),)


def exchange(
    *,
    total_steps: int,
    interval: int,
    end: float,
    fraction: Curve,
    grow_by: Criterion | Literal["random"],
    within: Literal["layer", "shared"] = "layer",
    values: Literal["zero", "last"] = "zero",
    average: int = 1,
    dense_momentum: bool = False,
) -> Recipe:
    """Returns the exchanges of dynamic sparse training as phases; a start goes before.

    Args:
        total_steps: optimizer steps of the whole training.
        interval: ΔT.
        end: share of the training after which nothing is exchanged (T_end).
        fraction: step → share f of a layer's active weights.
        grow_by: a criterion, or ``random``.
        within: every layer grows as many as it lost, or what all lost is shared by mean score.
        values: grown weights start at zero, or at their last values.
        average: steps whose gradients are averaged for growing; 1: the step of the update alone.
        dense_momentum: whether the momentum of inactive weights is trained.

    Raises:
        UsageError: no update fits.
    """
    if not 1 <= average <= interval:
        raise UsageError(
            f"gradients of {average} steps were to be averaged every {interval}; give 1 to {interval}"
        )
    phases: list[Phase] = []
    update: Literal["alive", "all"] = "all" if dense_momentum else "alive"
    reads = not isinstance(grow_by, str) and grow_by.per_step
    for step in update_steps(total_steps, interval, end):
        share = fraction(step)
        if reads and not isinstance(grow_by, str):
            phases += [
                Train(interval - average, update=update),
                Train(average, update=update, collect=True, criterion=grow_by, gradient="all"),
            ]
        else:
            phases.append(Train(interval, update=update))
        phases += [
            Drop(share, by=Magnitude(), within="layer"),
            Grow(share, by=grow_by, within=within, values=values),
        ]
    return tuple(phases)


class Static(Method):
    """A random mask that never changes: the least a sparse training has to beat.

    Args:
        model: trained in place.
        optimizer: over ``model.parameters()``.
        budget: ``ERK``, ``Uniform``, ``PerLayer``, ``Global`` (spread as ERK) or ``NM``; left out for a ``mask``.
        total_steps: not read; every method takes it.
        units: by default every weight of conv and linear layers.
        init: ``random`` units, or the largest of the given weights (``magnitude``).
        mask: the units themselves: those that another training ended with, say.
        shuffle: whether the mask is shuffled within each layer: an ablation.
        protect: names of weights (or groups, or convolutions) to leave whole.
        seed: of the mask.

    Raises:
        UsageError: neither a budget nor a mask, or both.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        budget: BudgetLike | None = None,
        total_steps: int = 0,
        units: UnitsLike | None = None,
        init: Init = "random",
        mask: Mask | None = None,
        shuffle: bool = False,
        protect: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        if (budget is None) == (mask is None):
            raise UsageError(
                "a static mask is either given or drawn; give exactly one of budget=… and mask=…"
            )
        if budget is None:
            assert mask is not None
            _check_types(mask)
            budget = PerLayer({name: int(kept.sum()) / kept.numel() for name, kept in mask.items()})
        budget = as_budget(budget, latency=False)
        units = default_units(bare(model), budget, None, protect, units)
        if mask is not None:
            _check_mask(mask, units)
        super().__init__(
            model,
            optimizer,
            units=units,
            pool=bind(budget, units, None),
            recipe=(*beginning(budget, init, mask), *((Shuffle(seed),) if shuffle else ())),
            criterion=Magnitude(),
            seed=seed,
        )


def _check_types(mask: Mask) -> None:
    """Refuses what is no mask."""
    if odd := [n for n, kept in mask.items() if not isinstance(kept, Tensor) or kept.dtype != torch.bool]:
        raise UsageError(
            f"a mask was given whose {odd[0]!r} is no bool tensor; give halpiee.sparsity.Mask, or bool tensors"
        )


def _check_mask(mask: Mask, units: Units) -> None:
    """Refuses a mask of another network."""
    found = {name: tuple(kept.shape) for name, kept in mask.items()}
    for name, size in units.sizes.items():
        if found.get(name) != size:
            raise UsageError(
                f"a mask was given whose {name!r} is {found.get(name, 'missing')}, and this network's is {size}; "
                "give the mask of this very network"
            )


class RigL(Method):
    """Drops the smallest weights, grows those of the largest gradient (Evci et al. 2020).

    Args:
        model: trained in place.
        optimizer: over ``model.parameters()``.
        budget: ``ERK``, ``Uniform``, ``PerLayer``, ``Global`` (spread as ERK) or ``NM``.
        total_steps: optimizer steps of the whole training.
        units: by default every weight of conv and linear layers.
        interval: ΔT.
        fraction: α: the share of a layer's active weights that the first update would exchange.
        floor: what a half cosine lets it fall to.
        end: share of the training after which nothing is exchanged.
        values: grown weights start at ``zero``, or at their ``last`` values.
        average: steps whose gradients are averaged for growing.
        init: ``random`` units, or the largest of the given weights (``magnitude``).
        protect: names of weights (or groups, or convolutions) to leave whole.
        seed: of every random choice.

    Raises:
        UsageError: no update fits, channels (a zero channel has no gradient), an optimizer that cannot be masked.
    """

    grow_by: Criterion | Literal["random"] = Gradient()
    within: Literal["layer", "shared"] = "layer"
    dense_momentum = False
    defaults = (100, 0.3, 0.0, 0.75)
    """ΔT, α, its floor and the end of updates, as the paper has them."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        budget: BudgetLike,
        total_steps: int,
        units: UnitsLike | None = None,
        interval: int | None = None,
        fraction: float | None = None,
        floor: float | None = None,
        end: float | None = None,
        values: Literal["zero", "last"] = "zero",
        average: int = 1,
        init: Init = "random",
        protect: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        budget = as_budget(budget, latency=False)
        units = default_units(bare(model), budget, None, protect, units)
        name = type(self).__name__
        if units.zero_is_dead:
            raise UsageError(
                f"{name} was asked to exchange units whose zeros have zero gradients for ever; "
                "use weights, filters with norm_follows=False, or IEE"
            )
        given = (interval, fraction, floor, end)
        dt, alpha, least, until = (d if g is None else g for g, d in zip(given, self.defaults, strict=True))
        if not 0 < alpha < 1:
            raise UsageError(f"{name} was asked to exchange a share of {alpha}; give one between 0 and 1")
        grow_by = Momentum(optimizer) if self.dense_momentum else self.grow_by
        recipe = exchange(
            total_steps=total_steps,
            interval=int(dt),
            end=until,
            fraction=Cosine(alpha, least, until * total_steps),
            grow_by=grow_by,
            within=self.within,
            values=values,
            average=average,
            dense_momentum=self.dense_momentum,
        )
        super().__init__(
            model,
            optimizer,
            units=units,
            pool=bind(budget, units, None),
            recipe=(*beginning(budget, init), *recipe),
            criterion=Magnitude(),
            seed=seed,
        )


class SET(RigL):
    """Drops the smallest weights, grows random ones (Mocanu et al. 2018); arguments as RigL."""

    grow_by = "random"


class SNFS(RigL):
    """Drops the smallest weights, grows by momentum, shared between layers (Dettmers & Zettlemoyer 2019).

    What all layers lose goes to each in proportion to the mean |momentum| of its active weights. Every step trains
    the momentum of all weights, so its weight gradients are dense.
    """

    within = "shared"
    dense_momentum = True
    defaults = (100, 0.5, 0.0, 1.0)


class RigLITOP(RigL):
    """RigL with rare updates to the end, so that more weights are ever tried (Liu et al. 2021, CIFAR settings)."""

    defaults = (4000, 0.5, 0.005, 1.0)


class SETITOP(SET):
    """SET with rare updates to the end (Liu et al. 2021, CIFAR settings)."""

    defaults = (1500, 0.5, 0.005, 1.0)
