"""What a cell of a study does and gives: a run of ``halpiee train``, or a probe; and quantities by name.

A quantity is read off a finished run: a number, a list of (x, y), or a number for each layer. Shares are shares of 1.
A probe trains a network and measures something on the way. It has knobs (a frozen dataclass, typed in a study's file
like the options of a training), the quantities that it gives, and the function that measures them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from halpiee import ranges
from halpiee.errors import UsageError
from halpiee.options import option

if TYPE_CHECKING:
    from halpiee.analysis.measures import Plasticity
    from halpiee.sparsity.mask import Mask
    from halpiee.studies.trajectory import Branch, Place
    from halpiee.training.job import Run


Value = float | list[tuple[float, float]] | dict[str, float]


@dataclass(frozen=True)
class Finished:
    """A training that has ended."""

    run: Run  # its folder and settings
    dense: Mapping[str, Any] | None  # results of the dense network; None: there is none
    pruned: Mapping[str, Any]  # results of the pruned one
    report: Mapping[str, Any] | None = None  # of the whole run, with its latency; None: it was not measured

    @property
    def accuracy_dense(self) -> float:
        """Top-1 of the dense network; NaN without one."""
        return math.nan if self.dense is None else float(self.dense["accuracy"])

    def densities(self) -> dict[str, float]:
        """Returns the share of each layer's units that is kept."""
        units = self.pruned["sparsity"]
        if not units:
            raise UsageError(
                "the density of each layer was asked of a training to a latency; give a sparsity"
            )
        return {name.removesuffix(".weight"): float(share) for name, share in units["densities"].items()}

    def over_steps(self, value: str, *events: str) -> list[tuple[float, float]]:
        """Returns (step, value) of the events of these names, without NaN; of all events where none is named."""
        found = [
            (float(e["step"]), e.get(value))
            for e in self.pruned["events"]
            if not events or e["event"] in events
        ]
        return [(x, float(y)) for x, y in found if y is not None and not math.isnan(y)]

    def over_epochs(self, value: Callable[[Mapping[str, Any]], float | None]) -> list[tuple[float, float]]:
        """Returns (epoch, value) of the entries of the history that have one."""
        found = [(float(e["epoch"]), value(e)) for e in self.pruned["history"]]
        return [(x, float(y)) for x, y in found if y is not None]

    def reported(self, name: str) -> float:
        """Returns a number of the report."""
        assert self.report is not None
        return float(self.report[name])


def train_accuracy(of: Finished) -> float:
    """Returns top-1 of the pruned network on all training images, without augmentation."""
    from halpiee.data.tensors import TensorData
    from halpiee.training.loop import evaluate

    data = of.run.data
    assert isinstance(data, TensorData)  # ``work`` keeps the images of a classification in memory
    seen = replace(data, test_x=data.train_x, test_y=data.train_y)
    return evaluate(of.run.compact().to(of.run.device), seen)[0]


def train_cost(of: Finished) -> float:
    """Returns the training cost in dense trainings of ``--cost-reference``, as the papers charge it."""
    from halpiee.training.record import train_cost as cost

    found = cost(of.run.settings, of.pruned["train_flops_ratio"])
    return math.nan if found is None else found["paper"]


def density(of: Finished) -> float:
    """Returns the share of the units that remains; NaN of a training to a latency."""
    units = of.pruned["sparsity"]
    return math.nan if not units else float(units["kept"] / units["total"])


def mean(points: Sequence[tuple[float, float]]) -> float:
    """Returns the mean of y; NaN of no points."""
    return sum(y for _, y in points) / len(points) if points else math.nan


QUANTITIES: dict[str, Callable[[Finished], Value]] = {
    # Top-1 accuracy, or the figure of another task, on the test images where nothing else is said.
    "accuracy": lambda of: float(of.pruned["accuracy"]),
    "accuracy_dense": lambda of: of.accuracy_dense,
    "map50": lambda of: float(of.pruned["history"][-1]["map50"]),
    "loss_of_accuracy": lambda of: of.accuracy_dense - float(of.pruned["accuracy"]),
    "train_accuracy": train_accuracy,
    "accuracy_over_epochs": lambda of: of.over_epochs(lambda e: e["accuracy"]),
    # Shares of units that are kept, or removed (sparsities); per layer.
    "density": density,
    "layers": lambda of: of.densities(),
    "sparsities": lambda of: {name: 1 - share for name, share in of.densities().items()},
    "density_over_epochs": lambda of: of.over_epochs(lambda e: e.get("density")),
    # FLOPs over those of the dense network: of one forward, of the training as the papers charge it, and as it is done.
    "forward_flops": lambda of: float(
        (of.pruned.get("effective_macs") or of.run.macs(of.pruned["counts"])) / of.run.macs({})
    ),
    "train_flops": lambda of: float(of.pruned["train_flops_ratio"]["paper"]),
    "train_flops_strict": lambda of: float(of.pruned["train_flops_ratio"]["strict"]),
    "train_cost": train_cost,
    "flops_over_epochs": lambda of: of.over_epochs(lambda e: (e.get("train_flops") or {}).get("paper")),
    # Overlap of the units after an event with those after the event of its kind before.
    "iou_after_prune": lambda of: of.over_steps("iou", "prune", "drop"),
    "iou_after_grow": lambda of: of.over_steps("iou", "grow"),
    # Share of what the last grow had grown that a prune leaves: the mean, and over steps.
    "survival": lambda of: mean(of.over_steps("survival")),
    "survival_over_steps": lambda of: of.over_steps("survival"),
    # Measured in µs, over the dense network's, in images a second; multiply-accumulates of one image.
    "latency_us": lambda of: of.reported("measured_us"),
    "latency_share": lambda of: of.reported("measured_us") / of.reported("dense_us"),
    "fps": lambda of: of.reported("fps_pruned"),
    "macs": lambda of: of.reported("macs_pruned"),
}
"""Name → what reads it."""

