"""RigL, GraNet and IEE beside a method with a criterion and a schedule of your own, at one density and training length.

    python examples/methods_compared.py --seeds 3

``Relative`` is the criterion: a weight's magnitude over the norm of its layer, so that a global exchange does not drain
the layers of small weights. ``Linear`` is the schedule: any function of the step is one. ``Mine`` is the method: a
recipe of phases (``halpiee.methods.phases``). IEE takes the same criterion by its name.

Every training has the same data, seeds and steps. Reported are accuracy over seeds, the share of all weights that were
active at any time (ITOP's exploration) and what is left at the end.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import halpiee
from halpiee.analysis import History, exploration
from halpiee.methods.method import Method, Setup
from halpiee.methods.phases import Design, Drop, Grow, Phase, Start, Train
from halpiee.options import option
from halpiee.saliency import Gradient, Look
from halpiee.sparsity import Units

STEPS, DENSITY = 120, 0.1


@halpiee.criterion("relative", paper="yours")
@dataclass(frozen=True)
class Relative:
    """``|w| / ‖W‖₂`` of the layer that the weight is in; read once, when it is asked for."""

    per_step: bool = False

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""

        def relative(name: str) -> Tensor | None:
            weight = value(name)
            return None if weight is None else weight.detach().abs() / weight.detach().norm().clamp(min=1e-12)

        return units.reduce(relative)


@dataclass(frozen=True)
class Linear:
    """A share that falls in a straight line to zero at ``steps``."""

    start: float
    steps: int

    def __call__(self, step: float) -> float:
        """Returns the share that is exchanged at a step."""
        return self.start * max(0.0, 1.0 - step / self.steps)


@dataclass(frozen=True)
class Options:
    """The options of the method."""

    fraction: float = option(0.5, "Share of the active weights that the first exchange moves.")
    interval: int = option(10, "Training steps between two exchanges.")


@halpiee.method("mine", paper="yours", units=("weights",), budgets=("global",), options=Options)
class Mine(Method):
    """Drops by `Relative` and grows by gradient, over all layers together, ever less by `Linear`."""

    def design(self, given: Setup, options: Options) -> Design:
        """Returns a start at the density, then the exchanges."""
        share = Linear(options.fraction, given.total_steps)
        phases: list[Phase] = [Start(budget=halpiee.ERK(DENSITY))]
        for step in range(options.interval, given.total_steps, options.interval):
            phases += [
                Train(options.interval - 1),
                Train(1, collect=True, criterion=Gradient(), gradient="all"),
                Drop(share(step)),
                Grow(share(step), by=Gradient(), values="zero"),
            ]
        return given.design(tuple(phases), Relative())


Maker = Callable[[nn.Module, torch.optim.Optimizer], Method]

CONTESTANTS: dict[str, Maker] = {
    "RigL": lambda model, optimizer: halpiee.RigL(
        model, optimizer, budget=halpiee.ERK(DENSITY), total_steps=STEPS, interval=10
    ),
    "GraNet": lambda model, optimizer: halpiee.GraNet(
        model, optimizer, budget=halpiee.Global(DENSITY), total_steps=STEPS, interval=10
    ),
    "IEE": lambda model, optimizer: halpiee.IEE(
        model, optimizer, budget=halpiee.Global(DENSITY), total_steps=STEPS, h=6, j=2, q=4
    ),
    "IEE, relative": lambda model, optimizer: halpiee.IEE(
        model,
        optimizer,
        budget=halpiee.Global(DENSITY),
        total_steps=STEPS,
        h=6,
        j=2,
        q=4,
        criterion="relative",
    ),
    "mine": lambda model, optimizer: Mine(
        model, optimizer, budget=halpiee.Global(DENSITY), total_steps=STEPS
    ),
}


def network() -> nn.Module:
    """Returns a small convolutional network of four classes."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip


def batch(seed: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Returns images ``[size, 1, 8, 8]`` whose brighter quarter is their class, and the classes ``[size]``."""
    source = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(size, 1, 8, 8, generator=source), torch.randint(4, (size,), generator=source)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.5
    return images, labels


def train(make: Maker, seed: int) -> tuple[float, float, Method]:
    """Returns accuracy on batches that no training sees, the share of weights that were ever active, and the method."""
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    method = make(model, optimizer)
    seen = History.of(method)
    for step in range(STEPS):
        images, labels = batch(1000 * seed + step)
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
    images, labels = batch(10**6, size=1024)
    with torch.no_grad():
        right = float((model.eval()(images).argmax(1) == labels).float().mean())
    return right, exploration(seen), method


def main(seeds: int = 3) -> dict[str, list[float]]:
    """Trains every contestant with every seed, prints a line for each, and returns the accuracies."""
    found: dict[str, list[float]] = {}
    print(f"{'method':14} {'accuracy':>16} {'explored':>9} {'left':>6}")
    for name, make in CONTESTANTS.items():
        runs = [train(make, seed) for seed in range(seeds)]
        found[name] = [accuracy for accuracy, _, _ in runs]
        spread = statistics.stdev(found[name]) if seeds > 1 else 0.0
        explored, left = runs[-1][1], runs[-1][2].alive.density
        print(f"{name:14} {statistics.mean(found[name]):8.1%} ± {spread:5.1%} {explored:9.1%} {left:6.1%}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    main(parser.parse_args().seeds)
