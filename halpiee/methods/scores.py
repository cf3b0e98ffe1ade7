"""Where a method's scores come from: the steps of the last phase, the weights as they are, some batches, or chance."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import HalpieeError, PromiseError, UsageError
from halpiee.methods.state import fresh_state
from halpiee.saliency.criterion import Criterion, Look, LossFn
from halpiee.sparsity.granularity import Units
from halpiee.sparsity.mask import Mask

T = TypeVar("T")


class Tally:
    """Sums of per-step scores over a phase. Adding a step does not wait for the device; the counts do when asked.

    Args:
        total: unit name → sum of scores so far.
        steps: steps added so far.
        skipped: steps left out so far, as a score was not finite.
    """

    def __init__(self, total: Mapping[str, Tensor] | None = None, steps: int = 0, skipped: int = 0) -> None:
        self.total = dict(total or {})
        self._steps, self._skipped = steps, skipped
        self._sound: Tensor | None = None
        self._tried = 0

    def add(self, scores: Mapping[str, Tensor]) -> None:
        """Adds one step's scores; a step with any score that is not finite is left out whole, as HALP does."""
        if not scores:
            self._skipped += 1
            return
        sound = torch.stack([torch.isfinite(score).all() for score in scores.values()]).all()
        for name, score in scores.items():
            taken, before = torch.where(sound, score, torch.zeros_like(score)), self.total.get(name)
            self.total[name] = taken if before is None else before.to(score.device) + taken
        self._sound = sound.long() if self._sound is None else self._sound + sound
        self._tried += 1

    def _count(self) -> None:
        """Reads what the device has counted."""
        if self._sound is not None:
            sound = int(self._sound)
            self._steps += sound
            self._skipped += self._tried - sound
            self._sound, self._tried = None, 0

    @property
    def steps(self) -> int:
        """Steps added."""
        self._count()
        return self._steps

    @property
    def skipped(self) -> int:
        """Steps left out because a score was not finite."""
        self._count()
        return self._skipped

    def leave_out(self, steps: int) -> None:
        """Counts steps that were left out elsewhere."""
        self._skipped += steps

    def mean(self) -> dict[str, Tensor]:
        """Returns unit name → mean score, on the CPU."""
        return {name: (total / max(self.steps, 1)).cpu() for name, total in self.total.items()}

    def state(self) -> dict[str, Any]:
        """Returns plain values and tensors."""
        return {"total": dict(self.total), "steps": self.steps, "skipped": self.skipped}


class Collector:
    """Scores of units by criteria; ``tally`` holds those of the phase's steps."""

    def __init__(
        self, units: Units, parameters: Mapping[str, nn.Parameter], seed: int, loss_fn: LossFn
    ) -> None:
        self.units, self._parameters, self.seed, self._loss_fn = units, parameters, seed, loss_fn
        self.tally = Tally()

    @torch.no_grad()
    def look(self, criterion: Criterion, optimizer: Optimizer) -> None:
        """Adds the scores of the step that the optimizer is about to take; gradients are unscaled."""
        scale = getattr(optimizer, "grad_scale", None)
        unscale = None if scale is None else torch.as_tensor(scale).reciprocal()

        def gradient(name: str) -> Tensor | None:
            grad = self._parameters[name].grad
            return None if grad is None else grad.detach() if unscale is None else grad.detach() * unscale

        self.tally.add(criterion(self.units, self._parameters.get, gradient))

    @torch.no_grad()
    def read(
        self, criterion: Criterion, value: Callable[[str], Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        """Returns the phase's mean scores, or reads them now; units without one score zero.

        ``value`` reads a tensor by name; by default the parameters as they are.

        Raises:
            PromiseError: a score that is read now is not finite.
        """
        if criterion.per_step:
            found = self.tally.mean()
        else:
            look = value or self._parameters.get
            found = {n: s.cpu() for n, s in criterion(self.units, look, lambda _: None).items()}
            broken = next((n for n, s in found.items() if not bool(torch.isfinite(s).all())), None)
            if broken is not None:
                raise PromiseError(
                    f"the scores of {broken!r} are not finite: the training has diverged; "
                    "lower the learning rate, or start again from an earlier checkpoint"
                )
        return {n: found.get(n, torch.zeros(size)) for n, size in self.units.sizes.items()}

    def over(
        self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], criterion: Criterion
    ) -> dict[str, Tensor]:
        """Returns the mean scores over some batches; units without one score zero, the model is left as it was.

        Batches that were left out, as their scores were not finite, count among the phase's skipped steps.
        """
        from halpiee.saliency.score import pairs_of, scores_of

        found = scores_of(model, pairs_of(batches), criterion, units=self.units, loss_fn=self._loss_fn)
        self.tally.leave_out(found.skipped)
        return {n: found.get(n, torch.zeros(size)) for n, size in self.units.sizes.items()}

    def generator(self, purpose: str) -> torch.Generator:
        """Returns a generator that is the same for the same seed and purpose."""
        # The CPU generator reads the low 32 bits of a seed only: everything has to be hashed into them.
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {purpose}".encode()))

    def random(self, purpose: str) -> dict[str, Tensor]:
        """Returns random scores in [0, 1)."""
        generator = self.generator(purpose)
        return {n: torch.rand(size, generator=generator) for n, size in self.units.sizes.items()}


class Momentum:
    """``|m|`` of SGD's momentum buffer; ``|m| / (√v + 1e-8)`` of Adam's two moments. Read once.

    Raises:
        UsageError: the optimizer keeps no momentum.
    """

    per_step = False

    def __init__(self, optimizer: Optimizer) -> None:
        keeps = {"momentum_buffer", "exp_avg"} & set(fresh_state(optimizer))
        if not keeps and not optimizer.defaults.get("momentum"):
            raise UsageError(
                f"SNFS grows by momentum, and {type(optimizer).__name__} keeps none; "
                "use SGD with momentum=0.9, or AdamW"
            )
        self._optimizer = optimizer

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score of the unit's shape; zero before the first step."""

        def momentum(name: str) -> Tensor | None:
            parameter = value(name)
            if parameter is None:
                return None
            state = self._optimizer.state.get(parameter, {})
            if "exp_avg" in state:
                return state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)  # type: ignore[no-any-return]
            buffer = state.get("momentum_buffer")
            return torch.zeros_like(parameter) if buffer is None else buffer

        return {name: total.abs() for name, total in units.reduce(momentum).items()}


