"""Criteria of gradients: first-order scores, Hessian-gradient products (GraSP), synaptic flow.

**First order**: the change of the loss when a unit is removed. Taylor: ``|w·g|`` of a weight (Molchanov et al. 2017);
of coupled channels ``|Σ_l (γ_l·g_γl + β_l·g_βl)|``, summed over the coupled layers before the absolute value (Molchanov
et al. 2019, Eq. 8; HALP, Sec. 3); of filters the same on the norm behind each; of units without a norm ``|Σ w·g|`` over
the weights and biases that produce them. SNIP (Lee et al. 2019, Eq. 4) is the same number at initialisation. Loss
preservation (Lubana & Dick 2021, Eqs. 3, 8): ``|θᵀg|`` of a filter, and ``‖θ‖·|θᵀg|``. Gradient: ``|g|`` of a weight (
the growth score of RigL, Evci et al. 2020), ``Σ|g|`` over a filter: the regrowth score of structured GraNet (Liu et al.
2021), on a filter that is zeroed while γ and β stay.

A batch norm in training mode undoes any scale of the layer before it, so ``Σ w·g`` over the weights of each of that
layer's units is zero, up to rounding and the norm's ε. A ranking by such remainders is chance. They become exact zeros,
which ``halpiee.score`` reports. Score in ``InMode(…, "eval")`` to avoid them.

**GraSP**: ``w·(H g)``, the change of gradient flow when a weight is kept (Wang et al. 2020, Eq. 8, sign turned).
Removing weights with the highest ``−w·(H g)`` keeps the gradient norm; so the lowest ``w·(H g)`` are removed first. Its
absolute value is "magnitude GraSP" (Frankle et al. 2021). On filters ``θᵀHg`` (Lubana & Dick 2021) is the sum over a
filter. H and g are those of the loss on ``logits / T``; T = 200 in the released code, 1 is the plain product. Batch
norms are in training mode for pruning at initialisation.

**SynFlow**: ``(∂R/∂|w|)·|w|`` with R the sum of the outputs of the network of absolute values, for an input of ones
(Tanaka et al. 2020, Eqs. 1 and 2). No data; batch norms by their running statistics; 64-bit by default, as products
over the depth overflow 32 bits in networks from ResNet-44 on. Pruned to the target in one round it empties layers, so
it needs many rounds at densities ρ^(k/n): ``halpiee.prune_once(..., rounds=100)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from halpiee.errors import UsageError
from halpiee.inputs import ordered, split
from halpiee.saliency.criterion import (
    Batches,
    Look,
    LossFn,
    NormMode,
    Passes,
    elementwise,
    hessian_gradients,
    loss_gradients,
    norm_mode,
    pooled_gradients,
)
from halpiee.saliency.magnitude import Norm
from halpiee.saliency.registry import criterion
from halpiee.sparsity.granularity import Units, evaluated, example_input
from latency.backends.torch.modules import tensors_given


@criterion("gradient", paper="Evci et al. 2020, arXiv 1911.11134")
@dataclass(frozen=True)
class Gradient:
    """``|g|`` of a weight, ``Σ|g|`` over other units, on every step; batch norms run in the mode the model is in."""

    per_step: bool = True

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        return units.reduce(elementwise(torch.abs, gradient))


@criterion("taylor", paper="Molchanov et al. 2019, arXiv 1906.10771")
@dataclass(frozen=True)
class Taylor:
    """``|Σ w·g|`` over a unit's scoring elements, on every step."""

    per_step: bool = True

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        product = elementwise(torch.mul, value, gradient)
        gate = getattr(units, "gate", units.reduce)
        return {name: total.abs() for name, total in exact_sums(gate, product).items()}


