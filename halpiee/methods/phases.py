"""The phases a method is made of: train under two masks, or change which units are active.

A recipe is a tuple of phases. ``Train`` lasts its steps; all others happen between two steps. Two masks, not one:
``forward`` says which units the network uses, ``update`` which may move. A new method is a new recipe::

    static    Start
    RigL      Start; every ΔT: Train(collect |g|) · Drop(f, by |w|, within layer) · Grow(by |g|, within layer)
    GMP       every ΔT: Train · Resize(by |w|, budget of the step)
    GraNet    every ΔT: Train(collect |g|) · Resize(by |w|) · Drop(r, within layer) · Grow(by |g|, within layer)
    SNIP      Resize(by |w·g|, over batches)
    IEE       Start; cycle: Train(collect) · Drop(Ω) · Train · Train(forward=all, update=dead, collect) · Grow(Ω)

A ``Drop`` right before a ``Grow`` is one exchange with it: a unit that is dropped and grown again has never left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from halpiee.saliency.criterion import Criterion
from halpiee.sparsity.distribution import Budget

__all__ = ["Drop", "Grow", "Phase", "Recipe", "Redraw", "Resize", "Shuffle", "Start", "Train"]


@dataclass(frozen=True)
class Train:
    """``steps`` optimizer steps; per-step scores are collected where the next event wants them.

    Attributes:
        steps: how many.
        forward: units used in forward: the active ones, or all.
        update: units that may move: the active ones, the others, or all. All, with the active ones in forward,
            means that inactive units stay zero but their optimizer state follows their gradients.
        collect: whether the criterion is accumulated over the phase.
        norm: what active units normalise by while all units are used in forward: the ``batch``, as in any
            training step, or the ``running`` statistics they had when the phase began.
        criterion: what is accumulated; ``None``: the method's own.
        gradient: units whose gradient is read, for the account of FLOPs: those that move, or all.
    """

    steps: int
    forward: Literal["alive", "all"] = "alive"
    update: Literal["alive", "dead", "all"] = "alive"
    collect: bool = False
    norm: Literal["batch", "running"] = "batch"
    criterion: Criterion | None = None
    gradient: Literal["update", "all"] = "update"

    @property
    def kind(self) -> Literal["train", "gradient", "explore", "explore_all"]:
        """What a step costs: active; active with all weight gradients; all with the inactive trained; all."""
        if self.forward == "all":
            return "explore_all" if self.update == "all" else "explore"
        return "gradient" if "all" in (self.update, self.gradient) else "train"


@dataclass(frozen=True)
class Start:
    """The first choice of units.

    Attributes:
        by: ``random`` (the pool's own start), ``random_scores`` or the collected ``scores``.
        budget: how the random units are spread, where that is not the method's budget: a Global one starts
            from ERK densities, say; the total is the method's.
    """

    by: Literal["random", "random_scores", "scores"] = "random"
    budget: Budget | None = None


@dataclass(frozen=True)
class Resize:
    """Keep the best units within a budget; the values of what is removed are remembered.

    Attributes:
        budget: which; ``None``: the method's.
        level: share of it that is filled; above 1 on the way down to it.
        by: whose scores; ``None``: the method's criterion.
        among: the active units, or all by their last values (masks only: what was removed may return).
        batches: whether the scores are taken over the method's batches, not over the last phase.
        event: its name in the reports.
        least: a budget over all layers that a choice below it is filled up to; ``None``: as it comes.
    """

    budget: Budget | None = None
    level: float = 1.0
    by: Criterion | Literal["random"] | None = None
    among: Literal["alive", "all"] = "alive"
    batches: bool = False
    event: Literal["init", "prune"] = "prune"
    least: Budget | None = None


@dataclass(frozen=True)
class Drop:
    """Keep the best active units.

    Attributes:
        omega: share that goes: of Ψ, keeping ``(1 − omega) · Ψ``; or of every layer's active units.
        by: whose scores; ``None``: the method's criterion.
        within: the ``budget`` decides where they go, or every ``layer`` loses the same share.
        rounding: of the number a layer loses.
    """

    omega: float
    by: Criterion | None = None
    within: Literal["budget", "layer"] = "budget"
    rounding: Literal["floor", "ceil"] = "floor"


@dataclass(frozen=True)
class Grow:
    """Keep all active units, add the best of the others.

    Attributes:
        omega: the share the preceding drop made free, for the record.
        by: their own scores (by the method's criterion or another), or ``random``.
        values: grown units take their most recently used values, or zero.
        within: up to the ``budget``; every ``layer`` as many as it lost; or ``shared``: the number all layers lost,
            in proportion to the mean score of each layer's active units.
    """

    omega: float
    by: Criterion | Literal["score", "random"] = "score"
    values: Literal["last", "zero"] = "last"
    within: Literal["budget", "layer", "shared"] = "budget"


@dataclass(frozen=True)
class Shuffle:
    """As many units of every layer at other places: an ablation of arXiv 2009.08576.

    Attributes:
        seed: of the places.
    """

    seed: int = 0


@dataclass(frozen=True)
class Redraw:
    """Another sample of the initialisation under the same mask: an ablation of arXiv 2009.08576.

    Attributes:
        draw: (model, seed) → anything; draws the weights in place.
        seed: of the sample.
    """

    draw: Callable[[nn.Module, int], object]
    seed: int = 0


Phase = Train | Start | Resize | Drop | Grow | Shuffle | Redraw
Recipe = tuple[Phase, ...]
