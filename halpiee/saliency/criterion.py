"""The interface of a criterion: a score per unit from the weights and gradients of one step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from halpiee.sparsity.granularity import Units

__all__ = ["Batches", "Criterion", "Gradients", "Look", "LossFn", "Passes", "Probing"]

Look = Callable[[str], Tensor | None]
"""Tensor name → the parameter's value (or its gradient), ``None`` where there is none."""

Batches = Iterable[tuple[Tensor, Tensor]]
"""(inputs, targets)."""

LossFn = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) → scalar."""

Gradients = dict[str, Tensor | None]
"""Parameter name → its gradient, or what a criterion takes in its place."""

Passes = Generator[Gradients | None, None, None]
"""Gradients to score by, once or once a batch; ``None``: a batch that was not finite. Closing it tidies up."""


class Criterion(Protocol):
    """Scores units; higher is more important."""

    @property
    def per_step(self) -> bool:
        """Whether it is scored on every step and averaged over a phase; otherwise it is read once at its end."""
        ...

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → float score of the unit's shape."""
        ...


@runtime_checkable
class Probing(Criterion, Protocol):
    """A criterion that makes its own passes over the model: what ``gradient`` holds is what they yield."""

    def probe(self, model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
        """Yields the gradients to score by, once or once a batch; ``None``: a batch that was not finite."""
        ...
