"""The quantities that are read off a finished training, by the name that a study's file has for them.

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

__all__ = ["MEASURED", "QUANTITIES", "Finished"]

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
    """Returns top-1 of the pruned network on the training images, without augmentation."""
    from halpiee.studies.trajectory import accuracy_on

    return accuracy_on(of.run.compact().to(of.run.device), of.run.data, train=True)


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
    # Top-1 accuracy, on the test images where nothing else is said.
    "accuracy": lambda of: float(of.pruned["accuracy"]),
    "accuracy_dense": lambda of: of.accuracy_dense,
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
