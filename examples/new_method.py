"""A method of your own, in one class: magnitude pruning in rounds, each at the same ratio (Han et al. 2015).

    python examples/new_method.py

A method says when units go and come: a recipe, which is a tuple of phases (``halpiee.methods.phases``), and a
criterion. Masks, optimizer state, resuming and the cut at the end are those of every method. ``@halpiee.method`` gives
it a name that ``halpiee methods`` lists and ``halpiee train --method`` takes. A package of your own names it as an
entry point:

    [project.entry-points."halpiee.methods"]
    rounds = "my_package.my_module"
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import halpiee
from halpiee.methods.method import Method, Setup
from halpiee.methods.phases import Design, Phase, Resize, Train, at_density, density_of
from halpiee.options import option
from halpiee.saliency import Magnitude


@dataclass(frozen=True)
class Options:
    """The options of pruning in rounds."""

    rounds: int = option(4, "Rounds of pruning.")
    interval: int = option(10, "Training steps before each round.")


@halpiee.method(
    "rounds",
    paper="Han et al. 2015, arXiv 1506.02626",
    units=("weights",),
    budgets=("global",),
    options=Options,
)
class Rounds(Method):
    """Prunes the smallest weights in rounds, each at the same ratio (Han et al. 2015)."""

    def design(self, given: Setup, options: Options) -> Design:
        """Returns the rounds: the k-th of n keeps ρ^(k/n)."""
        density, phases = density_of(given.limit), list[Phase]()
        for k in range(1, options.rounds + 1):
            kept = at_density(given.limit, density ** (k / options.rounds))
            phases += [Train(options.interval), Resize(budget=kept)]
        return given.design(tuple(phases), Magnitude())


def main() -> list[int]:
    """Trains a small network by the method, and returns how many weights are left after each round."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = Rounds(model, optimizer, budget=halpiee.Global(0.1), total_steps=60)
    for _ in range(60):
        inputs = torch.randn(32, 16)
        optimizer.zero_grad()
        cross_entropy(model(inputs), inputs[:, :4].argmax(1)).backward()
        optimizer.step()
    left = [int(report.used) for report in method.reports]
    print(f"weights kept: {' → '.join(map(str, left))} of {16 * 32 + 32 * 4}")
    return left


if __name__ == "__main__":
    main()
