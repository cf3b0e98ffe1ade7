"""Runs a recipe from an optimizer's step hooks, so that the user's training loop does not change.

Parameters stay plain tensors: what the forward mask leaves out is written as zero (its last value is remembered),
what the update mask leaves out is put back after every step. ``deepcopy``, ``state_dict``, EMA, ``torch.compile``
and DDP therefore see an ordinary model. Steps that a GradScaler skips are not counted; scores use unscaled
gradients; under DDP gradients are the reduced ones, so that all ranks choose alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import HalpieeError, UsageError
from halpiee.methods.event import Event
from halpiee.methods.guard import Guard
from halpiee.methods.memory import Memory
from halpiee.methods.norm import RunningNorms
from halpiee.methods.phases import Drop, Grow, Recipe, Start, Train
from halpiee.methods.pools import Choice, Pool
from halpiee.methods.ranks import check_ranks
from halpiee.methods.tally import Tally
from halpiee.methods.unwrap import bare
from halpiee.saliency.criterion import Criterion
from halpiee.sparsity.granularity import Units
from halpiee.sparsity.mask import Mask

__all__ = ["Sparse"]


class Sparse:
    """A recipe attached to a model and its optimizer.

    Args:
        model: trained in place; its parameters keep their identity.
        optimizer: any whose state has the parameter's shape or is a scalar.
        units: what is removed and brought back.
        pool: the budget, bound to the units.
        recipe: phases, in order; after the last one the active units train on.
        criterion: scores units, for dropping and growing alike.
        seed: of every random choice.
        explore_init: never-active units start from the model's initialisation, or from zero.

    Attributes:
        reports: the events so far.
        alive: the active units.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        units: Units,
        pool: Pool,
        recipe: Recipe,
        criterion: Criterion,
        seed: int = 0,
        explore_init: str = "model",
    ) -> None:
        self.model, self.optimizer = bare(model), optimizer
        self.units, self.pool, self.recipe, self.criterion, self.seed = units, pool, recipe, criterion, seed
        self._parameters = dict(self.model.named_parameters())
        named = {**self._parameters, **dict(self.model.named_buffers())}
        in_optimizer = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [n for n in units.tensors if n in self._parameters and id(named[n]) not in in_optimizer]
        if missing:
            raise UsageError(
                f"the optimizer does not hold {missing[0]!r} (and {len(missing) - 1} more masked parameters); "
                "build it from this model's parameters()"
            )
        # Everything a step can move: the model's parameters, and the running statistics of norms.
        self._tensors = {
            name: tensor
            for name, tensor in named.items()
            if id(tensor) in in_optimizer
            or name in units.tensors
            or name.endswith(("running_mean", "running_var"))
        }
        self._guard = Guard(self._tensors, optimizer)
        self._fused_skip = False
        self.reports: list[Event] = []
        self.alive = Mask.full(units.sizes)
        self.step = 0
        self.phase = 0
        self.phase_steps = 0
        self.log: list[tuple[int, str, dict[str, int]]] = []
        self._scores = Tally()
        self._explore_init = explore_init
        self._masks_after: dict[str, Mask] = {}
        self._last_drop: tuple[Mask, dict[str, Tensor], Mask] | None = None
        self._last_grow: tuple[Mask, dict[str, Tensor]] | None = None
        self._masks = units.masks(self.alive)
        masked = {name: p for name, p in self._parameters.items() if name in units.tensors}
        self._memory = Memory(masked, self._masks)
        self._norms = RunningNorms()
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._advance()

    # -- what users see ---------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the active units are final."""
        return self.phase >= len(self.recipe)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the model holds its active units only, also while it explores; for evaluation and export."""
        with self._memory.only_active():
            yield

    def finish(self) -> None:
        """Ends the updates now, on a grow: a cycle that has pruned and not yet grown is closed first."""
        if self.finished:
            return
        opened = isinstance(self._last_open(), Drop)
        exploring = self._memory.everything and (self._scores.steps > 0 or not self.criterion.per_step)
        self.phase = len(self.recipe)
        self.phase_steps = 0
        if opened and exploring:
            self._grow(Grow(self._omega))
        elif opened and self._last_drop is not None:
            # No score of the inactive units in this cycle: what it has just pruned comes back.
            choice = Choice(self._last_drop[0], self.pool.used(self._last_drop[0]), 0.0, math.nan, 0.0)
            choice = self._with_slack(choice)
            self._apply(choice, "grow", self._omega)
        self._enter(Train(0))

    def detach(self) -> None:
        """Takes the hooks off the optimizer; the model keeps its active units."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._norms.off()

    def state_dict(self) -> dict[str, Any]:
        """Returns everything a resumed run needs beside the model's and the optimizer's own state."""
        return {
            "step": self.step,
            "phase": self.phase,
            "phase_steps": self.phase_steps,
            "forward_all": self._memory.everything,
            "alive": dict(self.alive),
            "memory": self._memory.state(),
            "scores": self._scores.state(),
            "last_drop": None
            if self._last_drop is None
            else [dict(self._last_drop[0]), self._last_drop[1], dict(self._last_drop[2])],
            "last_grow": None if self._last_grow is None else [dict(self._last_grow[0]), self._last_grow[1]],
            "masks_after": {kind: dict(mask) for kind, mask in self._masks_after.items()},
            "reports": [asdict(event) for event in self.reports],
            "log": [list(entry) for entry in self.log],
        }

    def load_record(self, state: Mapping[str, Any]) -> None:
        """Takes over what was recorded, not what is active: for a run that goes on with the compact network."""
        self.step = state["step"]
        self.reports = [Event(**event) for event in state["reports"]]
        self.log = [(int(n), str(kind), dict(counts)) for n, kind, counts in state["log"]]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where ``state_dict`` was taken; load the model's and the optimizer's state first."""
        expected = {name: tuple(size) for name, size in self.units.sizes.items()}
        found = {name: tuple(mask.shape) for name, mask in state["alive"].items()}
        if expected != found:
            raise UsageError(
                f"the saved state masks {len(found)} groups, this model has {len(expected)} of other sizes or names; "
                "resume with the model and settings of the run that saved it"
            )
        self.phase, self.phase_steps = state["phase"], state["phase_steps"]
        self.alive = Mask(dict(state["alive"]))
        self._masks = self.units.masks(self.alive)
        self._memory.load(state["memory"])
        self._memory.expect(self._masks, everything=state["forward_all"])
        scores = state["scores"]
        self._scores = Tally(dict(scores["total"]), scores["steps"], scores["skipped"])
        drop, grow = state["last_drop"], state["last_grow"]
        self._last_drop = None if drop is None else (Mask(dict(drop[0])), dict(drop[1]), Mask(dict(drop[2])))
        self._last_grow = None if grow is None else (Mask(dict(grow[0])), dict(grow[1]))
        self._masks_after = {kind: Mask(dict(mask)) for kind, mask in state["masks_after"].items()}
        self.load_record(state)
        self._hold(self._train())
        if self._memory.everything and self._train().norm == "running":
            self._norms.on(self.model, self._masks)

    # -- hooks ------------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            self._look()
            return None

        def looked() -> Any:
            result = closure()
            self._look()
            return result

        return args[:1], {**kwargs, "closure": looked}

    def _look(self) -> None:
        """Reads scores from this step's gradients, before the optimizer uses them."""
        found_inf = getattr(self.optimizer, "found_inf", None)
        self._fused_skip = found_inf is not None and bool(found_inf)
        phase = self._train()
        if self._fused_skip or not phase.collect or not self.criterion.per_step:
            return
        scale = getattr(self.optimizer, "grad_scale", None)
        unscale = 1.0 if scale is None else 1.0 / float(scale)

        def gradient(name: str) -> Tensor | None:
            grad = self._parameters[name].grad
            return None if grad is None else grad.detach() * unscale if unscale != 1.0 else grad.detach()

        with torch.no_grad():
            self._scores.add(self.criterion(self.units, self._parameters.get, gradient))

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._guard.restore()
        if self._fused_skip:
            return
        self.step += 1
        phase = self._train()
        self._note_step(phase)
        self.phase_steps += 1
        if not self.finished and self.phase_steps >= phase.steps:
            self.phase += 1
            self.phase_steps = 0
            self._advance()

    # -- phases -----------------------------------------------------------------------------------------------

    def _train(self) -> Train:
        if self.finished:
            return Train(0)
        phase = self.recipe[self.phase]
        if not isinstance(phase, Train):
            raise HalpieeError(
                f"phase {self.phase} of the recipe is {phase}, between two steps it must be a Train"
            )
        return phase

    def _advance(self) -> None:
        """Carries out the phases that happen between two steps, up to the next training phase."""
        while not self.finished:
            phase = self.recipe[self.phase]
            if isinstance(phase, Train) and phase.steps > 0:
                break
            if isinstance(phase, Start):
                self._start(phase)
            elif isinstance(phase, Drop):
                self._drop(phase)
            elif isinstance(phase, Grow):
                self._grow(phase)
            self.phase += 1
        self._enter(self._train())

    def _enter(self, phase: Train) -> None:
        if phase.collect:
            self._scores = Tally()
        if phase.forward == "all":
            self._memory.show_all()
        else:
            self._memory.show_active()
        self._guard.forget_state(self._memory.inactive)
        self._hold(phase)
        self._norms.off()
        if phase.norm == "running" and phase.forward == "all":
            self._norms.on(self.model, self._masks)

    def _start(self, phase: Start) -> None:
        if phase.by == "random":
            choice = self.pool.start(self._generator("start"))
        else:
            nothing = Mask.full(self.units.sizes, False)
            scores = self._collected() if phase.by == "scores" else self._random("start")
            choice = self.pool.choose(scores, must=nothing, may=~nothing, level=1.0)
        self._apply(choice, "init", 0.0)
        if self._explore_init == "zero":
            self._memory.forget_inactive()

    def _drop(self, phase: Drop) -> None:
        scores = self._collected()
        nothing = Mask.full(self.units.sizes, False)
        before = self.alive
        choice = self.pool.choose(scores, must=nothing, may=before, level=1 - phase.omega)
        self._apply(choice, "prune", phase.omega)
        self._last_drop = (before, scores, self.alive)

    def _grow(self, phase: Grow) -> None:
        kept = self.alive
        scores = self._collected() if phase.by == "score" else self._random(f"grow {self.step}")
        choice = self.pool.choose(scores, must=kept, may=~kept, level=1.0)
        self._last_grow = (kept, scores)
        self._apply(choice, "grow", phase.omega, zero=phase.values == "zero")

    def choose_again(self, pool: Pool) -> Event:
        """Repeats the last prune and grow under another pool: what a corrected latency model asks for.

        The last grow is solved again; when even the kept units are too slow now, the prune before it is, too.
        Scores are those of the cycle; units without one are only used to fill what is left.
        """
        self.pool = pool
        if self._last_grow is None:
            nothing = Mask.full(self.units.sizes, False)
            choice = pool.choose(self._random("start"), must=nothing, may=~nothing, level=1.0)
            return self._settle(choice, "init")
        kept, grow_scores = self._last_grow
        if pool.used(kept) > pool.total and self._last_drop is not None:
            before, drop_scores, _ = self._last_drop
            nothing = Mask.full(self.units.sizes, False)
            kept = pool.choose(drop_scores, must=nothing, may=before, level=1 - self._omega).alive
            known = self._last_grow[0]
            grow_scores = {n: torch.where(known[n] & ~kept[n], 0.0, s) for n, s in grow_scores.items()}
        choice = pool.choose(grow_scores, must=kept, may=~kept, level=1.0)
        return self._settle(choice, "grow")

    def adopt(self, alive: Mask, event: Event) -> Event:
        """Makes the units that were active after an earlier event active again, with their last values."""
        return self._settle(Choice(alive, event.used, event.slack, event.next_step, event.gap), event.event)

    def _settle(self, choice: Choice, event: str) -> Event:
        report = self._apply(choice, event, self._omega)
        self._hold(self._train())
        return report

    @property
    def _omega(self) -> float:
        return next((e.omega / e.budget for e in reversed(self.reports) if e.event == "prune"), 0.0)

    def _last_open(self) -> Drop | Grow | Start | None:
        done = self.recipe[: self.phase]
        return next((p for p in reversed(done) if isinstance(p, Drop | Grow | Start)), None)

    # -- masks ------------------------------------------------------------------------------------------------

    def _apply(self, choice: Choice, event: str, omega: float, *, zero: bool = False) -> Event:
        """Makes ``choice`` the active units, records it, and forgets the optimizer state of what it removed."""
        check_ranks(choice.alive, self.step)
        previous = self._masks_after.get(event)
        overlap = previous.iou(choice.alive) if previous is not None else math.nan
        self._masks_after[event] = choice.alive
        masks = self.units.masks(choice.alive)
        self._guard.forget_state(self._memory.inactive)
        self._memory.switch(masks, zero=zero)
        self._guard.forget_state(self._memory.inactive)
        self.alive, self._masks = choice.alive, masks
        total = self.pool.total
        report = Event(
            step=self.step,
            event=event,
            budget=total,
            used=choice.used,
            omega=omega * total,
            gap=choice.gap,
            slack=choice.slack,
            next_step=choice.next_step,
            iou=overlap,
            skipped=self._scores.skipped,
            counts=choice.alive.counts,
        )
        self.reports.append(report)
        return report

    def _with_slack(self, choice: Choice) -> Choice:
        return Choice(choice.alive, choice.used, self.pool.total - choice.used, choice.next_step, choice.gap)

    def _hold(self, phase: Train) -> None:
        """Tells the guard what may not move in this phase."""
        if phase.update == "alive":
            self._guard.hold(dict(self._masks))
        elif phase.update == "dead":
            self._guard.hold({n: ~self._masks[n] if n in self._masks else None for n in self._tensors})
        else:
            self._guard.hold({})

    # -- scores and randomness --------------------------------------------------------------------------------

    def _collected(self) -> dict[str, Tensor]:
        """Returns the phase's mean scores, or reads them now; units without one score zero."""
        if self.criterion.per_step:
            found = self._scores.mean()
        else:
            with torch.no_grad():
                look: Callable[[str], Tensor | None] = self._parameters.get
                found = {n: s.cpu() for n, s in self.criterion(self.units, look, lambda _: None).items()}
        return {n: found.get(n, torch.zeros(size)) for n, size in self.units.sizes.items()}

    def _generator(self, purpose: str) -> torch.Generator:
        import zlib

        return torch.Generator().manual_seed((self.seed << 32) ^ zlib.crc32(purpose.encode()))

    def _random(self, purpose: str) -> dict[str, Tensor]:
        generator = self._generator(purpose)
        return {n: torch.rand(size, generator=generator) for n, size in self.units.sizes.items()}

    def _note_step(self, phase: Train) -> None:
        """Counts the step under its masks, for the training FLOPs."""
        kind = "explore" if phase.forward == "all" else "train"
        counts = self.alive.counts
        if self.log and self.log[-1][1] == kind and self.log[-1][2] == counts:
            self.log[-1] = (self.log[-1][0] + 1, kind, counts)
        else:
            self.log.append((1, kind, counts))
