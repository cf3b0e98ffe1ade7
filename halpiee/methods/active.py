"""The active units of a model: how they are chosen, made active, recorded and saved.

A change of the active units reads scores, lets the pool choose, and applies the choice: start, resize, drop, grow. Two
more are ablations of what a change has chosen: shuffle the units, redraw their weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.inputs import count, ordered
from halpiee.methods.allocator import LayerPools, bind
from halpiee.methods.attach import bare
from halpiee.methods.phases import (
    Design,
    Drop,
    Event,
    Grow,
    Ledger,
    Phase,
    Redraw,
    Resize,
    Shuffle,
    Start,
    Train,
)
from halpiee.methods.scores import Collector, Tally, check_ranks, share
from halpiee.methods.state import Guard, Memory
from halpiee.reconstruction.repair import Settings, repair, spread_out
from halpiee.saliency.criterion import Batches, Criterion
from halpiee.saliency.magnitude import Given
from halpiee.saliency.score import undecided, warn_of_ties
from halpiee.sparsity.distribution import NM
from halpiee.sparsity.granularity import Channels
from halpiee.sparsity.mask import Mask
from halpiee.structure.plan import Selection


class Active:
    """The active units of a model, and the progress of its recipe; for the arguments see ``Sparse``.

    Attributes:
        given: the model as it was given, in its wrappers.
        model: the model without them.
        alive: the active units.
        step: optimizer steps done.
        phase: index of the present phase.
        phase_steps: steps of it that are done.
        memory: the last values of inactive units.
        scores: reads scores.
        ledger: records events and steps.
        last_drop: active units before the last drop, its scores, active units after it.
        last_grow: active units before the last grow, its scores.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, design: Design, batches: Batches | None, seed: int
    ) -> None:
        self.given = model
        self.model, self.optimizer = bare(model), optimizer
        units = self.units = design.units
        self.pool, self.recipe, self.criterion = design.pool, design.recipe, design.criterion
        self.batches, self.seed, self.explore_init = batches, seed, design.explore_init
        self.images = design.images
        self._parameters = dict(self.model.named_parameters())
        named = {**self._parameters, **dict(self.model.named_buffers())}
        in_optimizer = {id(p) for group in optimizer.param_groups for p in group["params"]}
        # Everything a step can move: the model's parameters, and the running statistics of norms.
        self._tensors = {
            name: tensor
            for name, tensor in named.items()
            if id(tensor) in in_optimizer
            or name in units.tensors
            or name.endswith(("running_mean", "running_var"))
        }
        self._guard = Guard(self._tensors, optimizer)
        self.ledger = Ledger()
        self.alive = Mask.full(units.sizes)
        self.step = self.phase = self.phase_steps = 0
        self.scores = Collector(units, self._parameters, seed, design.loss_fn)
        self.last_drop: tuple[Mask, dict[str, Tensor], Mask] | None = None
        self.last_grow: tuple[Mask, dict[str, Tensor]] | None = None
        self._flat: dict[str, str] = {}
        self._warned: set[str] = set()
        self._warnings: list[tuple[dict[str, str], Criterion | str]] = []
        self._masks = units.masks(self.alive)
        masked = {name: p for name, p in self._parameters.items() if name in units.tensors}
        self.memory = Memory(masked, self._masks)
        # Optimizer state of inactive units is kept where a phase trains it: dense momentum.
        self._dense_state = any(
            isinstance(p, Train) and p.forward == "alive" and p.update == "all" for p in design.recipe
        )

    @property
    def reports(self) -> list[Event]:
        """The events so far."""
        return self.ledger.reports

    @property
    def log(self) -> list[tuple[int, str, dict[str, int]]]:
        """(steps, kind, active units per group) of every run of like steps."""
        return self.ledger.log

    @property
    def finished(self) -> bool:
        """Whether the active units are final."""
        return self.phase >= len(self.recipe)

    @property
    def omega(self) -> float:
        """Ω of the last prune, as a share of Ψ."""
        return next((e.omega / e.budget for e in reversed(self.reports) if e.event == "prune"), 0.0)

    @property
    def next_phase(self) -> object:
        """The phase after the present one, steps of zero length left out."""
        rest = self.recipe[self.phase + 1 :]
        return next((p for p in rest if not (isinstance(p, Train) and p.steps == 0)), None)

    # -- choosing ---------------------------------------------------------------------------------------------

    def change(self, phase: Phase) -> None:
        """Carries out a phase that happens between two steps."""
        changes: dict[type, Callable[[Any], None]] = {
            Start: self._start,
            Resize: self._resize,
            Drop: self._drop,
            Grow: self.grow,
            Shuffle: self._shuffle,
            Redraw: self._redraw,
        }
        if type(phase) in changes:
            changes[type(phase)](phase)

    def _start(self, phase: Start) -> None:
        """Chooses the first units."""
        pool = self.pool
        nothing = Mask.full(self.units.sizes, False)
        if phase.budget is not None:
            # Spread by another budget, brought to this one's total at random.
            spread = bind(phase.budget, self.units, None).start(self.scores.generator("start"))
            scores = self.scores.random("start")
            within = Mask.of(pool.choose(scores, must=nothing, may=Mask.of(spread.keep), level=1.0).keep)
            choice = pool.choose(scores, must=within, may=~within, level=1.0)
        elif phase.by == "random":
            choice = pool.start(self.scores.generator("start"))
        else:
            scores = self.read(None if phase.by == "scores" else "random", "start")
            choice = pool.choose(scores, must=nothing, may=~nothing, level=1.0)
            self._note_ties(None if phase.by == "scores" else "random", scores, ~nothing, choice.keep)
        with self._repairing(choice) if phase.by == "scores" else nullcontext():
            self.apply(choice, "init", 0.0)
        if self.explore_init == "zero":
            self.memory.forget_inactive()

    def _resize(self, phase: Resize) -> None:
        """Keeps the best units within the phase's budget."""
        pool = self.pool if phase.budget is None else bind(phase.budget, self.units, None)
        if phase.batches and phase.by != "random":
            if self.batches is None:
                raise UsageError(
                    "scores over batches were asked, and no batches given; pass batches=[(inputs, targets), …]"
                )
            criterion = self.criterion if phase.by is None else phase.by
            scores = self.scores.over(self.model, self.batches, criterion)
        else:
            scores = self.read(phase.by, f"resize {self.step}", full=phase.among == "all")
        nothing = Mask.full(self.units.sizes, False)
        before = self.alive
        may = before if phase.among == "alive" else ~nothing
        choice = pool.choose(scores, must=nothing, may=may, level=phase.level)
        least = None if phase.least is None else bind(phase.least, self.units, None)
        if least is not None and choice.used[0] < least.total:
            chosen = Mask.of(choice.keep)
            choice = least.choose(scores, must=chosen, may=may & ~chosen, level=1.0)
        self._note_ties(phase.by, scores, may, choice.keep)
        with self._repairing(choice):
            self.apply(choice, phase.event, 0.0, budget=pool.total)
        self.last_drop = (before, scores, self.alive)

    def _drop(self, phase: Drop) -> None:
        """Keeps the best active units; if a grow follows at the same step, the model changes only then."""
        scores = self.read(phase.by, f"drop {self.step}")
        nothing = Mask.full(self.units.sizes, False)
        before = self.alive
        if phase.within == "layer":
            round_ = math.ceil if phase.rounding == "ceil" else math.floor
            counts = {n: k - min(round_(phase.omega * k), k - 1) for n, k in before.counts.items()}
            choice = self._layers().choose_counts(scores, must=nothing, may=before, counts=counts)
            event = "drop"
        else:
            choice = self.pool.choose(scores, must=nothing, may=before, level=1 - phase.omega)
            event = "prune"
        self._note_ties(phase.by, scores, before, choice.keep)
        with self._repairing(choice):
            self.apply(choice, event, phase.omega, later=isinstance(self.next_phase, Grow))
        self.last_drop = (before, scores, self.alive)

    def grow(self, phase: Grow) -> None:
        """Keeps all active units and adds the best of the others."""
        kept = self.alive
        criterion: Criterion | str = self.criterion if phase.by == "score" else phase.by
        if not isinstance(criterion, str) and criterion.per_step and self.scores.tally.steps == 0:
            self.take_back()  # no step had finite scores
            return
        scores = self.read(criterion, f"grow {self.step}")
        if phase.within == "budget":
            choice = self.pool.choose(scores, must=kept, may=~kept, level=1.0)
        else:
            if self.last_drop is None:
                raise UsageError(
                    "a recipe grows within layers before it has dropped anything; put a Drop before"
                )
            counts = self.last_drop[0].counts
            if phase.within == "shared":
                counts = share(kept.counts, counts, scores, self.last_drop[0])
            choice = self._layers().choose_counts(scores, must=kept, may=~kept, counts=counts)
        self._note_ties(criterion, scores, ~kept, choice.keep)
        self.last_grow = (kept, scores)
        self.apply(choice, "grow", phase.omega, zero=phase.values == "zero")

    def _shuffle(self, phase: Shuffle) -> None:
        """Moves the active units of every layer to other places, with the values that are there."""
        if isinstance(self.pool, LayerPools) and isinstance(self.pool.budget, NM):
            raise UsageError(
                f"a mask of {self.pool.budget.n}:{self.pool.budget.m} was to be shuffled, whose runs that would not "
                "keep; use Global, ERK or Uniform"
            )
        used = self.pool.used(self.alive)
        choice = Selection(self.alive.shuffled(phase.seed), (used,), (used,), gap=0.0)
        self.apply(choice, "shuffle", 0.0, budget=used)

    def _redraw(self, phase: Redraw) -> None:
        """Draws all weights again, sets the inactive ones to zero, and clears the momentum."""
        phase.draw(self.model, phase.seed)
        self.memory.renew()
        self.forget_all()

    def _layers(self) -> LayerPools:
        if not isinstance(self.pool, LayerPools):
            raise UsageError(
                "units were to be exchanged within layers under a latency, which prices layers together; "
                "use a density budget, or IEE"
            )
        return self.pool

    def read(self, by: Criterion | str | None, purpose: str, *, full: bool = False) -> dict[str, Tensor]:
        """Returns scores by a criterion (``None`` or ``score``: the method's), or random ones for a purpose.

        With ``full``, inactive units are read by their last values.
        """
        if by == "random":
            return self.scores.random(purpose)
        criterion = self.criterion if by is None or isinstance(by, str) else by
        # of parameters that are not masked the memory has no value
        return self.scores.read(criterion, self.memory.value if full else None)

    def _note_ties(
        self,
        by: Criterion | str | None,
        scores: Mapping[str, Tensor],
        may: Mask,
        chosen: Mapping[str, Tensor],
    ) -> None:
        """Notes groups of which some units of ``may`` were ``chosen`` although all their scores are equal.

        The warning comes once, when the change is done: as an error it then stops a training that is not half changed.
        """
        criterion = self.criterion if by is None or by == "score" else by
        if by == "random" or isinstance(criterion, Given):
            return
        self._flat = undecided(scores, may, chosen)
        new = {n: why for n, why in self._flat.items() if n not in self._warned}
        self._warned |= new.keys()
        if new:
            self._warnings.append((new, criterion))

    def _warn(self) -> None:
        """Gives the warnings of the changes that are done."""
        while self._warnings:
            warn_of_ties(*self._warnings.pop(0))

    # -- applying ---------------------------------------------------------------------------------------------

    def take_back(self) -> None:
        """Ends a cycle without scores of the inactive units: what it has just dropped becomes active again."""
        if self.last_drop is not None:
            before = self.last_drop[0]
            choice = Selection(before, (self.pool.used(before),), (self.pool.total,), gap=0.0)
            self.apply(choice, "grow", self.omega)

    def apply(
        self,
        choice: Selection,
        event: str,
        omega: float,
        *,
        budget: float | None = None,
        zero: bool = False,
        later: bool = False,
    ) -> Event:
        """Makes ``choice`` the active units, records it, and forgets the optimizer state of what it removed.

        Args:
            choice: the units.
            event: its name in the reports.
            omega: share that is exchanged.
            budget: of the pool that chose; by default the method's.
            zero: whether units that were not active start from zero.
            later: whether the model stays as it is until the next change, which is then one with this.
        """
        alive = Mask.of(choice.keep)
        check_ranks(alive, self.step)
        if not later:
            self._masks = self.units.masks(alive)
            self._forget()
            self.memory.switch(self._masks, zero=zero)
            self._forget()
        self.alive = alive
        flat, self._flat = tuple(self._flat), {}
        total = self.pool.total if budget is None else budget
        return self.ledger.event(
            alive,
            step=self.step,
            event=event,
            budget=total,
            used=choice.used[0],
            omega=omega * total,
            gap=choice.gap,
            slack=choice.slack,
            next_step=choice.next_step,
            skipped=self.scores.tally.skipped,
            flat=flat,
        )

    @contextmanager
    def _repairing(self, choice: Selection) -> Iterator[None]:
        """Solves the layers of the chosen units again, where images were given, from what they answered before."""
        if self.images is None or not isinstance(self.units, Channels):
            yield
            return
        given = ordered(self.model, self.images)
        how = Settings(images=count(self.images), seed=self.seed)
        # solved in evaluation mode: the statistics of the batch norms are what the units before have
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        solved = repair(self.model, self.units.structure, choice.keep, [(given, None)], settings=how)
        for module, training in modes.items():
            module.training = training
        yield
        spread_out(self.model, self.units.structure, choice.keep, solved)

    def forget_all(self) -> None:
        """Clears the optimizer's state of every parameter."""
        own = self._parameters.keys() & self._tensors.keys()
        self._guard.forget_state({n: torch.ones_like(self._tensors[n], dtype=torch.bool) for n in own})

    def _forget(self) -> None:
        if self.finished or not self._dense_state:
            self._guard.forget_state(self.memory.inactive)

    # -- saving -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns everything a resumed run needs beside the model's and the optimizer's own state."""
        dropped, grown = self.last_drop, self.last_grow
        return {
            "step": self.step,
            "phase": self.phase,
            "phase_steps": self.phase_steps,
            "forward_all": self.memory.everything,
            "alive": dict(self.alive),
            "memory": self.memory.state(),
            "scores": self.scores.tally.state(),
            "last_drop": None if dropped is None else [dict(dropped[0]), dropped[1], dict(dropped[2])],
            "last_grow": None if grown is None else [dict(grown[0]), grown[1]],
            **self.ledger.state(),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Takes over a saved state, but for the active units; the model and the optimizer already have theirs."""
        self._check_units(state)
        self.step, self.phase, self.phase_steps = state["step"], state["phase"], state["phase_steps"]
        self.memory.load(state["memory"])
        self.scores.tally = Tally(**state["scores"])
        self.last_drop = self.last_grow = None
        if state["last_drop"] is not None:
            before, scores, after = map(dict, state["last_drop"])
            self.last_drop = Mask(before), scores, Mask(after)
        if state["last_grow"] is not None:
            kept, scores = map(dict, state["last_grow"])
            self.last_grow = Mask(kept), scores
        self.ledger.load(state)

    def _check_units(self, state: Mapping[str, Any]) -> None:
        """Refuses a saved state of units with other names or sizes."""
        expected = {name: tuple(size) for name, size in self.units.sizes.items()}
        found = {name: tuple(mask.shape) for name, mask in state["alive"].items()}
        if expected != found:
            raise UsageError(
                f"the saved state masks {len(found)} groups, this model has {len(expected)} of other sizes or names; "
                "resume with the model and settings of the run that saved it"
            )
