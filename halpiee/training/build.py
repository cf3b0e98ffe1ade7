"""From the settings of a run to objects: its network, its units and budget, its method, its optimizer and rate.

A method is bound to everything but the model and the optimizer that it is attached to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.method import Method, Request
from halpiee.methods.registry import METHODS
from halpiee.methods.rewind import draw_normal
from halpiee.saliency.criterion import LossFn
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import ERK, NM, Budget, Global, Latency, Uniform
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.granularity import Weights
from halpiee.sparsity.mask import Mask
from halpiee.structure.groups import Structure
from halpiee.tasks import named
from halpiee.training.checkpoint import load_weights
from halpiee.training.config import Settings
from halpiee.training.weights import fit_weights
from halpiee.zoo import build


@dataclass(frozen=True)
class Material:
    """What a method is built from beside the settings: the network's structure and the data."""

    structure: Callable[[], Structure]  # gives that of the network
    examples: Callable[..., Sequence[tuple[Any, Any]]]  # as those of a request
    n_classes: int  # of the data, to draw the network again
    example: tuple[Any, ...] | None = None  # inputs where the network lies, for the order in which layers run
    loss: LossFn = cross_entropy  # of a batch, what scores over examples take gradients of
    images: Callable[[], Any] = lambda: None  # gives inputs without labels to solve layers from


def method_of(
    s: Settings,
    model: nn.Module,
    total_steps: int,
    material: Material,
    *,
    limit: tuple[LatencyCost, float] | None = None,
    protect: Collection[str] = (),
) -> Callable[[nn.Module, Optimizer], Method]:
    """Returns the method of a run with all its options, ready for a model and its optimizer.

    ``limit`` is the latency model and the budget in µs, ``None`` where the settings ask for a sparsity; groups to
    ``protect`` stay whole within it.
    """
    entry = METHODS[s.method].load()
    assert isinstance(entry.make, type)
    assert issubclass(entry.make, Method)
    given: dict[str, Any] = {"total_steps": total_steps, "seed": s.seed, "loss_fn": material.loss}
    if limit is not None:
        cost, budget_us = limit
        given |= {
            "budget": Latency(us=budget_us),
            "structure": material.structure(),
            "cost": cost,
            "protect": protect,
        }
        units = "channels"
        if s.masks.repair:
            given["images"] = material.images()
    else:
        if s.masks.mask is None:
            given["budget"] = budget_of(s)
        given["units"] = units_of(model, s, material.example)
        units = "filters" if isinstance(given["units"], Filters) else "weights"
        if units == "filters":
            given["structure"] = material.structure()
    request = Request(
        options={**entry.preset, **_typed(s, material.n_classes)},
        cycle=asdict(s.cycle),
        steps=lambda: s.cycle_steps(total_steps),
        model=model,
        seed=s.seed,
        total_steps=total_steps,
        pretrained=s.weights is not None,
        units=units,
        structure=material.structure,
        examples=material.examples,
    )
    return partial(entry.make, **{**given, **entry.make.arguments(request)})


def _typed(s: Settings, n_classes: int) -> dict[str, Any]:
    """Returns the options that were typed, under the names that methods have for them."""
    m = s.masks
    found = {name: value for name, value in asdict(m).items() if value is not None}
    if m.mask is not None:
        found["mask"] = given_mask(m.mask)
    if m.ablation == "shuffle":
        found["shuffle"] = True
    if m.ablation == "reinit" and m.mask is None:
        found["redraw"] = partial(draw_again, s, n_classes)
    return found


def draw_again(s: Settings, n_classes: int, model: nn.Module, seed: int) -> None:
    """Draws the run's network again, by its own builder and another seed."""
    model.load_state_dict(network(replace(s, seed=seed + 1), n_classes).state_dict())


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
    if s.method == "granet" and kind == "uniform":
        return Uniform(density, last=max(0.2, density), pinned="inside")  # as GraNet's code spreads it
    kinds: dict[str, type[Uniform | ERK | Global]] = {"uniform": Uniform, "erk": ERK, "global": Global}
    return kinds[kind](density)


def weights_of(model: nn.Module, s: Settings, example: tuple[Any, ...] | None = None) -> Weights:
    """Returns the weights; for N:M without the layers whose inputs do not divide by M.

    Without an ``example`` of the inputs, the order in which layers run is found where it is needed.

    Raises:
        UsageError: no layer divides.
    """
    if s.distribution != "nm":
        return Weights(model, example_input=example)
    _, m = s.masks.n_of_m
    whole = Weights(model)
    odd = frozenset(name for name, shape in whole.sizes.items() if shape[1] % m)
    if len(odd) == len(whole.sizes):
        raise UsageError(
            f"{s.masks.nm} was asked, and no layer of {s.model} has inputs that divide by {m}; give another pattern"
        )
    return Weights(model, pinned=odd)


