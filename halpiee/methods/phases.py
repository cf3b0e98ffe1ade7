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

``Design`` holds the decisions of a method, its recipe among them; ``Ledger`` records its events, and its steps under
their masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from halpiee.errors import UsageError
from halpiee.methods.allocator import Pool
from halpiee.saliency.criterion import Criterion, LossFn
from halpiee.sparsity.distribution import ERK, Budget, Global, Uniform
from halpiee.sparsity.granularity import Units
from halpiee.sparsity.mask import Mask


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
    """As many units of every layer at other places, drawn by ``seed``: an ablation of arXiv 2009.08576."""

    seed: int = 0


@dataclass(frozen=True)
class Redraw:
    """Another sample of the initialisation under the same mask: an ablation of arXiv 2009.08576.

    ``draw(model, seed)`` draws the weights in place.
    """

    draw: Callable[[nn.Module, int], object]
    seed: int = 0


Phase = Train | Start | Resize | Drop | Grow | Shuffle | Redraw
Recipe = tuple[Phase, ...]


@dataclass(frozen=True, kw_only=True)
class Design:
    """The decisions of a method, which ``Sparse`` carries out."""

    units: Units  # what is removed and brought back
    pool: Pool  # the budget, bound to the units
    recipe: Recipe  # phases, in order
    criterion: Criterion  # scores units wherever a phase names no other criterion
    explore_init: str = (
        "model"  # never-active units start from the ``model``'s initialisation, or from ``zero``
    )
    loss_fn: LossFn = cross_entropy  # what scores over batches take gradients of
    # ``[N, …]`` without labels, which layers are solved from after every prune of channels; ``None``: they are not
    images: Tensor | None = None


def at_density(budget: Budget, density: float) -> Budget:
    """Returns the same budget at another density; refuses a budget without one, as ``density_of`` does."""
    density_of(budget)
    assert isinstance(budget, Uniform | ERK | Global)
    return replace(budget, density=density)


def density_of(budget: Budget) -> float:
    """Returns the density of a budget.

    Raises:
        UsageError: a budget without a density.
    """
    if not isinstance(budget, Uniform | ERK | Global):
        raise UsageError(
            f"{type(budget).__name__} was given to a method that passes through densities; give Global, Uniform or ERK"
        )
    return budget.density


def update_steps(total_steps: int, interval: int, end: float) -> range:
    """Returns the steps after which masks are updated: every ``interval``, before ``end · total_steps``.

    Raises:
        UsageError: none fits.
    """
    if interval < 1 or total_steps < 1 or not 0 < end <= 1:
        raise UsageError(
            f"updates every {interval} steps in the first {end} of {total_steps} steps were asked; "
            "the interval is at least 1 and the end a share above 0 and up to 1"
        )
    last = math.ceil(round(end * total_steps, 6))
    if interval >= last:
        raise UsageError(
            f"updates every {interval} steps in the first {end:.0%} of {total_steps} steps were asked, and none fits; "
            f"train longer, or give an interval= (--interval) below {max(1, int(round(end * total_steps, 6)))}"
        )
    return range(interval, last, interval)


@dataclass(frozen=True)
class Event:
    """One change of the active units.

    Attributes:
        step: optimizer steps done before it.
        event: ``init``, ``prune``, ``drop`` (the first half of an exchange), ``grow``,
            ``load`` (the mask of a saved state) or ``shrink``.
        budget: Ψ, in the pool's unit (µs, or units kept).
        used: R of the active units after it.
        omega: Ω, what this cycle exchanges, in the same unit.
        gap: certified relative gap of the selection.
        slack: capacity minus used; the capacity is Ψ − Ω after a prune, Ψ otherwise.
        next_step: smallest extra cost of any next allowed size.
        iou: overlap with the units that were active after the previous event of the same kind.
        skipped: steps of the phase whose scores were not finite and did not count.
        counts: active units per group.
        flat: groups that were cut into by scores that do not tell their units apart.
        survival: of a prune or drop: share of what the last grow had grown that it leaves; NaN where nothing had.
    """

    step: int
    event: str
    budget: float
    used: float
    omega: float
    gap: float
    slack: float
    next_step: float
    iou: float
    skipped: int
    counts: dict[str, int]
    flat: tuple[str, ...] = ()
    survival: float = math.nan


class Ledger:
    """Events and steps of one training.

    Attributes:
        reports: the events so far.
        log: (steps, kind, active units per group) of every run of like steps, for the training FLOPs.
        listeners: called with every event and the units that are active after it.
    """

    def __init__(self) -> None:
        self.reports: list[Event] = []
        self.log: list[tuple[int, str, dict[str, int]]] = []
        self.listeners: list[Callable[[Event, Mask], None]] = []
        self._after: dict[str, Mask] = {}
        self._last: Mask | None = None
        self._grown: Mask | None = None

    def event(self, alive: Mask, **values: Any) -> Event:
        """Records that ``alive`` are the active units from now on; ``values`` are the event's other fields."""
        kind = values["event"]
        previous = self._after.get(kind)
        overlap = previous.iou(alive) if previous is not None else math.nan
        self._after[kind] = alive
        survival = math.nan
        if kind == "grow" and self._last is not None:
            self._grown = alive & ~self._last
        elif kind in ("prune", "drop") and self._grown is not None:
            grown = sum(self._grown.counts.values())
            survival = sum((self._grown & alive).counts.values()) / grown if grown else math.nan
            self._grown = None
        self._last = alive
        event = Event(**values, iou=overlap, counts=alive.counts, survival=survival)
        self.reports.append(event)
        for listener in self.listeners:
            listener(event, alive)
        return event

    def step(self, kind: str, counts: dict[str, int]) -> None:
        """Counts one optimizer step under its masks."""
        if self.log and self.log[-1][1] == kind and self.log[-1][2] == counts:
            self.log[-1] = (self.log[-1][0] + 1, kind, counts)
        else:
            self.log.append((1, kind, counts))

    def state(self) -> dict[str, Any]:
        """Returns plain values and tensors."""
        return {
            "masks_after": {kind: dict(mask) for kind, mask in self._after.items()},
            "last": None if self._last is None else dict(self._last),
            "grown": None if self._grown is None else dict(self._grown),
            "reports": [asdict(event) for event in self.reports],
            "log": [list(entry) for entry in self.log],
        }

    def load(self, state: Mapping[str, Any], *, masks: bool = True) -> None:
        """Restores a record; the masks only where the units are still the same."""
        self.reports = [Event(**{**e, "flat": tuple(e.get("flat", ()))}) for e in state["reports"]]
        self.log = [(int(n), str(kind), dict(counts)) for n, kind, counts in state["log"]]
        if masks:
            self._after = {kind: Mask(dict(mask)) for kind, mask in state["masks_after"].items()}
            last, grown = state.get("last"), state.get("grown")
            self._last, self._grown = (None if m is None else Mask(dict(m)) for m in (last, grown))
