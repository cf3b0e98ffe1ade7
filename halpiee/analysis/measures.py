"""Measures of one network at one time: neuron collapse, correlations of scores, pruning plasticity.

Neuron collapse (Frankle et al. 2021, Sec. 5) is the share of convolution channels that have lost all incoming weights:
a mask from an initialisation that removes whole neurons behaves as one of another architecture. It needs no training,
and differs between score functions: on ResNet-20 at 73.8 % sparsity SynFlow empties 31 % of the channels, the same mask
shuffled within each layer 1 %, SNIP 5 %, GraSP 1 %, magnitude none. Correlations compare measures of filters: |σ·Δσ|
with loss preservation, θᵀHg with θᵀg (arXiv 2009.11839). Pruning plasticity is the share of the accuracy lost by a
prune that further training recovers (GraNet, arXiv 2106.10404, Sec. 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from halpiee.errors import UsageError
from halpiee.methods.allocator import LayerPools
from halpiee.saliency.criterion import elementwise
from halpiee.sparsity.distribution import Global, Uniform
from halpiee.sparsity.granularity import Units, Weights
from halpiee.sparsity.mask import Mask
from latency.backends.torch.modules import copy_of


def collapsed_channels(masks: Mapping[str, Tensor], *, threshold: float = 1.0) -> dict[str, Tensor]:
    """Returns convolution → BoolTensor ``[C_out]``: which output channels have lost their incoming weights.

    Args:
        masks: weight name → BoolTensor ``[C_out, C_in, *kernel]``; weights of linear layers ``[C_out, C_in]`` are left
            out.
        threshold: share of its incoming weights that a channel has lost at least; 1: all of them.

    Raises:
        UsageError: a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"channels that lost {threshold} of their weights were asked; give a share up to 1")
    found = {}
    for name, mask in masks.items():
        if mask.dim() > 2:
            lost, size = (~mask).flatten(1).sum(dim=1), mask[0].numel()
            found[name] = lost >= math.ceil(round(threshold * size, 9))
    return found


def neuron_collapse(masks: Mapping[str, Tensor], *, threshold: float = 1.0) -> float:
    """Returns the percentage of all convolution output channels that have lost their incoming weights.

    Args:
        masks: see ``collapsed_channels``.
        threshold: likewise.

    Raises:
        UsageError: no mask of a convolution.
    """
    gone = collapsed_channels(masks, threshold=threshold)
    if not gone:
        raise UsageError(
            f"neuron collapse of {len(masks)} masks was asked, none of them of a convolution; "
            "pass the masks of weights of a convolutional network"
        )
    return 100 * sum(int(g.sum()) for g in gone.values()) / sum(len(g) for g in gone.values())


def correlation(first: Tensor, second: Tensor) -> float:
    """Returns Pearson's correlation −1 … 1 of two measures ``[n]`` of the same units.

    It is NaN where one of them does not vary.

    Raises:
        UsageError: of different length, or fewer than two units.
    """
    a, b = first.detach().flatten().double().cpu(), second.detach().flatten().double().cpu()
    if len(a) != len(b) or len(a) < 2:
        raise UsageError(
            f"a correlation of {len(a)} and {len(b)} units was asked; give two measures of the same units, two at least"
        )
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def correlations(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, float]:
    """Returns layer → correlation over its units, and ``""`` → over those of all layers.

    Layers that only one of the two measures has (a filter without a batch norm has no σ) are left out.
    """
    names = [name for name in first if name in second]
    if not names:
        raise UsageError(
            "a correlation of two measures without a common layer was asked; score the same units"
        )
    found = {name: correlation(first[name], second[name]) for name in names if first[name].numel() > 1}
    whole = (torch.cat([scores[name].flatten() for name in names]) for scores in (first, second))
    return {**found, "": correlation(*whole)}


@dataclass(frozen=True)
class Plasticity:
    """The accuracy before and after a prune, and after further training.

    Attributes:
        before: accuracy before pruning.
        pruned: accuracy right after it.
        after: accuracy after the continued training.
        density: share of weights that is active while it goes on.
    """

    before: float
    pruned: float
    after: float
    density: float

    @property
    def value(self) -> float:
        """The plasticity: after − before."""
        return self.after - self.before


def pruning_plasticity(
    model: nn.Module,
    *,
    rate: float,
    train: Callable[[nn.Module, Mapping[str, Tensor]], None],
    accuracy: Callable[[nn.Module], float],
    gradients: Mapping[str, Tensor] | None = None,
    units: Units | None = None,
    within: Literal["layer", "global"] = "layer",
) -> Plasticity:
    """Prunes a copy of a network once, trains it on, and returns its accuracy at each time.

    Args:
        model: as it was at time t; it is not changed.
        rate: share of the units that are not zero that is removed, the smallest ones.
        train: trains the copy for k epochs at the constant rate; gets unit name → which may be other than zero, and
            has to keep the others at zero (``halpiee.methods.rewind.keeping_mask`` does).
        accuracy: of a network on the test images.
        gradients: parameter name → gradient of the dense network; given, as many units as were removed come back by
            its size, starting from zero.
        units: weights, or filters whose norms stay (``Filters(model, norm_follows=False)``); by default weights.
        within: each ``layer`` loses the share, or all layers together, by one ranking.

    Raises:
        UsageError: a rate outside (0, 1), or gradients of some weights only.
    """
    if not 0 < rate < 1:
        raise UsageError(
            f"a pruning rate of {rate} was asked; give the share that is removed, between 0 and 1"
        )
    before = accuracy(model)
    copied = copy_of(model)
    units = Weights(model) if units is None else units
    parameters = {name: p.detach() for name, p in copied.named_parameters()}
    size = _sums(units, parameters)
    alive = Mask({name: s > 0 for name, s in size.items()})
    nothing = Mask.full(units.sizes, False)
    counts = {name: max(1, k - int(rate * k)) for name, k in alive.counts.items()}
    if within == "global":
        pool, total = LayerPools(units, Global(1.0)), sum(alive.counts.values())
        level = (total - int(rate * total)) / pool.total
        counts = Mask.of(pool.choose(size, must=nothing, may=alive, level=level).keep).counts
    pools = LayerPools(units, Uniform(1.0))
    kept = Mask.of(pools.choose_counts(size, must=nothing, may=alive, counts=counts).keep)
    chosen = kept
    if gradients is not None:
        scores = _sums(units, gradients)
        if missing := [name for name in units.sizes if name not in scores]:
            raise UsageError(
                f"a gradient of {missing[0]!r} is missing; give those of all {len(units.sizes)} weights"
            )
        chosen = Mask.of(pools.choose_counts(scores, must=kept, may=~kept, counts=alive.counts).keep)
    with torch.no_grad():
        for name, free in units.masks(kept).items():
            if name in parameters:
                parameters[name].mul_(free.to(parameters[name].device))
    pruned = accuracy(copied)
    train(copied, dict(chosen))
    return Plasticity(before, pruned, accuracy(copied), chosen.density)


def _sums(units: Units, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the sum of the absolute values of each unit's elements, on the CPU."""
    return {name: total.cpu() for name, total in units.reduce(elementwise(torch.abs, tensors.get)).items()}
