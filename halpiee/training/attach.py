"""Attaches the method that a run's settings name to its model and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.methods.at_init import SNIP, AtInit, GraSP, SynFlow
from halpiee.methods.dynamic import SET, SETITOP, SNFS, RigL, RigLITOP, Static
from halpiee.methods.filters import FilterPruning
from halpiee.methods.gradual import GMP, GraNet, Regrowth
from halpiee.methods.halp import HALP
from halpiee.methods.iee import IEE
from halpiee.methods.method import Method
from halpiee.saliency.algebra import InMode
from halpiee.saliency.gradient import Taylor
from halpiee.saliency.registry import named
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import Latency
from halpiee.structure.groups import Structure
from halpiee.training.config import Settings
from halpiee.training.limits import (
    any_residual,
    budget_of,
    few,
    first_conv,
    given_mask,
    interval_of,
    units_of,
)
from halpiee.training.network import network

if TYPE_CHECKING:
    from halpiee.training.run import Run

__all__ = ["ONE_SHOT", "draw_again", "method_of", "to_a_latency", "to_a_sparsity"]


def to_a_latency(run: Run, model: nn.Module, optimizer: Optimizer, cost: LatencyCost) -> Method:
    """Returns IEE or HALP, attached."""
    s = run.settings
    total = run.total_steps
    common: dict[str, Any] = {
        "budget": Latency(us=run.budget_us(cost)),
        "total_steps": total,
        "structure": run.structure,
        "cost": cost,
        "protect": run.protected,
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
    make = method_of(
        run.settings,
        model,
        run.total_steps,
        structure=lambda: run.structure,
        n_classes=run.data.n_classes,
        examples=lambda: few(run.data, 10),
        shape=run.data.shape,
    )
    return make(model, optimizer)


def method_of(
    s: Settings,
    model: nn.Module,
    total_steps: int,
    *,
    structure: Callable[[], Structure],
    n_classes: int,
    examples: Callable[[], list[tuple[Tensor, Tensor]]],
    shape: Sequence[int] | None = None,
) -> Callable[[nn.Module, Optimizer], Method]:
    """Returns the method of a sparsity with all its options, ready for a model and its optimizer.

    Args:
        s: the settings.
        model: the network, for its units.
        total_steps: of the whole training.
        structure: gives that of the model, for filters.
        n_classes: of the data, to draw the network again.
        examples: gives (inputs, targets) to score on.
        shape: of one image, for the order in which layers run.
    """
    m = s.masks
    common: dict[str, Any] = {"total_steps": total_steps, "seed": s.seed}
    if m.mask is None:
        common["budget"] = budget_of(s)
    if s.method == "filter":
        name = m.criterion or "l1"
        plain = name.removeprefix("inverted-")
        over_batches = plain.startswith(("grasp", "synflow", "loss"))
        criterion = named(name, s.seed)
        # A batch norm in training mode makes θᵀg zero; the paper scores in evaluation.
        criterion = InMode(criterion) if plain.startswith("loss") else criterion
        return partial(
            FilterPruning,
            structure=structure(),
            criterion=criterion,
            batches=examples() if over_batches else None,
            rounds=m.rounds or 1,
            interval=m.interval,
            regrow=m.regrow,
            pinned=first_conv(model) if any_residual(structure()) else frozenset(),
            **common,
        )
    common["units"] = units_of(model, s, shape)
    if s.method == "iee":
        filters = m.units == "filters"
        by = named(m.criterion, s.seed) if m.criterion is not None else Taylor() if filters else None
        common["structure"] = structure() if filters else None
        return partial(IEE, criterion=by, **cycle_of(s, total_steps), **common)
    if s.method in ONE_SHOT:
        return partial(
            ONE_SHOT[s.method],
            criterion=m.criterion or (s.method if s.method in ("magnitude", "random") else None),
            batches=examples(),
            at=m.at,
            rounds=m.rounds,
            shuffle=m.ablation == "shuffle",
            redraw=partial(draw_again, s, n_classes) if m.ablation == "reinit" else None,
            **common,
        )
    return partial(iterative(s, total_steps), **common)


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
