"""Attaches the method that a run's settings name to its model and optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.at_init import SNIP, AtInit, GraSP, SynFlow
from halpiee.methods.catalogue import about
from halpiee.methods.dynamic import SET, SETITOP, SNFS, RigL, RigLITOP, Static
from halpiee.methods.filters import FilterPruning
from halpiee.methods.gradual import GMP, GraNet
from halpiee.methods.halp import HALP
from halpiee.methods.iee import IEE
from halpiee.methods.method import Method
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import ERK, NM, Budget, Global, Latency, Uniform
from halpiee.sparsity.granularity import Weights
from halpiee.training.data import Data
from halpiee.training.settings import Settings

if TYPE_CHECKING:
    from halpiee.training.run import Run

__all__ = [
    "ONE_SHOT",
    "budget_of",
    "densities",
    "few",
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
    h, j, q = s.cycle.steps(total)
    return IEE(
        model,
        optimizer,
        h=h,
        j=j,
        q=q,
        omega=s.cycle.omega,
        end=s.cycle.end,
        decay=s.cycle.decay,
        init=s.cycle.init,
        solver=s.cycle.solver,
        start="pretrained" if s.weights else "scratch",
        **common,
    )


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
        h, j, q = s.cycle.steps(total)
        return IEE(
            model,
            optimizer,
            h=h,
            j=j,
            q=q,
            omega=s.cycle.omega,
            end=s.cycle.end,
            decay=s.cycle.decay,
            **common,
        )
    if s.method in ONE_SHOT:
        return ONE_SHOT[s.method](
            model,
            optimizer,
            criterion=m.criterion or (s.method if s.method in ("magnitude", "random") else None),
            batches=few(run.data, 10),
            at=m.at,
            rounds=m.rounds,
            **common,
        )
    return iterative(s, total)(model, optimizer, **common)


ONE_SHOT = {"snip": SNIP, "grasp": GraSP, "synflow": SynFlow, "magnitude": AtInit, "random": AtInit}


def iterative(s: Settings, total: int) -> Callable[..., Method]:
    """Returns the class of a method that changes masks while it trains, with its own options bound."""
    m = s.masks
    if s.method == "static":
        return partial(Static, init=m.init)
    interval = interval_of(s, total)
    span: dict[str, Any] = {k: v for k, v in (("first", m.first), ("last", m.last)) if v is not None}
    if s.method == "gmp":
        return partial(GMP, interval=interval, **span)
    if s.method == "granet":
        return partial(GraNet, interval=interval, initial=m.initial, **span)
    dynamic = {"set": SET, "rigl": RigL, "set-itop": SETITOP, "rigl-itop": RigLITOP, "snfs": SNFS}
    return partial(dynamic[s.method], interval=interval, fraction=m.fraction, init=m.init)


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
