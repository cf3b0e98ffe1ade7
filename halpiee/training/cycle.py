"""How IEE exchanges units in a run: its cycle, and the switches of its paper's Table 4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from halpiee import ranges
from halpiee.errors import UsageError

__all__ = ["Cycle"]


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """How IEE exchanges units; see ``halpiee.IEE``.

    Attributes:
        h: steps before a prune; ``None``: chosen so that ``cycles`` fit.
        j: steps after it; likewise.
        q: steps of exploring; likewise.
        cycles: how many cycles when h, j and q are left open.
        omega: Ω⁰ as a share of Ψ.
        end: share of the training after which updates have ended.
        decay: how Ω falls.
        explore_init: never-active units start from the ``model``'s initialisation, or from ``zero``; ``None``: weights
            from zero, channels from the model.
        grow_by: grow the best-scoring units, or random ones.
        grow_values: grown units keep the values they were explored with, or start at zero.
        freeze: whether active units stand still while the inactive ones are explored.
        explore_norm: active units normalise by the batch while exploring, or by their running statistics.
        solver: ``joint``, ``cpsat`` or ``linear``.
    """

    h: ranges.Steps | None = None
    j: ranges.StepsOrNone | None = None
    q: ranges.Steps | None = None
    cycles: ranges.Epochs = 8
    omega: ranges.Between = 0.3
    end: ranges.Positive = 0.75
    decay: Literal["exponential", "cosine"] = "exponential"
    explore_init: Literal["model", "zero"] | None = None
    grow_by: Literal["score", "random"] = "score"
    grow_values: Literal["last", "zero"] = "last"
    freeze: bool = True
    explore_norm: Literal["batch", "running"] = "batch"
    solver: Literal["joint", "cpsat", "linear"] = "joint"

    def __post_init__(self) -> None:
        ranges.check(self)

    def steps(self, total_steps: int) -> tuple[int, int, int]:
        """Returns (h, j, q); open ones share what ``cycles`` cycles leave within the first ``end`` of training.

        Raises:
            UsageError: not even one step each is left.
        """
        given = [n for n in (self.h, self.j, self.q) if n is not None]
        room = int(self.end * total_steps) // max(self.cycles, 1) - sum(given)
        share = room // max(3 - len(given), 1)
        h, j, q = (share if n is None else n for n in (self.h, self.j, self.q))
        if min(h, q) < 1 or j < 0:
            raise UsageError(
                f"{self.cycles} cycles were asked of {total_steps} steps with updates ending at {self.end:.0%}; "
                f"that leaves {room} steps for h, j and q: train more epochs, or ask for fewer --cycles"
            )
        return h, j, q