def check_ranks(alive: Mask, step: int) -> None:
    """Refuses to go on when the ranks of a distributed run have chosen different units.

    Raises:
        PromiseError: the masks differ.
    """
    if not _several_ranks():
        return
    digests: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(digests, alive.digest())
    if len(set(digests)) > 1:
        raise PromiseError(
            f"at step {step} the ranks chose different units ({len(set(digests))} different masks of "
            f"{len(digests)}); give every rank the same seed and reduced gradients (DistributedDataParallel)"
        )


def solved_once(work: Callable[[], T]) -> T:
    """Returns what the first rank of a distributed run gets from ``work``: one solves, and all take its answer.

    Raises:
        HalpieeError: the first rank's, on every rank.
    """
    if not _several_ranks():
        return work()
    answer: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            answer[0] = work()
        except HalpieeError as error:
            answer[1] = error
    torch.distributed.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    found: T = answer[0]
    return found


def _several_ranks() -> bool:
    dist = torch.distributed
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def share(
    kept: Mapping[str, int], before: Mapping[str, int], scores: Mapping[str, Tensor], active: Mask
) -> dict[str, int]:
    """Returns units per layer: those kept after a drop, and what all layers lost, shared by the layers' mean scores.

    ``before`` counts the units before the drop; the mean is over the ``active`` ones of that moment. Shares are rounded
    to the largest remainders, so that the total is exact; what does not fit into a layer goes to the others in the same
    proportion (SNFS, arXiv 1907.04840, Sec. 3).
    """
    room = {n: active[n].numel() - k for n, k in kept.items()}
    weight = {n: float(scores[n][active[n]].double().mean()) for n in kept}
    if not sum(weight.values()) > 0:
        weight = dict.fromkeys(kept, 1.0)
    grown = dict.fromkeys(kept, 0)
    left = sum(before.values()) - sum(kept.values())
    while left > 0:
        spare = [n for n in kept if grown[n] < room[n]]
        open_ = [n for n in spare if weight[n] > 0] or spare
        total = sum(weight[n] for n in open_)
        wanted = {n: left * (weight[n] / total if total > 0 else 1 / len(open_)) for n in open_}
        order = sorted(open_, key=lambda n: math.floor(wanted[n]) - wanted[n])
        rest = left - sum(math.floor(w) for w in wanted.values())
        for i, n in enumerate(order):
            more = min(math.floor(wanted[n]) + (i < rest), room[n] - grown[n])
            grown[n] += more
            left -= more
    return {n: k + grown[n] for n, k in kept.items()}
