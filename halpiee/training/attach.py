"""Attaches the method that a run's settings name to its model and optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.at_init import SNIP, AtInit, GraSP, SynFlow
from halpiee.methods.catalogue import about
from halpiee.methods.dynamic import SET, SETITOP, SNFS, RigL, RigLITOP, Static
from halpiee.methods.filters import FilterPruning
from halpiee.methods.gradual import GMP, GraNet, Regrowth
from halpiee.methods.halp import HALP
from halpiee.methods.iee import IEE
from halpiee.methods.method import Method
from halpiee.saliency.names import named
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import ERK, NM, Budget, Global, Latency, Uniform
from halpiee.sparsity.granularity import Weights
from halpiee.sparsity.mask import Mask
from halpiee.training.checkpoint import load_weights
from halpiee.training.data import Data
from halpiee.training.network import network
from halpiee.training.settings import Settings

if TYPE_CHECKING:
    from halpiee.training.run import Run

__all__ = [
    "ONE_SHOT",
    "budget_of",
    "densities",
    "draw_again",
    "few",
    "given_mask",
    "interval_of",
    "iterative",
    "to_a_latency",
    "to_a_sparsity",
    "weights_of",
]


def to_a_latency(run: Run, model: nn.Module, optimizer: Optimizer, cost: LatencyCost) -> Method:
    """Returns IEE or HALP, attached."""
    s = run.settings
    total = run.total_steps
    common: dict[str, Any] = {
        "budget": Latency(us=run.budget_us(cost)),
        "total_steps": total,
        "structure": run.structure,
        "cost": cost,
        "seed": s.seed,
    }
    if s.method == "halp":
        prunes = s.masks.rounds or 30
        interval = s.masks.interval or max(1, min(40, int(s.cycle.end * total) // prunes))
        return HALP(model, optimizer, prunes=min(prunes, total), interval=interval, **common)
    return IEE(model, optimizer, **cycle_of(s, total), **common)


def cycle_of(s: Settings, total_steps: int) -> dict[str, Any]:
    """Returns IEE's own arguments; given weights are scored before anything is removed, unless ``init`` says else."""
    c, init = s.cycle, s.masks.init
    h, j, q = c.steps(total_steps)
    switches = (
        "omega",
        "end",
        "decay",
        "explore_init",
        "grow_by",
        "grow_values",
        "freeze",
        "explore_norm",
        "solver",
    )
    return {
        "h": h,
        "j": j,
        "q": q,
        **{name: getattr(c, name) for name in switches},
        "start": "pretrained" if s.weights and init is None else "scratch",
        "init": "random_scores" if init == "random-scores" else "random",
    }


def to_a_sparsity(run: Run, model: nn.Module, optimizer: Optimizer) -> Method:
    """Returns the method of a sparsity, attached."""
    s, m = run.settings, run.settings.masks
    total, budget = run.total_steps, budget_of(s)
    units = None if s.method == "filter" else weights_of(model, s)
    common: dict[str, Any] = {"budget": budget, "total_steps": total, "seed": s.seed}
    if s.method == "filter":
        criterion = m.criterion or "l1"
        second_order = criterion.removeprefix("inverted-").startswith(("grasp", "synflow"))
        return FilterPruning(
            model,
            optimizer,
            structure=run.structure,
            criterion=criterion,
            batches=few(run.data, 10) if second_order else None,
            rounds=m.rounds or 1,
            interval=m.interval,
            regrow=m.regrow,
            pinned=first_conv(model) if any_residual(run) else frozenset(),
            **common,
        )
    common["units"] = units
    if s.method == "iee":
        by = None if m.criterion is None else named(m.criterion, s.seed)
        return IEE(model, optimizer, criterion=by, **cycle_of(s, total), **common)
    if s.method in ONE_SHOT:
        return ONE_SHOT[s.method](
            model,
            optimizer,
            criterion=m.criterion or (s.method if s.method in ("magnitude", "random") else None),
            batches=few(run.data, 10),
            at=m.at,
            rounds=m.rounds,
            shuffle=m.ablation == "shuffle",
            redraw=partial(draw_again, s, run.data.n_classes) if m.ablation == "reinit" else None,
            **common,
        )
    if m.mask is not None:
        common.pop("budget")
    return iterative(s, total)(model, optimizer, **common)