def units_of(model: nn.Module, s: Settings, example: tuple[Any, ...] | None = None) -> Weights | Filters:
    """Returns what a sparsity is a share of: filters where they are asked for, else weights."""
    if s.masks.units == "filters" or METHODS[s.method].sparsity == "filters":
        return Filters(model, example, norm_follows=not s.masks.regrow)
    return weights_of(model, s, example)


def given_mask(path: str) -> Mask:
    """Returns the mask that a run ended with.

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


def densities(method: Method) -> dict[str, float]:
    """Returns unit name → share that is active; what is left out is dense."""
    found = {n: k / math.prod(method.units.sizes[n]) for n, k in method.alive.counts.items()}
    return {**found, **dict.fromkeys(method.units.left_out, 1.0)}


def network(settings: Settings, n_classes: int) -> nn.Module:
    """Returns the network with random weights of the run's seed."""
    torch.manual_seed(settings.seed)
    model = named(settings.task).network(build(settings.model, **arguments(settings, n_classes)))
    if settings.norm_init == "uniform":
        draw_norms(model)
    if settings.masks.ablation == "normal":
        draw_normal(model, settings.seed)
    return model


@torch.no_grad()
def draw_norms(model: nn.Module) -> None:
    """Draws the scales of all batch norms from U(0, 1); their shifts are zero (Frankle et al. 2021, App. F.4)."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
            module.weight.uniform_(0, 1)
            module.bias.zero_()


def arguments(settings: Settings, n_classes: int) -> dict[str, Any]:
    """Returns the arguments of the network's builder."""
    extra = {} if settings.width is None else {"width": settings.width}
    return {**named(settings.task).arguments(n_classes), **extra}


def initial(
    settings: Settings, n_classes: int, *, say: Callable[[str], None] = lambda text: None
) -> nn.Module:
    """Returns the network as training finds it: with the given weights, if there are any.

    ``say`` is called with each change that made the weights fit.

    Raises:
        UsageError: weights of another network.
    """
    model = network(settings, n_classes)
    if settings.weights:
        for note in fit_weights(model, settings.weights, settings.model, reset_head=settings.reset_head):
            say(note)
    return model


START, END = 1 / 25, 1e-4
"""Rates of the one-cycle policy at its first and last step, as shares of the peak and of the first."""


def learning_rate(step: int, settings: Settings, total_steps: int) -> float:
    """Returns the rate of a step.

    A linear warm-up, then ``cosine``: half a cosine to zero at the end; ``steps``: the drops; or ``constant``.
    ``onecycle`` rises by half a cosine to the peak instead of the warm-up and falls by another one (Smith &
    Topin 2017).
    """
    s = settings
    warmup = max(1, round(s.warmup * total_steps))
    if s.kind_of_schedule == "onecycle":
        first = START * s.lr
        if step < warmup:
            return first + (s.lr - first) * (1 - math.cos(math.pi * step / warmup)) / 2
        done = (step - warmup) / max(1, total_steps - 1 - warmup)
        return END * first + (s.lr - END * first) * (1 + math.cos(math.pi * min(1.0, done))) / 2
    if step < warmup:
        return s.lr * (step + 1) / warmup
    if s.kind_of_schedule == "constant":
        return s.lr
    if s.kind_of_schedule == "steps":
        passed = sum(step >= round(share * total_steps) for share in s.drops)
        return s.lr * math.prod(s.factors[:passed])
    done = (step - warmup) / max(1, total_steps - warmup)
    return s.lr * (1 + math.cos(math.pi * done)) / 2


def make_optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    """Returns the optimizer of a network; weight decay on matrices and kernels only.

    On a CUDA device all parameters are stepped by one kernel where the optimizer has one.
    """
    s = settings
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": s.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    fused = True if any(p.is_cuda for p in decayed) else None
    if s.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=s.lr, fused=fused)
    if s.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=s.lr, momentum=s.momentum)
    nesterov = s.nesterov and s.momentum > 0
    return torch.optim.SGD(groups, lr=s.lr, momentum=s.momentum, nesterov=nesterov, fused=fused)
