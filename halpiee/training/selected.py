"""What a plan records of units that a run chose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from halpiee.structure.plan import Plan, SelectionLike
from halpiee.training.network import arguments

if TYPE_CHECKING:
    from halpiee.training.run import Run

__all__ = ["Selected", "save_plan"]


@dataclass(frozen=True)
class Selected:
    """Units and, where they were solved for, their latency.

    Attributes:
        keep: group → which units stay; a group that is not named is whole.
        latency_us: as predicted; NaN where none was.
        gap: certified relative gap of the last solve.
    """

    keep: Mapping[str, Tensor]
    latency_us: float = math.nan
    gap: float | None = None


def save_plan(run: Run, selection: SelectionLike, budget_us: float | None = None) -> None:
    """Writes the plan of a run's network."""
    model, made = run.settings.model, arguments(run.settings, run.data.n_classes)
    plan = Plan.from_selection(run.structure, selection, model=model, arguments=made, budget_us=budget_us)
    plan.save(run.folder / "plan.json", overwrite=True)
