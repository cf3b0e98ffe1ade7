"""Pruning plasticity: the accuracy that continued training gains over that before pruning (arXiv 2106.10404, Sec. 3).

At a time t the network of weights w_t is pruned once, trained on for k epochs at the constant learning rate it had, and
``plasticity(t) = accuracy(CONTRAIN^k(w_t · m, a_t)) − accuracy(w_t)``. With regrowth, as many weights as were removed
come back by |gradient|, zero, before the training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from halpiee.errors import UsageError
from halpiee.methods.allocator import LayerPools
from halpiee.sparsity.distribution import Uniform
from halpiee.sparsity.granularity import Weights
from halpiee.sparsity.mask import Mask
from latency.copies import copy_of

__all__ = ["Plasticity", "pruning_plasticity"]


@dataclass(frozen=True)
class Plasticity:
    """What pruning at one time cost, and how much of it came back.

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
) -> Plasticity:
    """Prunes a copy of a network once, trains it on, and returns what that did.

    Args:
        model: as it was at time t; left as it is.
        rate: share of the weights that are not zero that each layer loses, the smallest ones.
        train: trains the copy for k epochs at the constant rate; gets weight name → which may be other than zero, and
            has to keep the others at zero (``Static(…, init="magnitude")`` at that density does).
        accuracy: of a network on the test images.
        gradients: weight name → gradient of the dense network; given, as many weights as were removed come back by
            its size, starting from zero.

    Raises:
        UsageError: a rate outside (0, 1), or gradients of some weights only.
    """
    if not 0 < rate < 1:
        raise UsageError(
            f"a pruning rate of {rate} was asked; give the share that is removed, between 0 and 1"
        )
    before = accuracy(model)
    copied = copy_of(model)
    units = Weights(copied)
    parameters = dict(copied.named_parameters())
    pools = LayerPools(units, Uniform(1.0))
    alive = Mask({name: (parameters[name] != 0).cpu() for name in units.sizes})
    size = {name: parameters[name].detach().abs().cpu() for name in units.sizes}
    counts = {name: max(1, k - int(rate * k)) for name, k in alive.counts.items()}
    nothing = Mask.full(units.sizes, False)
    kept = pools.choose_counts(size, must=nothing, may=alive, counts=counts).alive
    chosen = kept
    if gradients is not None:
        if missing := [name for name in units.sizes if name not in gradients]:
            raise UsageError(
                f"a gradient of {missing[0]!r} is missing; give those of all {len(units.sizes)} weights"
            )
        scores = {name: gradients[name].detach().abs().cpu() for name in units.sizes}
        chosen = pools.choose_counts(scores, must=kept, may=~kept, counts=alive.counts).alive
    with torch.no_grad():
        for name in units.sizes:
            parameters[name].mul_(kept[name].to(parameters[name].device))
    pruned = accuracy(copied)
    train(copied, dict(chosen))
    return Plasticity(before, pruned, accuracy(copied), chosen.density)
