"""A package of your own: a criterion, a backend that pretends, a network and data, all known to every verb.

    pip install -e examples/own_package
    halpiee train own_pruning:network --data own_pruning:data --method filter --criterion mean-magnitude \
        --sparsity 0.5 --epochs 2 --out runs/filters
    halpiee profile own_pruning:network --size 8 --backend formula --out formula.jsonl
    halpiee plan own_pruning:network --size 8 --profile formula.jsonl --budget 0.5
    halpiee train own_pruning:network --data own_pruning:data --backend formula --budget 0.5 --method early \
        --criterion mean-magnitude --epochs 2 --out runs/half

The entry points in ``pyproject.toml`` are all that halpiee needs to find the parts; no file of it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import halpiee
import latency
from halpiee.saliency import Look
from halpiee.sparsity import Units
from latency.op import Op
from latency.timing import Clock

FLOPS, BYTES, LAUNCH_US = 20e9, 10e9, 0.5
"""Of the device that the backend pretends to be: per second, per second, and µs of every op."""


@halpiee.criterion("mean-magnitude")
@dataclass(frozen=True)
class MeanMagnitude:
    """Mean of ``|w|`` over a unit: filters of many inputs have no advantage over those of few."""

    per_step: bool = False  # read once, when units are chosen; True: averaged over the steps before

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""

        def of(one: Callable[[Tensor], Tensor]) -> Look:
            def element(name: str) -> Tensor | None:
                weight = value(name)
                return None if weight is None else one(weight.detach())

            return element

        sums, sizes = units.reduce(of(torch.abs)), units.reduce(of(torch.ones_like))
        return {name: total / sizes[name] for name, total in sums.items()}


def modelled_us(op: Op) -> float:
    """Returns the µs of an op on a roofline: the slower of its arithmetic and of its weights in float32."""
    return LAUNCH_US + 1e6 * max(2 * op.macs / FLOPS, 4 * op.weights / BYTES)


class Told:
    """A clock that believes what it runs: the call returns its own time in µs."""

    kind = "formula"

    def time_us(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Returns what the call says, as the time that counts and as the wall time."""
        us = float(run())
        return us, us


@latency.backend("formula")
class Formula(latency.Backend):
    """A device that is not here: every op takes what a roofline says, a network the sum of its ops."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def environment(self) -> dict[str, Any]:
        """Returns the circumstances that a profile states."""
        return latency.environment("formula", self.threads)

    def clock(self) -> Clock:
        """Returns the clock that calls themselves tell."""
        return Told()

    def build(self, op: Op) -> latency.Built:
        """Returns a call that says the op's time."""
        return latency.Built(run=lambda: modelled_us(op), method="formula")

    def network(self, model: nn.Module, example_inputs: Any = None, **_: Any) -> latency.Runner:
        """Returns a whole network; without it only ``latency.sweep`` takes the backend, and the verbs refuse it."""
        return Summed(model, tuple(example_inputs))


class Summed(latency.Runner):
    """A network whose time is the sum of its ops."""

    runtime = "formula"

    def __init__(self, model: nn.Module, example_inputs: tuple[Tensor, ...]) -> None:
        self._model, self._inputs = model, example_inputs

    def ready(self) -> None:
        """Lists the ops."""
        ops = halpiee.trace(self._model, self._inputs).ops
        self._us = sum(modelled_us(timed.op) for timed in ops)

    def start(self) -> float:
        """Returns the time in µs."""
        return self._us

    def run(self) -> float:
        """Returns the time in µs."""
        return self._us


def network(num_classes: int = 4) -> nn.Module:
    """Returns a small network for images of 8 × 8 pixels; `halpiee train` says how many classes the data has."""
    layers: list[nn.Module] = []
    for c_in, c_out in ((3, 16), (16, 32)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns training and test pairs of images ``[N, 3, 8, 8]`` and labels ``[N]``: the brightest quarter."""

    def pair(count: int, seed: int) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(seed)
        images = torch.randn(count, 3, 8, 8, generator=source)
        labels = torch.arange(count) % 4
        for image, label in zip(images, labels.tolist(), strict=True):
            row, column = divmod(label, 2)
            image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
        return images, labels

    return pair(512, 0), pair(128, 1)
