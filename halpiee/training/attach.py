"""From a run's settings to the method that they name, attached to a model and its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.methods.design import Asked
from halpiee.methods.method import Method
from halpiee.methods.registry import METHODS
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.distribution import Latency
from halpiee.sparsity.filters import Filters
from halpiee.structure.groups import Structure
from halpiee.training.config import Settings
from halpiee.training.limits import budget_of, given_mask, units_of
from halpiee.training.network import network

__all__ = ["draw_again", "method_of"]


def method_of(
    s: Settings,
    model: nn.Module,
    total_steps: int,
    *,
    structure: Callable[[], Structure],
    n_classes: int,
    examples: Callable[[], list[tuple[Tensor, Tensor]]],
    shape: Sequence[int] | None = None,
    limit: tuple[LatencyCost, float] | None = None,
    protect: Collection[str] = (),
) -> Callable[[nn.Module, Optimizer], Method]:
    """Returns the method of a run with all its options, ready for a model and its optimizer.

    Args:
        s: the settings.
        model: the network, for its units.
        total_steps: of the whole training.
        structure: gives that of the model.
        n_classes: of the data, to draw the network again.
        examples: gives (inputs, targets) to score on.
        shape: of one image, for the order in which layers run.
        limit: the latency model and the budget in µs; ``None``: the settings ask for a sparsity.
        protect: groups that stay whole within the latency.
    """
    entry = METHODS[s.method].load()
    assert isinstance(entry.make, type)
    assert issubclass(entry.make, Method)
    given: dict[str, Any] = {"total_steps": total_steps, "seed": s.seed}
    if limit is not None:
        cost, budget_us = limit
        given |= {"budget": Latency(us=budget_us), "structure": structure(), "cost": cost, "protect": protect}
        units = "channels"
    else:
        if s.masks.mask is None:
            given["budget"] = budget_of(s)
        given["units"] = units_of(model, s, shape)
        units = "filters" if isinstance(given["units"], Filters) else "weights"
        if units == "filters":
            given["structure"] = structure()
    asked = Asked(
        options={**entry.preset, **_typed(s, n_classes)},
        cycle=asdict(s.cycle),
        steps=lambda: s.cycle.steps(total_steps),
        model=model,
        seed=s.seed,
        total_steps=total_steps,
        pretrained=s.weights is not None,
        units=units,
        structure=structure,
        examples=examples,
    )
    return partial(entry.make, **{**given, **entry.make.arguments(asked)})


def _typed(s: Settings, n_classes: int) -> dict[str, Any]:
    """Returns the options that were typed, under the names that methods have for them."""
    m = s.masks
    found = {name: value for name, value in asdict(m).items() if value is not None}
    if m.mask is not None:
        found["mask"] = given_mask(m.mask)
    if m.ablation == "shuffle":
        found["shuffle"] = True
    if m.ablation == "reinit" and m.mask is None:
        found["redraw"] = partial(draw_again, s, n_classes)
    return found


def draw_again(s: Settings, n_classes: int, model: nn.Module, seed: int) -> None:
    """Draws the run's network again, by its own builder and another seed."""
    model.load_state_dict(network(replace(s, seed=seed + 1), n_classes).state_dict())
