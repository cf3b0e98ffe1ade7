"""What a cell does: train as ``halpiee train`` does, or train a network and ask something of it on the way.

A probe has knobs (a frozen dataclass, typed in a study's file like the options of a training), the quantities that it
gives, and the function that measures them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from halpiee import ranges
from halpiee.options import option

if TYPE_CHECKING:
    from halpiee.sparsity.mask import Mask
    from halpiee.studies.trajectory import Branch, Place

__all__ = ["PROBES", "Knobs", "Probe"]

Values = dict[str, Any]
Shares = tuple[Annotated[float, Meta(ge=0, le=1)], ...]


@dataclass(frozen=True)
class Knobs:
    """A probe without knobs."""


@dataclass(frozen=True)
class Probe:
    """What a cell does instead of a run.

    ``knobs`` are its options, ``values`` its quantities; ``measure(place, knobs)`` returns these. Without it the cell
    is a run of ``halpiee train``.
    """

    knobs: type = Knobs
    values: tuple[str, ...] = ()
    measure: Callable[[Place, Any], Values] | None = None


@dataclass(frozen=True, kw_only=True)
class PlasticityKnobs:
    """When and how a network is pruned on the way, and how it goes on (arXiv 2106.10404, Sec. 3)."""

    pretrained: ranges.Share = option(0.0, "Sparsity that the network trains with from the start, uniform.")
    rate: ranges.Between = option(0.5, "Share of the units that are not zero that is removed.")
    scope: Literal["layer", "global"] = option(
        "layer", "Each layer loses the share, or all of them together."
    )
    of: Literal["weights", "filters"] = option("weights", "What is removed.")
    regrowth: bool = option(False, "Whether as many units come back by their gradient.")
    times: Shares = option((0.25, 0.5, 0.75, 1.0), "Shares of the training at which it is pruned.")
    onward: ranges.Epochs = option(30, "Epochs that it trains on at the constant rate.")


@dataclass(frozen=True, kw_only=True)
class CollapseKnobs:
    """Which neurons are lost at initialisation (arXiv 2009.08576, Sec. 5)."""

    by: str = option(
        "snip", "Criterion that prunes; with -shuffled behind it, its mask is shuffled in each layer."
    )
    thresholds: Shares = option(
        (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0), "Shares of a neuron's weights that are lost."
    )


@dataclass(frozen=True, kw_only=True)
class FlowKnobs:
    """When the measures of filters are compared (arXiv 2009.11839)."""

    every: ranges.Epochs = option(10, "Epochs between two looks.")
    removed: ranges.Between = option(0.2, "Share of the filters that a mask would remove.")
    examples: ranges.Images = option(2560, "Training images that gradients are averaged over.")


def plasticity(place: Place, knobs: PlasticityKnobs) -> Values:
    """Returns what pruning costs after some more epochs at the constant rate, over the epoch at which it comes."""
    from halpiee.studies.trajectory import branches

    found: Values = {"plasticity": [], "accuracy_pruned": []}
    steps = knobs.onward * place.data.steps_per_epoch(place.settings.batch_size)
    for epoch, branch in branches(place, knobs.pretrained, knobs.times):
        rate = branch.rate(max(0, branch.step - 1))
        result = _pruned(branch, knobs, steps, lambda _, rate=rate: rate)  # type: ignore[misc]
        found["plasticity"].append((epoch, result.value))
        found["accuracy_pruned"].append((epoch, result.pruned))
    return found


def final_gap(place: Place, knobs: PlasticityKnobs) -> Values:
    """Returns the final accuracy of a network that is pruned on the way less that of the one that is not."""
    from halpiee.studies.trajectory import Branch, accuracy_on, branches, states, total_steps

    total = total_steps(place)
    end = accuracy_on(Branch.load(place, states(place, knobs.pretrained, [total])[total]).model, place.data)
    found: Values = {"final_gap": [], "accuracy": end}
    for epoch, branch in branches(place, knobs.pretrained, knobs.times):
        result = _pruned(branch, knobs, total - branch.step, branch.rate)
        found["final_gap"].append((epoch, result.after - end))
    return found


def _pruned(branch: Branch, knobs: PlasticityKnobs, steps: int, rate: Callable[[int], float]) -> Any:
    return branch.pruned(
        lambda model, mask: branch.train_on(model, mask, knobs.of, steps, rate),
        rate=knobs.rate,
        of=knobs.of,
        within=knobs.scope,
        regrowth=knobs.regrowth,
    )


def collapse(place: Place, knobs: CollapseKnobs) -> Values:
    """Returns the share of neurons that lose at least some share of their weights, and that lose all of them."""
    from halpiee.analysis.measures import neuron_collapse
    from halpiee.methods.one_shot import prune_once
    from halpiee.training.build import budget_of, initial

    s = place.settings
    model = initial(s, place.data.n_classes).to(place.device)
    name = knobs.by.removesuffix("-shuffled")
    rounds = s.masks.rounds or (100 if name == "synflow" else 1)
    batches = place.data.few(10, seed=s.seed)
    mask = prune_once(model, name, budget_of(s), batches, rounds=rounds, seed=s.seed)
    if name != knobs.by:
        mask = mask.shuffled(s.seed)
    return {
        "neurons": [(t, neuron_collapse(mask, threshold=t) / 100) for t in knobs.thresholds],
        "collapsed": neuron_collapse(mask) / 100,
        "densities": {n.removesuffix(".weight"): float(kept.float().mean()) for n, kept in mask.items()},
    }


def gradient_flow(place: Place, knobs: FlowKnobs) -> Values:
    """Returns how measures of filters go together while a dense network trains.

    ``scale_change``: the correlation of |σ·Δσ|, Δσ over the epoch before, with |θᵀg|; ``hessian``: that of θᵀHg with
    θᵀg; ``mask_distance``: of the masks by |θᵀg| at two looks.
    """
    from halpiee.analysis.history import distance
    from halpiee.analysis.measures import correlations
    from halpiee.saliency.gradient import GraSP, LossPreservation
    from halpiee.saliency.magnitude import ScaleChange
    from halpiee.saliency.registry import InMode
    from halpiee.saliency.score import scores_of
    from halpiee.sparsity.filters import Filters
    from halpiee.studies.trajectory import Branch, batches_of, states

    s, data = place.settings, place.data
    per_epoch = data.steps_per_epoch(s.batch_size)
    epochs = sorted({*range(0, s.epochs + 1, min(knobs.every, s.epochs)), s.epochs})
    needed = {e for epoch in epochs for e in (epoch, max(0, epoch - 1))}
    files = states(place, 0.0, [per_epoch * e for e in needed])
    batches = batches_of(data, knobs.examples, min(128, s.batch_size))
    few = batches[: max(1, len(batches) // 4)]
    found: Values = {"scale_change": [], "hessian": [], "mask_distance": []}
    before: Mask | None = None
    for epoch in epochs:
        model = Branch.load(place, files[per_epoch * epoch]).model
        units = Filters(model)
        loss = scores_of(model, batches, InMode(LossPreservation()), units=units)
        signed = scores_of(model, few, InMode(LossPreservation(signed=True)), units=units)
        hessian = scores_of(model, few, GraSP(temperature=1.0, norms="eval"), units=units)
        found["hessian"].append((epoch, correlations(hessian, signed)[""]))
        if epoch > 0:
            earlier = Branch.load(place, files[per_epoch * (epoch - 1)]).model.state_dict()
            change = scores_of(model, [], ScaleChange(before=dict(earlier)), units=units)
            found["scale_change"].append((epoch, correlations(change, loss)[""]))
        mask = _best(units, loss, 1 - knobs.removed)
        if before is not None:
            found["mask_distance"].append((epoch, distance(before, mask)))
        before = mask
    return found


def _best(units: Any, scores: Any, density: float) -> Mask:
    """Returns the best filters of all layers together."""
    from halpiee.methods.allocator import LayerPools
    from halpiee.sparsity.distribution import Global
    from halpiee.sparsity.mask import Mask

    nothing = Mask.full(units.sizes, False)
    return Mask.of(
        LayerPools(units, Global(density)).choose(scores, must=nothing, may=~nothing, level=1.0).keep
    )


PROBES: dict[str, Probe] = {
    "train": Probe(),
    "plasticity": Probe(PlasticityKnobs, ("plasticity", "accuracy_pruned"), plasticity),
    "final-gap": Probe(PlasticityKnobs, ("final_gap", "accuracy"), final_gap),
    "collapse": Probe(CollapseKnobs, ("neurons", "collapsed", "densities"), collapse),
    "gradient-flow": Probe(FlowKnobs, ("scale_change", "hessian", "mask_distance"), gradient_flow),
}
"""What cells do, by name."""
