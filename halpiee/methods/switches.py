"""The switches of IEE: what its paper's Table 4 turns on and off, for ``halpiee.IEE`` and ``halpiee train`` alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from halpiee import ranges
from halpiee.options import option
from halpiee.shared_options import GOAL

__all__ = ["HEADING", "Switches"]

HEADING = "IEE: prune, improve, explore, grow"


@dataclass(frozen=True, kw_only=True)
class Switches:
    """How units are exchanged."""

    omega: ranges.Between = option(
        0.3, "Exploration budget of the first cycle, as a share of the budget.", HEADING
    )
    decay: Literal["exponential", "cosine"] = option(
        "exponential",
        "Decay of the exploration budget: to 1 % of the budget or one step of the coarsest group, or as a cosine to 0.",
        HEADING,
    )
    end: ranges.Positive = option(0.75, "Share of the training after which updates have ended.", HEADING)
    explore_init: Literal["model", "zero"] | None = option(
        None,
        "Values that units start from which were never active: the network's initial ones, or zero.",
        HEADING,
        unset="weights: zero; channels: model",
    )
    grow_by: Literal["score", "random"] = option(
        "score", "Grow the units with the highest scores, or random ones.", HEADING
    )
    grow_values: Literal["last", "zero"] = option(
        "last", "Values of grown units: as exploration left them, or zero.", HEADING
    )
    freeze: bool = option(True, "Freeze active units during exploration.", HEADING)
    explore_norm: Literal["batch", "running"] = option(
        "batch",
        "Statistics that batch norms use during exploration: of the batch, or the running ones.",
        HEADING,
    )
    solver: Literal["joint", "cpsat", "linear"] = option(
        "joint", "Solver that selects the units of a latency.", GOAL
    )
