"""SynFlow: ``(∂R/∂|w|)·|w|`` with R the sum of the outputs of the network of absolute values, fed with ones.

Tanaka et al. 2020, Eqs. 1 and 2. No data; batch norms by their running statistics; 64-bit by default, as products over
the depth overflow 32 bits in networks from ResNet-44 on. Pruned to the target in one round it empties layers, so it
wants many rounds at densities ρ^(k/n): ``halpiee.prune_once(..., rounds=100)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from halpiee.errors import UsageError
from halpiee.saliency.criterion import Batches, Look, LossFn, Passes, elementwise
from halpiee.saliency.registry import criterion
from halpiee.sparsity.granularity import Units, evaluated, example_input
from latency.backends.torch.modules import tensors_given


@criterion("synflow", paper="Tanaka et al. 2020, arXiv 2006.05467")
@dataclass(frozen=True)
class SynFlow:
    """The synaptic flow through a unit's scoring elements; always 0 or more.

    Attributes:
        shape: of one input, without the batch; by default that of the first batch, and where there is none a usual
            one that the model accepts.
        double: whether it is computed in 64 bits.
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
            shape = (1, *self.shape)
        else:
            shape = tuple(example_input(model).shape) if first is None else (1, *first[0].shape[1:])
        # Running means are taken absolute, too: after training a negative one could make the flow negative.
        buffers = {n: b.abs().to(dtype) if b.is_floating_point() else b for n, b in model.named_buffers()}
        parameters = {n: p.detach().abs().to(dtype).requires_grad_() for n, p in model.named_parameters()}
        with evaluated(model), torch.enable_grad():
            ones = torch.ones(shape, device=device, dtype=dtype)
            answers = tensors_given(functional_call(model, {**parameters, **buffers}, (ones,)))
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
