"""The phases a method is made of: train under two masks, or change which units are active.

A recipe is a tuple of phases. ``Train`` lasts its steps; ``Start``, ``Drop`` and ``Grow`` happen between two steps.
Two masks, not one: ``forward`` says which units the network uses, ``update`` which may move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Drop", "Grow", "Phase", "Recipe", "Start", "Train"]


@dataclass(frozen=True)
class Train:
    """``steps`` optimizer steps; per-step scores are collected where the next event wants them.

    Attributes:
        steps: how many.
        forward: units used in forward: the active ones, or all.
        update: units that may move: the active ones, the others, or all.
        collect: whether the criterion is accumulated over the phase.
        norm: what active units normalise by while all units are used in forward: the ``batch``, as in any
            training step, or the ``running`` statistics they had when the phase began.
    """

    steps: int
    forward: Literal["alive", "all"] = "alive"
    update: Literal["alive", "dead", "all"] = "alive"
    collect: bool = False
    norm: Literal["batch", "running"] = "batch"


@dataclass(frozen=True)
class Start:
    """The first choice of units: ``random`` (the pool's own start), ``random_scores`` or the collected ``scores``."""

    by: Literal["random", "random_scores", "scores"] = "random"


@dataclass(frozen=True)
class Drop:
    """Keep the best active units within ``(1 − omega) · Ψ``."""

    omega: float


@dataclass(frozen=True)
class Grow:
    """Keep all active units, add the best of the others within ``Ψ``.

    Attributes:
        omega: the share the preceding drop made free, for the record.
        by: their own scores, or ``random``.
        values: grown units take their most recently used values, or zero.
    """

    omega: float
    by: Literal["score", "random"] = "score"
    values: Literal["last", "zero"] = "last"


Phase = Train | Start | Drop | Grow
Recipe = tuple[Phase, ...]