def draw_again(s: Settings, n_classes: int, model: nn.Module, seed: int) -> None:
    """Draws the run's network again, by its own builder and another seed."""
    model.load_state_dict(network(replace(s, seed=seed + 1), n_classes).state_dict())


ONE_SHOT = {"snip": SNIP, "grasp": GraSP, "synflow": SynFlow, "magnitude": AtInit, "random": AtInit}


def iterative(s: Settings, total: int) -> Callable[..., Method]:
    """Returns the class of a method that changes masks while it trains, with its own options bound."""
    m = s.masks
    wanted = m.init or ("magnitude" if s.weights else "random")
    init: Literal["random", "magnitude"] = "magnitude" if wanted == "magnitude" else "random"
    if m.mask is not None:
        return partial(Static, mask=given_mask(m.mask), shuffle=m.ablation == "shuffle")
    if s.method == "static":
        return partial(Static, init=init)
    interval = interval_of(s, total)
    span: dict[str, Any] = {k: v for k, v in (("first", m.first), ("last", m.last)) if v is not None}
    if s.method == "gmp":
        return partial(GMP, interval=interval, **span)
    if s.method == "granet":
        regrowth = None if m.fraction is None else Regrowth(start=m.fraction)
        return partial(GraNet, interval=interval, initial=m.initial, regrowth=regrowth, init=init, **span)
    dynamic = {"set": SET, "rigl": RigL, "set-itop": SETITOP, "rigl-itop": RigLITOP, "snfs": SNFS}
    return partial(dynamic[s.method], interval=interval, fraction=m.fraction, end=m.last, init=init)


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


def interval_of(s: Settings, total_steps: int) -> int:
    """Returns the steps between two updates: as asked, or the paper's where forty of them fit, else a fortieth."""
    paper = about(s.method).interval or 100
    return s.masks.interval or max(1, min(paper, total_steps // 40))


def budget_of(s: Settings) -> Budget:
    """Returns the budget of a sparsity."""
    m = s.masks
    kind = m.distribution or about(s.method).distribution
    if kind == "nm":
        return NM(*m.n_of_m)
    density = 1 - (m.sparsity or 0.0)
    density = round(density, 12)
    if s.method == "gmp" and kind == "uniform":
        return Uniform(density, first=1.0, last=max(0.2, density))  # Gale et al. 2019
    kinds: dict[str, type[Uniform | ERK | Global]] = {"uniform": Uniform, "erk": ERK, "global": Global}
    return kinds[kind](density)


def weights_of(model: nn.Module, s: Settings) -> Weights:
    """Returns the weights; for N:M without the layers whose inputs do not divide by M.

    Raises:
        UsageError: no layer divides.
    """
    if (s.masks.distribution or about(s.method).distribution) != "nm":
        return Weights(model)
    _, m = s.masks.n_of_m
    whole = Weights(model)
    odd = frozenset(name for name, shape in whole.sizes.items() if shape[1] % m)
    if len(odd) == len(whole.sizes):
        raise UsageError(
            f"{s.masks.nm} was asked, and no layer of {s.model} has inputs that divide by {m}; give another pattern"
        )
    return Weights(model, pinned=odd)


def few(data: Data, a_class: int) -> list[tuple[Tensor, Tensor]]:
    """Returns one batch of the first training images of each class: what pruning at initialisation scores on."""
    index = torch.cat([(data.train_y == c).nonzero().flatten()[:a_class] for c in range(data.n_classes)])
    return [(data.normalised(data.train_x[index]), data.train_y[index])]


def first_conv(model: nn.Module) -> frozenset[str]:
    """Returns the path of the first convolution."""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            return frozenset({path})
    return frozenset()


def any_residual(run: Run) -> bool:
    """Whether several convolutions write to one group: residual networks protect the first (Lubana & Dick 2021)."""
    writers: dict[str, int] = {}
    for layer in run.structure.layers:
        for name, _ in layer.out_groups:
            writers[name] = writers.get(name, 0) + 1
    return any(n > 1 for n in writers.values())


def densities(method: Method) -> dict[str, float]:
    """Returns unit name → share that is active; what is left out is dense."""
    found = {n: k / math.prod(method.units.sizes[n]) for n, k in method.alive.counts.items()}
    return {**found, **dict.fromkeys(method.units.left_out, 1.0)}
