"""The changes between two steps: start, resize, drop, grow. Each reads scores, calls ``choose`` and applies it.

Two more are ablations of what a change has chosen: shuffle the units, redraw their weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from halpiee.errors import UsageError
from halpiee.methods.phases import Drop, Grow, Phase, Redraw, Resize, Shuffle, Start
from halpiee.methods.pools import Choice, LayerPools, bind
from halpiee.saliency.criterion import Criterion
from halpiee.sparsity.distribution import NM
from halpiee.sparsity.mask import Mask

if TYPE_CHECKING:
    from halpiee.methods.driver import Sparse

__all__ = ["change", "drop", "grow", "redraw", "resize", "share", "shuffle", "start"]


def change(method: Sparse, phase: Phase) -> None:
    """Carries out a phase that happens between two steps."""
    if isinstance(phase, Start):
        start(method, phase)
    elif isinstance(phase, Resize):
        resize(method, phase)
    elif isinstance(phase, Drop):
        drop(method, phase)
    elif isinstance(phase, Grow):
        grow(method, phase)
    elif isinstance(phase, Shuffle):
        shuffle(method, phase)
    elif isinstance(phase, Redraw):
        redraw(method, phase)


def start(method: Sparse, phase: Start) -> None:
    """Chooses the first units."""
    pool = method.pool
    nothing = Mask.full(method.units.sizes, False)
    if phase.budget is not None:
        # Spread by another budget, brought to this one's total at random.
        spread = bind(phase.budget, method.units, None).start(method.scores.generator("start"))
        scores = method.scores.random("start")
        within = pool.choose(scores, must=nothing, may=spread.alive, level=1.0)
        choice = pool.choose(scores, must=within.alive, may=~within.alive, level=1.0)
    elif phase.by == "random":
        choice = pool.start(method.scores.generator("start"))
    else:
        scores = method.read(None if phase.by == "scores" else "random", "start")
        choice = pool.choose(scores, must=nothing, may=~nothing, level=1.0)
        method.tell(None if phase.by == "scores" else "random", scores, ~nothing, choice.alive)
    method.apply(choice, "init", 0.0)
    if method.explore_init == "zero":
        method.memory.forget_inactive()


def resize(method: Sparse, phase: Resize) -> None:
    """Keeps the best units within the phase's budget."""
    pool = method.pool if phase.budget is None else bind(phase.budget, method.units, None)
    if phase.batches and phase.by != "random":
        if method.batches is None:
            raise UsageError(
                "scores over batches were asked, and no batches given; pass batches=[(inputs, targets), …]"
            )
        criterion = method.criterion if phase.by is None else phase.by
        scores = method.scores.over(method.model, method.batches, criterion)
    else:
        scores = method.read(phase.by, f"resize {method.step}", full=phase.among == "all")
    nothing = Mask.full(method.units.sizes, False)
    before = method.alive
    may = before if phase.among == "alive" else ~nothing
    choice = pool.choose(scores, must=nothing, may=may, level=phase.level)
    least = None if phase.least is None else bind(phase.least, method.units, None)
    if least is not None and choice.used < least.total:
        choice = least.choose(scores, must=choice.alive, may=may & ~choice.alive, level=1.0)
    method.tell(phase.by, scores, may, choice.alive)
    method.apply(choice, phase.event, 0.0, budget=pool.total)
    method.last_drop = (before, scores, method.alive)


def drop(method: Sparse, phase: Drop) -> None:
    """Keeps the best active units; before a grow at the same step the model is left as it is until then."""
    scores = method.read(phase.by, f"drop {method.step}")
    nothing = Mask.full(method.units.sizes, False)
    before = method.alive
    if phase.within == "layer":
        round_ = math.ceil if phase.rounding == "ceil" else math.floor
        counts = {n: k - min(round_(phase.omega * k), k - 1) for n, k in before.counts.items()}
        choice = _layers(method).choose_counts(scores, must=nothing, may=before, counts=counts)
        event = "drop"
    else:
        choice = method.pool.choose(scores, must=nothing, may=before, level=1 - phase.omega)
        event = "prune"
    method.tell(phase.by, scores, before, choice.alive)
    method.apply(choice, event, phase.omega, later=isinstance(method.next_phase, Grow))
    method.last_drop = (before, scores, method.alive)