@criterion("snip", paper="Lee et al. 2019, arXiv 1810.02340")
@dataclass(frozen=True)
class SNIP:
    """``|Σ w·g|``: the loss's sensitivity to a gate on each unit (Lee et al. 2019, Eq. 4).

    ``norms`` is the mode of the batch norms while scoring: training, over ten examples a class (Frankle et al. 2021;
    measured by neuron collapse, see ``halpiee.analysis.measures``).
    """

    norms: NormMode = "train"
    per_step: bool = True

    def probe(self, model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
        """Yields the loss gradients of each batch."""
        with norm_mode(model, self.norms):
            yield from loss_gradients(model, batches, loss_fn)

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        return Taylor()(units, value, gradient)


@criterion("loss", paper="Lubana & Dick 2021, arXiv 2009.11839")
@criterion("loss-magnitude", paper="Lubana & Dick 2021, arXiv 2009.11839", options={"magnitude": True})
@dataclass(frozen=True)
class LossPreservation:
    """``|θᵀg|``, or with ``magnitude`` ``‖θ‖₂·|θᵀg|``, over a unit's scoring elements.

    Over batches g is one gradient, the mean of theirs, as in the paper, whose g is over 2,560 images: a mean of the
    batches' own ``|θᵀg|`` would be mostly their noise. Read off training steps it is the mean over the steps.

    ``signed`` keeps the sign of θᵀg, of which the correlation with θᵀHg is taken; ``elementwise`` is as the released
    code computes it: ``Σ|θ_i g_i|``, with the magnitude ``Σ|θ_i² g_i|``.
    """

    magnitude: bool = False
    elementwise: bool = False
    signed: bool = False
    per_step: bool = True

    def probe(self, model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
        """Yields the mean gradient of all batches."""
        return pooled_gradients(model, batches, loss_fn)

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        product = elementwise(torch.mul, value, gradient)
        if self.elementwise:
            power = 2 if self.magnitude else 1
            product = elementwise(lambda w, g: (w.pow(power) * g).abs(), value, gradient)
        total = exact_sums(units.reduce, product)
        found = dict(total) if self.signed else {name: t.abs() for name, t in total.items()}
        if self.magnitude and not self.elementwise:
            size = Norm(2)(units, value, gradient)
            found = {name: size[name] * total for name, total in found.items()}
        return found


REST = 1e-3
"""A sum of products below this share of the sum of their sizes, for *every* unit of a group, is rounding.

Rounding leaves 1e-6 of it in 32 bits, the ε of a norm up to about 1e-4 at the variances of an initialisation. The
share of one unit of n independent products falls below r with a probability of about r·√n, so a group of a few units
passes by chance with less than one in a thousand.
"""


def exact_sums(reduce: Callable[[Look], dict[str, Tensor]], product: Look) -> dict[str, Tensor]:
    """Returns the sums over units of an element-wise product; exactly zero in a group where all of them cancel out."""
    sizes = reduce(elementwise(torch.abs, product))
    return {
        name: torch.where((total.abs() <= REST * sizes[name]).all(), total * 0, total)
        for name, total in reduce(product).items()
    }


@criterion("grasp", paper="Wang et al. 2020, arXiv 2002.07376")
@criterion("grasp-magnitude", paper="Frankle et al. 2021, arXiv 2009.08576", options={"magnitude": True})
@criterion("grasp-plain", paper="Wang et al. 2020, arXiv 2002.07376", options={"temperature": 1.0})
@dataclass(frozen=True)
class GraSP:
    """``Σ w·(H g)`` over a unit's scoring elements; needs batches, and cannot be read off a training step.

    ``temperature`` is T, ``norms`` the mode of the batch norms while scoring; ``magnitude`` takes the absolute value
    (magnitude GraSP), ``pooled`` the mean g over all batches, not that of each. As in the released code, ``halves``
    splits each batch in two, and ``redraw_linear`` is a seed to draw linear weights from Xavier's normal with while
    scoring; ``None`` keeps them.
    """

    temperature: float = 200.0
    magnitude: bool = False
    norms: NormMode = "train"
    pooled: bool = False
    halves: bool = False
    redraw_linear: int | None = None
    per_step: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UsageError(f"a temperature of {self.temperature} was asked of GraSP; give a positive one")

    @classmethod
    def released(cls, seed: int = 0) -> GraSP:
        """Returns the conventions of the authors' code: T = 200, halves, g over both, Xavier for linear layers."""
        return cls(pooled=True, halves=True, redraw_linear=seed)

    def probe(self, model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
        """Yields H·g of each batch (or half)."""
        if self.halves:
            batches = (
                h for x, y in batches for h in zip(split(x, (len(y) + 1) // 2), y.chunk(2), strict=True)
            )
        with norm_mode(model, self.norms), _linear_redrawn(model, self.redraw_linear):
            yield from hessian_gradients(
                model, batches, loss_fn, temperature=self.temperature, pooled=self.pooled
            )

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        found = units.reduce(elementwise(torch.mul, value, gradient))
        if not found:
            raise UsageError(
                "GraSP was asked for without batches: its Hessian-gradient product cannot be read off a training "
                "step; score over batches, or use taylor or magnitude"
            )
        return {name: total.abs() if self.magnitude else total for name, total in found.items()}


@contextmanager
def _linear_redrawn(model: nn.Module, seed: int | None) -> Iterator[None]:
    """Inside, the weights of linear layers are redrawn; afterwards they are restored, bit for bit."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)] if seed is not None else []
    before = [layer.weight.detach().clone() for layer in layers]
    generator = torch.Generator().manual_seed(seed or 0)
    try:
        with torch.no_grad():
            for layer in layers:
                std = (2 / (layer.in_features + layer.out_features)) ** 0.5
                drawn = torch.randn(layer.weight.shape, generator=generator) * std
                layer.weight.copy_(drawn)
        yield
    finally:
        with torch.no_grad():
            for layer, value in zip(layers, before, strict=True):
                layer.weight.copy_(value)


@criterion("synflow", paper="Tanaka et al. 2020, arXiv 2006.05467")
@dataclass(frozen=True)
class SynFlow:
    """The synaptic flow through a unit's scoring elements, always 0 or more; with ``double`` it is computed in 64 bits.

    ``shape`` is that of one input, without the batch; by default that of the first batch, else a usual one that the
    model accepts.
    """

    shape: tuple[int, ...] | None = None
    double: bool = True
    per_step: bool = False

    def probe(self, model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
        """Yields ∂R/∂|w|, once; the model's tensors are never written to."""
        device = next(model.parameters()).device
        dtype = torch.float64 if self.double else torch.float32
        first = next(iter(batches), None) if self.shape is None else None
        if self.shape is not None:
            x = torch.empty(1, *self.shape)
        else:
            x = example_input(model) if first is None else split(first[0], 1)[0]
        # Running means are taken absolute, too: after training a negative one could make the flow negative.
        buffers = {n: b.abs().to(dtype) if b.is_floating_point() else b for n, b in model.named_buffers()}
        parameters = {n: p.detach().abs().to(dtype).requires_grad_() for n, p in model.named_parameters()}
        with evaluated(model), torch.enable_grad():
            ones = tree_map(lambda one: torch.ones(one.shape, device=device, dtype=dtype), x)
            answers = tensors_given(functional_call(model, {**parameters, **buffers}, ordered(model, ones)))
            out = torch.stack([answer.sum() for answer in answers]).sum()
            found = torch.autograd.grad(out, list(parameters.values()), allow_unused=True)
        yield dict(zip(parameters, found, strict=True))

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        found = units.reduce(elementwise(lambda w, g: w.abs().to(g.dtype) * g, value, gradient))
        if not found:
            raise UsageError(
                "SynFlow was asked for at a training step: its gradients are those of another network; "
                "score with it over batches (none are needed), or use magnitude or taylor"
            )
        return found
