"""A criterion of your own, in one class: the Fisher information of a unit's gate.

    python examples/new_criterion.py

A criterion says whether it reads every training step (``per_step``) and turns values and gradients into one score per
unit. ``units.reduce`` adds up an element-wise quantity over what belongs to a unit: one weight, a filter, or a channel
with all layers that it is coupled to. So the same class scores weights, filters and channels. ``@halpiee.criterion``
gives it a name that ``halpiee.score``, ``halpiee.prune_once`` and every method's ``criterion=`` take.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import halpiee
from halpiee.saliency import Look
from halpiee.sparsity import Units


@halpiee.criterion("fisher", paper="Theis et al. 2018, arXiv 1801.05787")
@dataclass(frozen=True)
class Fisher:
    """``(Σ w·g)²`` of a unit, averaged over steps: Fisher information of a gate on it (Theis et al. 2018)."""

    per_step: bool = True

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score; units without a gradient are missing."""

        def product(name: str) -> Tensor | None:
            weight, g = value(name), gradient(name)
            return None if weight is None or g is None else weight.detach() * g

        return {name: total.square() for name, total in units.reduce(product).items()}


def main() -> dict[str, Tensor]:
    """Scores the channels of a small network, prunes another one's weights by them, and returns the scores."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    batches = [(torch.randn(16, 3, 8, 8), torch.randint(4, (16,))) for _ in range(4)]
    structure = halpiee.trace(model, (torch.zeros(1, 3, 8, 8),))
    scores = halpiee.score(model, batches, "fisher", units=structure)
    for group, values in scores.items():
        print(f"{group:8} {'  '.join(f'{value:.1e}' for value in values.tolist())}")
    mask = halpiee.prune_once(model, "fisher", halpiee.Global(0.5), batches)
    print(f"weights kept: {sum(int(kept.sum()) for kept in mask.values())}")
    return dict(scores)


if __name__ == "__main__":
    main()