def grow(method: Sparse, phase: Grow) -> None:
    """Keeps all active units and adds the best of the others."""
    kept = method.alive
    criterion: Criterion | str = method.criterion if phase.by == "score" else phase.by
    if not isinstance(criterion, str) and criterion.per_step and method.scores.tally.steps == 0:
        method.take_back()  # no step had finite scores
        return
    scores = method.read(criterion, f"grow {method.step}")
    if phase.within == "budget":
        choice = method.pool.choose(scores, must=kept, may=~kept, level=1.0)
    else:
        if method.last_drop is None:
            raise UsageError("a recipe grows within layers before it has dropped anything; put a Drop before")
        counts = method.last_drop[0].counts
        if phase.within == "shared":
            counts = share(kept.counts, counts, scores, method.last_drop[0])
        choice = _layers(method).choose_counts(scores, must=kept, may=~kept, counts=counts)
    method.tell(criterion, scores, ~kept, choice.alive)
    method.last_grow = (kept, scores)
    method.apply(choice, "grow", phase.omega, zero=phase.values == "zero")


def shuffle(method: Sparse, phase: Shuffle) -> None:
    """Moves the active units of every layer to other places, with the values that are there."""
    if isinstance(method.pool, LayerPools) and isinstance(method.pool.budget, NM):
        raise UsageError(
            f"a mask of {method.pool.budget.n}:{method.pool.budget.m} was to be shuffled, whose runs that would not "
            "keep; use Global, ERK or Uniform"
        )
    used = method.pool.used(method.alive)
    choice = Choice(method.alive.shuffled(phase.seed), used, 0.0, math.nan, 0.0)
    method.apply(choice, "shuffle", 0.0, budget=used)


def redraw(method: Sparse, phase: Redraw) -> None:
    """Draws all weights anew, then takes the inactive ones out; momentum starts anew."""
    phase.draw(method.model, phase.seed)
    method.memory.renew()
    method.forget_all()


def share(
    kept: Mapping[str, int], before: Mapping[str, int], scores: Mapping[str, Tensor], active: Mask
) -> dict[str, int]:
    """Returns active units per layer when what all layers lost is shared by the mean score of their active units.

    Shares are rounded to the largest remainders, so that the total is exact; what does not fit into a layer goes to
    the others in the same proportion (SNFS, arXiv 1907.04840, Sec. 3).

    Args:
        kept: active units after the drop.
        before: active units before it.
        scores: of all units.
        active: the active units before the drop.
    """
    room = {n: active[n].numel() - k for n, k in kept.items()}
    weight = {n: float(scores[n][active[n]].double().mean()) for n in kept}
    if not sum(weight.values()) > 0:
        weight = dict.fromkeys(kept, 1.0)
    grown = dict.fromkeys(kept, 0)
    left = sum(before.values()) - sum(kept.values())
    while left > 0:
        open_ = [n for n in kept if grown[n] < room[n] and weight[n] > 0] or [
            n for n in kept if grown[n] < room[n]
        ]
        total = sum(weight[n] for n in open_)
        wanted = {n: left * (weight[n] / total if total > 0 else 1 / len(open_)) for n in open_}
        order = sorted(open_, key=lambda n: math.floor(wanted[n]) - wanted[n])
        spare = left - sum(math.floor(w) for w in wanted.values())
        for i, n in enumerate(order):
            more = min(math.floor(wanted[n]) + (i < spare), room[n] - grown[n])
            grown[n] += more
            left -= more
    return {n: k + grown[n] for n, k in kept.items()}


def _layers(method: Sparse) -> LayerPools:
    if not isinstance(method.pool, LayerPools):
        raise UsageError(
            "units were to be exchanged within layers under a latency, which prices layers together; "
            "use a density budget, or IEE"
        )
    return method.pool
