"""A task of your own, in one class: how many dots an image shows, learnt as a number and not as a class.

    python examples/new_task.py

A task says how the network is built, what a batch costs, and which figure counts. ``@halpiee.task`` gives it a name; so
does an entry point of the group ``halpiee.tasks`` in a package of yours. Without either, from the folder of this file:

    halpiee train resnet20 --data new_task:dots --task new_task:Counting --budget 0.5
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import halpiee

Pair = tuple[Tensor, Tensor]


class Near(halpiee.Metric):
    """The share of images whose count is met to a half."""

    def __init__(self) -> None:
        self.met = self.seen = 0.0

    def add(self, answers: Any, targets: Any) -> None:
        """Counts a batch."""
        self.met += ((answers[:, 0] - targets).abs() < 0.5).double().sum()
        self.seen += len(targets)

    def merge(self, others: Sequence[Any]) -> None:
        """Adds the counts of other processes."""
        for other in others:
            self.met, self.seen = self.met + other.met, self.seen + other.seen

    def figures(self) -> dict[str, float]:
        """Returns the share."""
        return {"near": float(self.met) / max(1.0, float(self.seen))}


@halpiee.task("counting")
class Counting(halpiee.Task):
    """Squared error of a count; the network has one output."""

    figure, title = "near", "Counts met"

    def arguments(self, n_classes: int) -> dict[str, Any]:
        """Returns the arguments of a builder of classifiers."""
        return {"num_classes": 1}

    def loss(self, answers: Any, targets: Any, *, smoothing: float = 0.0) -> Tensor:
        """Returns the mean squared error."""
        return (answers[:, 0] - targets).square().mean()

    def metric(self, n_classes: int) -> Near:
        """Returns what counts the test images."""
        return Near()


def dots() -> tuple[Pair, Pair]:
    """Returns training and test images of 0 to 5 white dots, and how many each has."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(600, 3, 16, 16, dtype=torch.uint8)
    y = torch.arange(600) % 6
    for image, n in zip(x, y.tolist(), strict=True):
        for place in torch.randperm(64, generator=generator)[:n].tolist():
            row, column = divmod(place, 8)
            image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 255
    return (x[:500], y[:500]), (x[500:], y[500:])


def main(steps: int = 300) -> dict[str, float]:
    """Trains a small network on dots in a loop of its own, and returns the figures on the test images."""
    torch.manual_seed(0)
    (x, y), (test_x, test_y) = dots()
    model = nn.Sequential(
        nn.Conv2d(3, 8, 2, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 1),
    )  # fmt: skip
    task = Counting()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(steps):
        at = torch.arange(step * 50, step * 50 + 50) % len(x)
        loss = task.loss(model(x[at] / 255), y[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    metric = task.metric(6)
    with torch.no_grad():
        metric.add(model(test_x / 255), test_y)
    print(f"counts met: {metric.figures()['near']:.0%}")
    return metric.figures()


if __name__ == "__main__":
    main()