MEASURED = {"latency_us", "latency_share", "fps", "macs"}
"""Those that need the latency of the network: the run is exported and timed."""


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
    from halpiee.studies.trajectory import Branch, branches, states, total_steps
    from halpiee.training.loop import evaluate

    total = total_steps(place)
    end = evaluate(Branch.load(place, states(place, knobs.pretrained, [total])[total]).model, place.data)[0]
    found: Values = {"final_gap": [], "accuracy": end}
    for epoch, branch in branches(place, knobs.pretrained, knobs.times):
        result = _pruned(branch, knobs, total - branch.step, branch.rate)
        found["final_gap"].append((epoch, result.after - end))
    return found


def _pruned(branch: Branch, knobs: PlasticityKnobs, steps: int, rate: Callable[[int], float]) -> Plasticity:
    """Prunes a network on the way, trains a copy on, and returns the accuracies before, right after and at the end."""
    from halpiee.analysis.measures import pruning_plasticity
    from halpiee.sparsity.mask import Mask
    from halpiee.training.loop import evaluate

    return pruning_plasticity(
        branch.model,
        rate=knobs.rate,
        train=lambda model, free: branch.train_on(model, Mask.of(free), knobs.of, steps, rate),
        accuracy=lambda model: evaluate(model, branch.place.data)[0],
        gradients=branch.gradients() if knobs.regrowth else None,
        units=branch.units(knobs.of),
        within=knobs.scope,
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
    mask = prune_once(model, name, budget_of(s), place.data.few(10, seed=s.seed), rounds=rounds, seed=s.seed)
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
    from halpiee.methods.one_shot import prune_once
    from halpiee.saliency.gradient import GraSP, LossPreservation
    from halpiee.saliency.magnitude import Given, ScaleChange
    from halpiee.saliency.registry import InMode
    from halpiee.saliency.score import scores_of
    from halpiee.sparsity.distribution import Global
    from halpiee.sparsity.filters import Filters
    from halpiee.studies.trajectory import Branch, batches_of, states

    s, data = place.settings, place.data
    per_epoch = data.steps_per_epoch(s.batch_size)
    epochs = sorted({*range(0, s.epochs + 1, min(knobs.every, s.epochs)), s.epochs})
    needed = {e for epoch in epochs for e in (epoch, max(0, epoch - 1))}
    files = states(place, 0.0, [per_epoch * e for e in needed])
    batches = batches_of(data, knobs.examples, min(128, s.batch_size))
    found: Values = {"scale_change": [], "hessian": [], "mask_distance": []}
    before: Mask | None = None
    for epoch in epochs:
        model = Branch.load(place, files[per_epoch * epoch]).model
        units = Filters(model)
        # of the gradient over all batches: averaged one by one, |θᵀg| would be mostly the noise of a batch
        signed = scores_of(model, batches, InMode(LossPreservation(signed=True)), units=units)
        loss = {name: score.abs() for name, score in signed.items()}
        hessian = scores_of(model, batches, GraSP(temperature=1.0, norms="eval", pooled=True), units=units)
        found["hessian"].append((epoch, correlations(hessian, signed)[""]))
        if epoch > 0:
            earlier = Branch.load(place, files[per_epoch * (epoch - 1)]).model.state_dict()
            change = scores_of(model, [], ScaleChange(before=dict(earlier)), units=units)
            found["scale_change"].append((epoch, correlations(change, loss)[""]))
        mask = prune_once(model, Given(loss), Global(1 - knobs.removed), units=units)
        if before is not None:
            found["mask_distance"].append((epoch, distance(before, mask)))
        before = mask
    return found


PROBES: dict[str, Probe] = {
    "train": Probe(),
    "plasticity": Probe(PlasticityKnobs, ("plasticity", "accuracy_pruned"), plasticity),
    "final-gap": Probe(PlasticityKnobs, ("final_gap", "accuracy"), final_gap),
    "collapse": Probe(CollapseKnobs, ("neurons", "collapsed", "densities"), collapse),
    "gradient-flow": Probe(FlowKnobs, ("scale_change", "hessian", "mask_distance"), gradient_flow),
}
"""What cells do, by name."""
