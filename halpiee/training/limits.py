"""What does the user's budget or sparsity mean for this model? Units, µs and update intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from halpiee.data.tensors import TensorData
from halpiee.errors import UsageError
from halpiee.methods.method import Method
from halpiee.methods.registry import METHODS
from halpiee.sparsity.distribution import ERK, NM, Budget, Global, Uniform
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.granularity import Weights
from halpiee.sparsity.mask import Mask
from halpiee.training.checkpoint import load_weights
from halpiee.training.config import Settings

__all__ = [
    "budget_of",
    "densities",
    "few",
    "given_mask",
    "units_of",
    "weights_of",
]


def budget_of(s: Settings) -> Budget:
    """Returns the budget of a sparsity."""
    m = s.masks
    kind = s.distribution
    if kind == "nm":
        return NM(*m.n_of_m)
    density = 1 - (m.sparsity or 0.0)
    density = round(density, 12)
    if s.method == "gmp" and kind == "uniform":
        return Uniform(density, first=1.0, last=max(0.2, density))  # Gale et al. 2019
    kinds: dict[str, type[Uniform | ERK | Global]] = {"uniform": Uniform, "erk": ERK, "global": Global}
    return kinds[kind](density)


def weights_of(model: nn.Module, s: Settings, shape: Sequence[int] | None = None) -> Weights:
    """Returns the weights; for N:M without the layers whose inputs do not divide by M.

    Args:
        model: the network.
        s: the settings.
        shape: of one image, for the order in which layers run; ``None``: found out where it is needed.

    Raises:
        UsageError: no layer divides.
    """
    if s.distribution != "nm":
        device = next(model.parameters()).device
        return Weights(model, example_input=None if shape is None else torch.zeros(1, *shape, device=device))
    _, m = s.masks.n_of_m
    whole = Weights(model)
    odd = frozenset(name for name, shape in whole.sizes.items() if shape[1] % m)
    if len(odd) == len(whole.sizes):
        raise UsageError(
            f"{s.masks.nm} was asked, and no layer of {s.model} has inputs that divide by {m}; give another pattern"
        )
    return Weights(model, pinned=odd)


def units_of(model: nn.Module, s: Settings, shape: Sequence[int] | None = None) -> Weights | Filters:
    """Returns what a sparsity is a share of: filters where they are asked for, else weights."""
    if s.masks.units == "filters" or METHODS[s.method].sparsity == "filters":
        return Filters(model, norm_follows=not s.masks.regrow)
    return weights_of(model, s, shape)


def given_mask(path: str) -> Mask:
    """Returns the mask that a run ended with.

    Args:
        path: the run's folder, or its ``mask.safetensors``.

    Raises:
        UsageError: there is none, or a file of something else.
    """
    file = Path(path) / "mask.safetensors" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UsageError(
            f"--mask {path} was asked, and there is no {file}; give the folder of a finished run whose method masks "
            "weights, or its mask.safetensors"
        )
    found = load_weights(file)
    if odd := [name for name, kept in found.items() if kept.dtype != torch.bool]:
        raise UsageError(
            f"--mask {path} holds {odd[0]!r} of {found[odd[0]].dtype}, and masks are of bool; "
            "give the mask.safetensors of a run"
        )
    return Mask(found)


def few(data: TensorData, a_class: int) -> list[tuple[Tensor, Tensor]]:
    """Returns one batch of the first training images of each class: what pruning at initialisation scores on."""
    index = torch.cat([(data.train_y == c).nonzero().flatten()[:a_class] for c in range(data.n_classes)])
    return [(data.normalised(data.train_x[index]), data.train_y[index])]


def densities(method: Method) -> dict[str, float]:
    """Returns unit name → share that is active; what is left out is dense."""
    found = {n: k / math.prod(method.units.sizes[n]) for n, k in method.alive.counts.items()}
    return {**found, **dict.fromkeys(method.units.left_out, 1.0)}
