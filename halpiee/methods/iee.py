"""IEE: prune, improve, explore, grow, within a budget that only exploration exceeds.

"Advancing Weight and Channel Sparsification with Enhanced Saliency", Algorithm 1: train the active parameters Θ_K
for H steps and score them; prune Ω; train Θ_K for J steps; bring back all inactive parameters Θ_P with their most
recently used values, train them for Q steps with Θ_K frozen, and score them by the same criterion; grow Ω. What
the paper leaves open, and what is chosen here, is in docs/methods.md.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from halpiee.errors import UsageError
from halpiee.methods.allocator import bind
from halpiee.methods.method import Method, Request, Setup
from halpiee.methods.phases import Design, Drop, Grow, Phase, Recipe, Start, Train
from halpiee.methods.registry import method
from halpiee.options import option
from halpiee.saliency import Criterion, Magnitude, Taylor
from halpiee.saliency.registry import criterion_of
from halpiee.shared_options import LATE, Switches
from halpiee.sparsity.distribution import ERK, Budget, Global, Uniform
from halpiee.sparsity.granularity import Channels, Weights
from halpiee.sparsity.schedule import Cosine, Curve, Exponential


@dataclass(frozen=True)
class Options(Switches):
    """The options of IEE."""

    criterion: Criterion | str | None = option(None, "By default taylor for channels, magnitude for weights.")
    h: int = option(150, "Steps that train and score the active units before a prune.")
    j: int = option(150, "Steps that train what the prune has kept.")
    q: int = option(150, "Steps that train and score the inactive units.")
    start: Literal["scratch", "pretrained"] = option(
        "scratch", "Start within the budget, or score the given weights for h steps and solve once."
    )
    init: Literal["random", "random_scores"] = option(
        "random",
        "From scratch: the largest uniform width filled by the solver, or one solve on random scores.",
    )
    gap: float = option(0.001, "Relative gap that the solver certifies.")


def recipe(o: Options, *, total_steps: int, omega: Curve, spread: Budget | None = None) -> Recipe:
    """Returns IEE as phases; ``start="pretrained"`` first trains the dense network for ``h`` steps, and solves once.

    ``omega`` maps the number of a cycle to the share of Ψ that it exchanges; ``spread`` says how the first random units
    are spread over layers, where the budget leaves that open.

    Raises:
        UsageError: less than one cycle fits.
    """
    h, j, q = o.h, o.j, o.q
    if min(h, q) < 1 or j < 0:
        raise UsageError(f"h={h}, j={j}, q={q} were asked; h and q are at least 1 step and j at least 0")
    scored = o.start == "pretrained"
    end = LATE if o.end is None else o.end
    room = int(end * total_steps - h * scored)
    cycles = room // (h + j + q)
    if cycles < 1:
        raise UsageError(
            f"one cycle of h + j + q = {h + j + q} steps does not fit into the first {end:.0%} of {total_steps} "
            f"steps; train longer, end later (end=…), or choose h, j and q so that they add up to at most {room}"
        )
    first = Start("random", spread) if o.init == "random" else Start(o.init)
    phases: list[Phase] = [Train(h, collect=True), Start("scores")] if scored else [first]
    for cycle in range(cycles):
        share = omega(cycle)
        phases += [
            Train(h, collect=True),
            Drop(share),
            Train(j),
            Train(q, forward="all", update="dead" if o.freeze else "all", collect=True, norm=o.explore_norm),
            Grow(share, by=o.grow_by, values=o.grow_values),
        ]
    return tuple(phases)


@method(
    "iee",
    paper="Advancing Weight and Channel Sparsification with Enhanced Saliency",
    units=("channels", "weights", "N:M", "filters"),
    budgets=("latency", "erk", "uniform", "global", "nm"),
    options=Options,
)
class IEE(Method):
    """Prune, improve, explore, grow: what was pruned trains for a while before the best of it returns.

    Args: see ``Method``, and ``Options`` for its own. ``Latency(us=… | fraction=…)`` limits channels; ``Uniform``,
    ``ERK``, ``Global`` and ``NM`` limit weights.

    Raises:
        UsageError: less than one cycle fits, zero-initialised channels, an optimizer that cannot be masked.
        BudgetError: a budget below what the smallest network needs.
    """

    def design(self, given: Setup, options: Options) -> Design:
        """Returns the cycles that fit, with Ω on its curve."""
        budget, units = given.limit, given.units
        o = options
        end = LATE if o.end is None else o.end
        if not 0 < o.omega < 1:
            raise UsageError(
                f"omega={o.omega} was asked; it is the share of the budget that is exchanged, in (0, 1)"
            )
        if units.zero_is_dead and (o.explore_init == "zero" or o.grow_values == "zero"):
            raise UsageError(
                "channels were asked to start from zero: a zero channel has zero gradients and a zero score for ever; "
                "use explore_init='model' and grow_values='last'"
            )
        default = Taylor() if isinstance(units, Channels) else Magnitude()
        criterion = default if o.criterion is None else criterion_of(o.criterion, given.seed)
        if not criterion.per_step:  # one that needs passes of its own says so now, not at the first prune
            criterion(units, dict(given.model.named_parameters()).get, lambda _: None)
        pool = bind(budget, units, given.cost, solver=o.solver or "joint", gap=o.gap)
        cycles = max(1, int(end * given.total_steps) // max(o.h + o.j + o.q, 1))
        floor = min(o.omega, max(pool.floor, 0.01))
        curve: Curve = (
            Exponential(o.omega, floor, cycles) if o.decay == "exponential" else Cosine(o.omega, 0.0, cycles)
        )
        weights = isinstance(units, Weights)
        kinds: dict[str, type[ERK | Uniform]] = {"erk": ERK, "uniform": Uniform}
        spread = kinds[o.spread](budget.density) if weights and isinstance(budget, Global) else None
        phases = recipe(o, total_steps=given.total_steps, omega=curve, spread=spread)
        explore_init = o.explore_init or ("zero" if weights else "model")
        return given.design(phases, criterion, pool=pool, explore_init=explore_init)

    @classmethod
    def arguments(cls, request: Request) -> dict[str, Any]:
        """Returns the cycle of a run; given weights are scored before a removal, unless ``init`` says else."""
        init = request.options.get("init")
        own = {f.name for f in fields(Options)}
        found = {name: value for name, value in request.cycle.items() if name in own}
        criterion = request.options.get("criterion") or ("taylor" if request.units == "filters" else None)
        return {
            **found,
            **dict(zip("hjq", request.steps(), strict=True)),
            "criterion": criterion,
            "start": "pretrained" if request.pretrained and init is None else "scratch",
            "init": "random_scores" if init == "random-scores" else "random",
        }
