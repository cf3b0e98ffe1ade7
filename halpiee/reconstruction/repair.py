"""How much accuracy can a cut network win back without training? Each layer is solved again from unlabelled images.

The kept channels of every convolution and linear layer should say what they said in the dense network. Layer by layer,
in the order of the forward, the weights of the compact network become the ridge solution

    W = argmin Σ_p ‖x_p W − y_p‖² + λ·(‖W − W₀‖²),

where ``x_p`` is what the *compact* network feeds the layer at position p (its earlier layers solved already), ``y_p``
what the layer gives in the *dense* network, and W₀ the weights that the cut left. λ is the one with the smallest error
on held-out images. Batch norms take the statistics of what now reaches them. Least squares per layer after pruning:
He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (2017), Eq. 5; here for every kind of layer,
towards the cut weights, with residuals made up for, and through the whole network in one pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from halpiee.errors import UsageError
from halpiee.reconstruction.layer_call import plain_attention
from halpiee.reconstruction.layout import Layout, layouts_of
from halpiee.reconstruction.residual import residuals_of
from halpiee.reconstruction.samples import Sampler
from halpiee.reconstruction.solver import RepairedLayer, Settings, Solver
from halpiee.structure.groups import Structure
from halpiee.structure.shrink import kept_positions, shrink

__all__ = ["RepairedLayer", "Settings", "repair"]

BATCH = 32
"""Images that pass through the dense network at once."""


def repair(
    model: nn.Module,
    structure: Structure,
    keep: Mapping[str, Tensor],
    batches: Iterable[Any],
    *,
    settings: Settings | None = None,
    compact: nn.Module | None = None,
    report: Callable[[RepairedLayer], None] = lambda layer: None,
) -> nn.Module:
    """Returns the compact network with its layers solved again and its batch norms estimated again; no labels.

    Memory holds the compact network's activations of all images at once, and sampled outputs of the dense network.

    Args:
        model: the dense network, with trained weights; left as it is.
        structure: of the model.
        keep: group name → BoolTensor ``[size]``; as for ``shrink``.
        batches: inputs, or (inputs, labels) of which the labels are not read; from the training images, without
            augmentation.
        settings: how layers are solved; by default ``Settings()``.
        compact: weights to start from, as ``shrink`` gave them, maybe trained since; by default the cut's.
        report: told of each layer.

    Raises:
        UsageError: no images, or less than five.
    """
    s = settings or Settings()
    inputs = _inputs(batches, s.images)
    cut = copy.deepcopy(compact) if compact is not None else shrink(model, structure, keep)
    assert isinstance(cut, nn.Module)
    dense = copy.deepcopy(model).eval()
    cut.eval()
    alive = structure.keep_vector(keep)
    kept = kept_positions(structure, alive)
    dense_names = {id(p): n for n, p in dense.named_parameters()}
    cut_names = {id(p): n for n, p in cut.named_parameters()}
    shapes = {n: p.shape for n, p in cut.named_parameters()}
    n = len(inputs[0])
    with torch.no_grad(), plain_attention():
        plans = layouts_of(dense, dense_names, inputs, kept)
        if s.only is not None:
            plans = {
                n: p if n in s.only else Layout(skipped="it was not asked for") for n, p in plans.items()
            }
        layouts = layouts_of(cut, cut_names, inputs, {})
        adds = residuals_of(dense, dense_names, inputs) if s.residuals else {}
        here = residuals_of(cut, cut_names, inputs) if s.residuals else {}
        adds = {name: add for name, add in adds.items() if name in here}
        sampler = Sampler(dense_names, plans, shapes, adds, n, s.seed)
        for at in range(0, n, BATCH):
            sampler.start(min(BATCH, n - at))
            part = tuple(x[at : at + BATCH] for x in inputs)
            with sampler:
                dense(*part)
        solver = Solver(cut, sampler, layouts, here, n, s, report)
        with solver:
            cut(*inputs)
        for name in shapes:
            if len(shapes[name]) > 1 and name not in solver.done:
                report(RepairedLayer(name, skipped="no layer is called with it as it is"))
    return cut.train(model.training)


def _inputs(batches: Iterable[Any], images: int) -> tuple[Tensor, ...]:
    """Returns the first images of all batches, one tensor for each input of the network."""
    parts: list[tuple[Tensor, ...]] = []
    have = 0
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple | list) else batch
        x = tuple(x) if isinstance(x, tuple | list) else (x,)
        parts.append(tuple(t[: images - have] for t in x))
        have += len(parts[-1][0])
        if have >= images:
            break
    if have < 5:
        raise UsageError(
            f"repair was given {have} images; it solves layers from activations: give at least 5, better 512, of the "
            "training images as batches=[inputs, …]"
        )
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
