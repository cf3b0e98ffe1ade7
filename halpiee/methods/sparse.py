"""Runs a recipe from an optimizer's step hooks, so that the user's training loop does not change.

Parameters stay plain tensors: what the forward mask leaves out is written as zero (its last value is remembered),
what the update mask leaves out is put back after every step. ``deepcopy``, ``state_dict``, EMA, ``torch.compile``
and DDP therefore see an ordinary model. Steps that a GradScaler skips are not counted; scores use unscaled
gradients; under DDP gradients are the reduced ones, so that all ranks choose alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import HalpieeError, PromiseError, UsageError
from halpiee.methods.active import Active
from halpiee.methods.allocator import LatencyPool, Pool
from halpiee.methods.attach import bare, check_holds, check_optimizer, few
from halpiee.methods.phases import Design, Drop, Event, Grow, Train
from halpiee.methods.scores import Tally
from halpiee.methods.state import RunningNorms
from halpiee.saliency.criterion import Batches
from halpiee.sparsity.mask import Mask
from halpiee.structure.plan import Selection

WATCH = 50
"""Steps between two looks at whether all weights are finite; every change of the units looks, too."""


class Sparse(Active):
    """A recipe attached to a model and its optimizer.

    Args:
        model: trained in place; its parameters keep their identity.
        optimizer: any whose state has the parameter's shape or is a scalar.
        design: units, pool, recipe and criterion.
        batches: (inputs, targets) for phases that score over batches.
        seed: of every random choice.

    Raises:
        UsageError: an optimizer that does not take the steps of all masked parameters, or units that get no gradient
            to be scored by; model and optimizer are left as they were.
        PromiseError: weights that are not finite, here or at a later step.

    Warns:
        ScoreWarning: units were chosen by scores that do not tell them apart.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, design: Design, batches: Batches | None, seed: int
    ) -> None:
        check_optimizer(optimizer)
        check_holds(optimizer, design.units, dict(bare(model).named_parameters()))
        for hook in optimizer._optimizer_step_pre_hooks.values():
            other = getattr(hook, "__self__", None)
            if isinstance(other, Sparse) and other.units.tensors & design.units.tensors:
                raise UsageError(
                    f"{type(other).__name__} masks the same weights already through this {type(optimizer).__name__}, "
                    "and two methods undo each other's masks; go on with that one, or call its detach() first"
                )
        super().__init__(model, optimizer, design, batches, seed)
        self._check_gradients()
        self._fused_skip, self.watch = False, WATCH
        self._norms = RunningNorms()
        self._handles = [optimizer.register_step_pre_hook(self._before_step)]
        self._handles.append(optimizer.register_step_post_hook(self._after_step))
        try:
            self._advance()
        except BaseException:  # attached whole or not at all
            self.memory.show_all()
            self.detach()
            raise

    # -- what users see ---------------------------------------------------------------------------------------

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the model holds its active units only, also while it explores; for evaluation and export."""
        with self.memory.only_active():
            yield

    def finish(self) -> None:
        """Ends the updates now, on a grow: a cycle that has pruned and not yet grown is closed first."""
        self._check_finite()
        if self.finished:
            return
        done = reversed(self.recipe[: self.phase])
        opened = isinstance(next((p for p in done if not isinstance(p, Train)), None), Drop)
        exploring = self.memory.everything and (self.scores.tally.steps > 0 or not self.criterion.per_step)
        self.phase = len(self.recipe)
        self.phase_steps = 0
        if opened and exploring:
            self.grow(Grow(self.omega))
        elif opened:
            self.take_back()  # no score of the inactive units in this cycle
        self._enter(Train(0))
        self._warn()

    def detach(self) -> None:
        """Takes the hooks off the optimizer; the model keeps its active units."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._norms.off()

    def load_record(self, state: Mapping[str, Any]) -> None:
        """Takes over what was recorded and which units are active: for a run that goes on with the compact network.

        The model is not touched: the network that trains on is another one.
        """
        self.step, self.phase, self.phase_steps = state["step"], len(self.recipe), 0
        self.alive = Mask({name: mask.cpu() for name, mask in state["alive"].items()})
        self.ledger.load(state, masks=False)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where ``state_dict`` was taken; load the model's and the optimizer's state first.

        Raises:
            UsageError: a state of other units.
        """
        self._restore(state)
        self.go_on(Mask(dict(state["alive"])), everything=state["forward_all"])

    def foreign(self) -> list[str]:
        """Returns the parameters whose frozen values have changed: weights of another moment have been loaded."""
        return [name for name in self._guard.moved() if name in self._parameters]

    def load_mask(self, state: Mapping[str, Any]) -> None:
        """Makes the units that were active in a saved state final, for weights of that moment.

        Load the model's values first; updates end. The model then holds what it did inside ``evaluating()`` when
        ``state_dict`` gave the state.

        Raises:
            UsageError: a state of other units, or weights with values in units that it does not name.
        """
        self._check_units(state)
        alive = Mask(dict(state["alive"]))
        masks = self.units.masks(alive)
        outside = [
            n for n, p in self._parameters.items() if n in masks and bool(p[~masks[n].to(p.device)].any())
        ]
        if outside and not state["forward_all"]:
            raise UsageError(
                f"the mask of step {state['step']} was to be taken for the weights, and {outside[0]!r} (and "
                f"{len(outside) - 1} more parameters) hold values of units that it leaves out; load the weights that "
                "were saved with this state: an average over steps with other masks has no mask of its own"
            )
        self.phase, self.phase_steps = len(self.recipe), 0
        self.alive, self._masks = alive, masks
        self.memory.expect(masks, everything=True)
        self._enter(Train(0))
        used = self.pool.used(alive)
        last = replace(self.reports[-1], event="load", used=used, slack=self.pool.total - used)
        self.reports.append(replace(last, gap=math.nan, next_step=math.nan, counts=alive.counts))

    def go_on(self, alive: Mask, *, everything: bool) -> None:
        """Continues with the given active units after the model's values were loaded; freezes everything else."""
        self.alive = alive
        self._masks = self.units.masks(alive)
        self.memory.expect(self._masks, everything=everything)
        self._freeze(self._train())
        if everything and self._train().norm == "running":
            self._norms.on(self.model, self._masks)

    # -- hooks ------------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            self._read_scores()
            return None

        def reading() -> Any:
            result = closure()
            self._read_scores()
            return result

        return args[:1], {**kwargs, "closure": reading}

    def _read_scores(self) -> None:
        """Reads scores from this step's gradients, before the optimizer uses them."""
        found_inf = getattr(self.optimizer, "found_inf", None)
        self._fused_skip = found_inf is not None and bool(found_inf)
        phase = self._train()
        criterion = phase.criterion or self.criterion
        if not self._fused_skip and phase.collect and criterion.per_step:
            self.scores.look(criterion, self.optimizer)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._guard.restore()
        if self._fused_skip:
            return
        self.step += 1
        phase = self._train()
        self.ledger.step(phase.kind, self.alive.counts)
        self.phase_steps += 1
        if self.step % self.watch == 0:
            self._check_finite()
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
        self._check_finite()
        while not self.finished:
            phase = self.recipe[self.phase]
            if isinstance(phase, Train) and phase.steps > 0:
                break
            self.change(phase)
            self.phase += 1
        self._enter(self._train())
        over = 1 + 1e-9  # only a solver whose prices are not the true ones ends above Ψ
        timed = self.finished and isinstance(self.pool, LatencyPool)
        if timed and self.reports[-1].used > over * self.pool.total:
            self.choose_again(self.pool)
        self._warn()

    def _enter(self, phase: Train) -> None:
        if phase.collect:
            self.scores.tally = Tally()
        if phase.forward == "all":
            self.memory.show_all()
        else:
            self.memory.show_active()
        self._forget()
        self._freeze(phase)
        self._norms.off()
        if phase.norm == "running" and phase.forward == "all":
            self._norms.on(self.model, self._masks)

    def _check_finite(self) -> None:
        """Stops a training whose weights or statistics are not finite, before it chooses units by them."""
        values = {name: t.detach() for name, t in self._tensors.items() if t.is_floating_point()}
        if not all_finite(values.values()):
            name = next(name for name, value in values.items() if not all_finite([value]))
            raise PromiseError(
                f"at step {self.step} values and scores of {name!r} are not finite: the training has diverged; "
                "lower the learning rate, or start again from an earlier checkpoint"
            )

    def _check_gradients(self) -> None:
        """Refuses units that a criterion cannot score from training steps, as all that it reads is frozen."""
        phases = (p for p in self.recipe if isinstance(p, Train) and p.collect and p.steps > 0)
        criteria = {type(c).__name__ for p in phases if (c := p.criterion or self.criterion).per_step}
        if not criteria:
            return

        def trained(name: str) -> Tensor | None:
            p = self._parameters[name]
            return p.detach() if p.requires_grad else None

        frozen = [name for name in self.units.sizes if name not in self.units.reduce(trained)]
        if frozen:
            raise UsageError(
                f"{' and '.join(sorted(criteria))} reads gradients of training steps, and {frozen[0]!r} (and "
                f"{len(frozen) - 1} more of {len(self.units.sizes)}) gets none: its parameters are frozen "
                f"(requires_grad=False); unfreeze them, or leave them whole: protect={few(frozen)}"
            )

    def choose_again(self, pool: Pool) -> Event:
        """Repeats the last prune and grow under another pool, after the latency model was corrected.

        The last grow is solved again; when even the kept units are too slow now, the prune before it is, too.
        Scores are those of the cycle; units without one are only used to fill what is left. A latency is solved
        jointly, whatever solved it in training: what training ends with must meet it.
        """
        self.pool = pool = pool.with_cost(pool.cost, jointly=True) if isinstance(pool, LatencyPool) else pool
        if self.last_grow is None:
            nothing = Mask.full(self.units.sizes, False)
            scores = self.last_drop[1] if self.last_drop is not None else self.scores.random("start")
            choice = pool.choose(scores, must=nothing, may=~nothing, level=1.0)
            return self._adopt(choice, "init" if self.last_drop is None else "prune")
        kept, grow_scores = self.last_grow
        if pool.used(kept) > pool.total and self.last_drop is not None:
            before, drop_scores, _ = self.last_drop
            nothing = Mask.full(self.units.sizes, False)
            kept = Mask.of(pool.choose(drop_scores, must=nothing, may=before, level=1 - self.omega).keep)
            known = self.last_grow[0]
            grow_scores = {n: torch.where(known[n] & ~kept[n], 0.0, s) for n, s in grow_scores.items()}
        choice = pool.choose(grow_scores, must=kept, may=~kept, level=1.0)
        return self._adopt(choice, "grow")

    def adopt(self, alive: Mask, event: Event) -> Event:
        """Makes the units that were active after an earlier event active again, with their last values."""
        used = (event.used,)
        choice = Selection(alive, used, (event.used + event.slack,), gap=event.gap, next_step=event.next_step)
        return self._adopt(choice, event.event)

    def _adopt(self, choice: Selection, event: str) -> Event:
        report = self.apply(choice, event, self.omega)
        self._freeze(self._train())
        return report

    def _freeze(self, phase: Train) -> None:
        """Freezes what may not move in this phase."""
        free: Mapping[str, Tensor | None] = self._masks
        if phase.update == "dead":
            free = {n: ~self._masks[n] if n in self._masks else None for n in self._tensors}
        elif phase.update == "all" and phase.forward == "all":
            free = {}
        self._guard.hold(free, values_only=phase.update == "all")


def all_finite(values: Iterable[Tensor]) -> bool:
    """Returns whether all numbers of some tensors are finite: one wait for each device, however many there are."""
    found: dict[torch.device, list[Tensor]] = {}
    for value in values:
        found.setdefault(value.device, []).append(torch.isfinite(value).all())
    return all(bool(torch.stack(flags).all()) for flags in found.values())
