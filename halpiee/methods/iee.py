"""IEE: prune, improve, explore, grow, within a budget that is never left but while exploring.

"Advancing Weight and Channel Sparsification with Enhanced Saliency", Algorithm 1: train the active parameters Θ_K
for H steps and score them; prune Ω; train Θ_K for J steps; bring back all inactive parameters Θ_P with their most
recently used values, train them for Q steps with Θ_K frozen, and score them by the same criterion; grow Ω. What
the paper leaves open, and what is chosen here, stands in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.method import BudgetLike, Method, UnitsLike, cost_of, default_units
from halpiee.methods.phases import Drop, Grow, Phase, Recipe, Start, Train
from halpiee.methods.pools import bind
from halpiee.methods.unwrap import bare
from halpiee.saliency import Criterion, Magnitude, Taylor
from halpiee.saliency.registry import criterion_of
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import ERK, Budget, Global, as_budget
from halpiee.sparsity.granularity import Channels, Weights
from halpiee.sparsity.schedule import Cosine, Curve, Exponential
from halpiee.structure.groups import Structure

__all__ = ["IEE", "recipe"]


def recipe(
    *,
    total_steps: int,
    h: int = 150,
    j: int = 150,
    q: int = 150,
    end: float = 0.75,
    omega: Curve,
    start: Literal["random", "random_scores", "scores"] = "random",
    grow_by: Literal["score", "random"] = "score",
    grow_values: Literal["last", "zero"] = "last",
    freeze: bool = True,
    explore_norm: Literal["batch", "running"] = "batch",
    spread: Budget | None = None,
) -> Recipe:
    """Returns IEE as phases.

    Args:
        total_steps: optimizer steps of the whole training.
        h: steps that train and score the active units before a prune.
        j: steps that improve what the prune has kept.
        q: steps that train and score the inactive units.
        end: share of the training after which updates have ended.
        omega: cycle index → share of Ψ that is exchanged.
        start: how the first units are chosen; ``scores`` first trains the dense (pretrained) network for ``h`` steps.
        grow_by: grow the best-scoring units, or random ones.
        grow_values: grown units keep the values they were explored with, or start at zero.
        freeze: active units stand still while the inactive ones are explored.
        explore_norm: active units normalise by the batch while exploring, or by their running statistics.
        spread: how the first random units are spread over layers, where the budget leaves that open.

    Raises:
        UsageError: less than one cycle fits.
    """
    if min(h, q) < 1 or j < 0:
        raise UsageError(f"h={h}, j={j}, q={q} were asked; h and q are at least 1 step and j at least 0")
    before = h if start == "scores" else 0
    cycles = int(end * total_steps - before) // (h + j + q)
    if cycles < 1:
        raise UsageError(
            f"one cycle of h + j + q = {h + j + q} steps does not fit into the first {end:.0%} of {total_steps} "
            "steps; train longer, or choose h, j and q so that they add up to at most "
            f"{int(end * total_steps - before)}"
        )
    phases: list[Phase] = [Start(start, spread if start == "random" else None)]
    if start == "scores":
        phases.insert(0, Train(h, collect=True))
    for cycle in range(cycles):
        share = omega(cycle)
        phases += [
            Train(h, collect=True),
            Drop(share),
            Train(j),
            Train(q, forward="all", update="dead" if freeze else "all", collect=True, norm=explore_norm),
            Grow(share, by=grow_by, values=grow_values),
        ]
    return tuple(phases)


class IEE(Method):
    """IEE attached to a model and its optimizer; the training loop stays the user's.

    Args:
        model: the network, trained in place.
        optimizer: over ``model.parameters()``.
        budget: ``Latency(us=… | fraction=…)`` for channels; ``Uniform``, ``ERK``, ``Global`` or ``NM`` for weights.
        total_steps: optimizer steps of the whole training.
        structure: of the model, from ``trace``; needed for channels.
        cost: latency model, or the path of a profile for the structure; needed for a latency budget.
        units: what is exchanged; by default the structure's channels for a latency, else weights.
        criterion: a criterion or its name; by default Taylor for channels, magnitude for weights.
        h: steps before a prune; see ``recipe`` for this and the next three.
        j: steps after it.
        q: steps of exploring.
        omega: Ω⁰ as a share of Ψ.
        end: share of the training after which updates have ended.
        decay: Ω falls exponentially to a floor of 1 % of Ψ or one step of the coarsest group, or as a cosine to 0.
        start: ``scratch`` starts at Ψ; ``pretrained`` scores the given weights for ``h`` steps and solves once.
        init: from scratch, the largest uniform width filled by the solver, or one solve on random scores.
        explore_init: never-active units start from the ``model``'s initialisation, or from ``zero``: weights only, and
            their default, since magnitude may otherwise grow the largest values that were never trained.
        grow_by: see ``recipe``.
        grow_values: see ``recipe``.
        freeze: see ``recipe``.
        explore_norm: see ``recipe``.
        solver: for latencies: ``joint``, ``cpsat``, or ``linear`` (the paper's own knapsack).
        gap: relative gap the solver certifies.
        protect: groups to leave whole.
        seed: of every random choice.

    Raises:
        UsageError: less than one cycle fits, zero-initialised channels, an optimizer that cannot be masked.
        BudgetError: a budget below what the smallest network needs.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        budget: BudgetLike,
        total_steps: int,
        structure: Structure | None = None,
        cost: LatencyCost | str | Path | None = None,
        units: UnitsLike | None = None,
        criterion: Criterion | str | None = None,
        h: int = 150,
        j: int = 150,
        q: int = 150,
        omega: float = 0.3,
        end: float = 0.75,
        decay: Literal["exponential", "cosine"] = "exponential",
        start: Literal["scratch", "pretrained"] = "scratch",
        init: Literal["random", "random_scores"] = "random",
        explore_init: Literal["model", "zero"] | None = None,
        grow_by: Literal["score", "random"] = "score",
        grow_values: Literal["last", "zero"] = "last",
        freeze: bool = True,
        explore_norm: Literal["batch", "running"] = "batch",
        solver: Literal["joint", "cpsat", "linear"] = "joint",
        gap: float = 1e-3,
        protect: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        if not 0 < omega < 1:
            raise UsageError(
                f"omega={omega} was asked; it is the share of the budget that is exchanged, in (0, 1)"
            )
        cost = cost_of(cost, structure)
        budget = as_budget(budget, latency=cost is not None)
        units = default_units(bare(model), budget, structure, protect, units)
        if units.zero_is_dead and (explore_init == "zero" or grow_values == "zero"):
            raise UsageError(
                "channels were asked to start from zero: a zero channel has zero gradients and a zero score for ever; "
                "use explore_init='model' and grow_values='last'"
            )
        default = Taylor() if isinstance(units, Channels) else Magnitude()
        criterion = default if criterion is None else criterion_of(criterion, seed)
        if not criterion.per_step:  # one that needs passes of its own says so now, not at the first prune
            criterion(units, dict(bare(model).named_parameters()).get, lambda _: None)
        pool = bind(budget, units, cost, solver=solver, gap=gap)
        cycles = max(1, int(end * total_steps) // max(h + j + q, 1))
        floor = min(omega, max(pool.floor, 0.01))
        curve: Curve = (
            Exponential(omega, floor, cycles) if decay == "exponential" else Cosine(omega, 0.0, cycles)
        )
        weights = isinstance(units, Weights)
        spread = ERK(budget.density) if weights and isinstance(budget, Global) else None
        super().__init__(
            model,
            optimizer,
            units=units,
            pool=pool,
            recipe=recipe(
                total_steps=total_steps,
                h=h,
                j=j,
                q=q,
                end=end,
                omega=curve,
                start="scores" if start == "pretrained" else init,
                grow_by=grow_by,
                grow_values=grow_values,
                freeze=freeze,
                explore_norm=explore_norm,
                spread=spread,
            ),
            criterion=criterion,
            seed=seed,
            structure=structure,
            explore_init=explore_init or ("zero" if weights else "model"),
        )
