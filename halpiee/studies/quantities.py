"""The quantities that are read off a finished training: one function each, by the name that a study's file has for it.

A quantity is a number, a list of (x, y), or a number for each layer. Shares are shares of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halpiee.errors import UsageError

if TYPE_CHECKING:
    from halpiee.training.job import Run

__all__ = ["MEASURED", "QUANTITIES", "Finished", "quantity"]

Value = float | list[tuple[float, float]] | dict[str, float]


@dataclass(frozen=True)
class Finished:
    """A training that has ended.

    Attributes:
        run: its folder and settings.
        dense: results of the dense network; None: there is none.
        pruned: results of the pruned one.
        report: of the whole run, with its latency; None: it was not measured.
    """

    run: Run
    dense: Mapping[str, Any] | None
    pruned: Mapping[str, Any]
    report: Mapping[str, Any] | None = None

    def events(self, *names: str) -> list[Mapping[str, Any]]:
        """Returns the events of these names; without one, all."""
        return [e for e in self.pruned["events"] if not names or e["event"] in names]


QUANTITIES: dict[str, Callable[[Finished], Value]] = {}
"""Name → what reads it."""

MEASURED: set[str] = set()
"""Those that need the latency of the network: the run is exported and timed."""


def quantity(
    name: str, *, measured: bool = False
) -> Callable[[Callable[[Finished], Value]], Callable[[Finished], Value]]:
    """Returns a decorator that registers a quantity."""

    def register(function: Callable[[Finished], Value]) -> Callable[[Finished], Value]:
        QUANTITIES[name] = function
        if measured:
            MEASURED.add(name)
        return function

    return register


@quantity("accuracy")
def accuracy(of: Finished) -> Value:
    """Top-1 of the pruned network on the test images."""
    return float(of.pruned["accuracy"])


@quantity("accuracy_dense")
def accuracy_dense(of: Finished) -> Value:
    """Top-1 of the dense network."""
    return math.nan if of.dense is None else float(of.dense["accuracy"])


@quantity("loss_of_accuracy")
def loss_of_accuracy(of: Finished) -> Value:
    """Top-1 of the dense network less that of the pruned one."""
    return math.nan if of.dense is None else float(of.dense["accuracy"] - of.pruned["accuracy"])


@quantity("train_accuracy")
def train_accuracy(of: Finished) -> Value:
    """Top-1 of the pruned network on the training images, without augmentation."""
    from halpiee.studies.trajectory import accuracy_on

    return accuracy_on(of.run.compact().to(of.run.device), of.run.data, train=True)


@quantity("density")
def density(of: Finished) -> Value:
    """Share of the units that remain."""
    units = of.pruned["sparsity"]
    return math.nan if not units else float(units["kept"] / units["total"])


@quantity("layers")
def layers(of: Finished) -> Value:
    """Share of each layer's units that is kept."""
    units = of.pruned["sparsity"]
    if not units:
        raise UsageError("the density of each layer was asked of a training to a latency; give a sparsity")
    return {name.removesuffix(".weight"): float(share) for name, share in units["densities"].items()}


@quantity("sparsities")
def sparsities(of: Finished) -> Value:
    """Share of each layer's units that is removed."""
    found = layers(of)
    assert isinstance(found, dict)
    return {name: 1 - share for name, share in found.items()}


@quantity("forward_flops")
def forward_flops(of: Finished) -> Value:
    """Multiply-accumulates of one forward over the dense network's."""
    whole = of.run.macs({})
    return float((of.pruned.get("effective_macs") or of.run.macs(of.pruned["counts"])) / whole)


@quantity("train_flops")
def train_flops(of: Finished) -> Value:
    """Training FLOPs over the dense training's, as the papers charge them."""
    return float(of.pruned["train_flops_ratio"]["paper"])


@quantity("train_flops_strict")
def train_flops_strict(of: Finished) -> Value:
    """Training FLOPs over the dense training's, as they are done."""
    return float(of.pruned["train_flops_ratio"]["strict"])


@quantity("train_cost")
def train_cost(of: Finished) -> Value:
    """Training cost in dense trainings of ``--cost-reference``, as the papers charge it."""
    from halpiee.training.record import train_cost as cost

    found = cost(of.run.settings, of.pruned["train_flops_ratio"])
    return math.nan if found is None else found["paper"]


@quantity("accuracy_over_epochs")
def accuracy_over_epochs(of: Finished) -> Value:
    """(epoch, top-1 on the test images) of the pruned network's training."""
    return [(float(e["epoch"]), float(e["accuracy"])) for e in of.pruned["history"]]


@quantity("flops_over_epochs")
def flops_over_epochs(of: Finished) -> Value:
    """(epoch, training FLOPs so far over those of as many dense steps)."""
    return [
        (float(e["epoch"]), float(e["train_flops"]["paper"]))
        for e in of.pruned["history"]
        if e.get("train_flops") is not None
    ]


@quantity("density_over_epochs")
def density_over_epochs(of: Finished) -> Value:
    """(epoch, share of the units that is active)."""
    return [
        (float(e["epoch"]), float(e["density"])) for e in of.pruned["history"] if e.get("density") is not None
    ]


@quantity("iou_after_prune")
def iou_after_prune(of: Finished) -> Value:
    """(step, overlap of the units after a prune with those after the prune before)."""
    return _over_steps(of.events("prune", "drop"), "iou")


@quantity("iou_after_grow")
def iou_after_grow(of: Finished) -> Value:
    """(step, overlap of the units after a grow with those after the grow before)."""
    return _over_steps(of.events("grow"), "iou")


@quantity("survival")
def survival(of: Finished) -> Value:
    """Mean share of what a grow has grown that the next prune leaves."""
    found = [y for _, y in _over_steps(of.events(), "survival")]
    return sum(found) / len(found) if found else math.nan


@quantity("survival_over_steps")
def survival_over_steps(of: Finished) -> Value:
    """(step of a prune, share of what the last grow had grown that it leaves)."""
    return _over_steps(of.events(), "survival")


@quantity("latency_us", measured=True)
def latency_us(of: Finished) -> Value:
    """Measured latency of the pruned network, in µs."""
    return _reported(of, "measured_us")


@quantity("latency_share", measured=True)
def latency_share(of: Finished) -> Value:
    """Measured latency of the pruned network over that of the dense one."""
    return _reported(of, "measured_us") / _reported(of, "dense_us")


@quantity("fps", measured=True)
def fps(of: Finished) -> Value:
    """Images a second of the pruned network."""
    return _reported(of, "fps_pruned")


@quantity("macs", measured=True)
def macs(of: Finished) -> Value:
    """Multiply-accumulates of one image, of the pruned network."""
    return _reported(of, "macs_pruned")


def _reported(of: Finished, name: str) -> float:
    assert of.report is not None
    return float(of.report[name])


def _over_steps(events: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    found = [(float(e["step"]), e.get(name)) for e in events]
    return [(x, float(y)) for x, y in found if y is not None and not math.isnan(y)]
