"""Where a method's scores come from: the last phase's steps, the weights as they are, some batches, or chance."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import PromiseError
from halpiee.methods.tally import Tally
from halpiee.saliency.criterion import Criterion
from halpiee.sparsity.granularity import Units

__all__ = ["Collector"]


class Collector:
    """Scores of units, by criteria.

    Args:
        units: what is scored.
        parameters: name → parameter of the model.
        seed: of random scores.

    Attributes:
        tally: scores of the phase's steps.
    """

    def __init__(self, units: Units, parameters: Mapping[str, nn.Parameter], seed: int) -> None:
        self.units, self._parameters, self.seed = units, parameters, seed
        self.tally = Tally()

    @torch.no_grad()
    def look(self, criterion: Criterion, optimizer: Optimizer) -> None:
        """Adds the scores of the step that the optimizer is about to take; gradients are unscaled."""
        scale = getattr(optimizer, "grad_scale", None)
        unscale = 1.0 if scale is None else 1.0 / float(scale)

        def gradient(name: str) -> Tensor | None:
            grad = self._parameters[name].grad
            return None if grad is None else grad.detach() * unscale if unscale != 1.0 else grad.detach()

        self.tally.add(criterion(self.units, self._parameters.get, gradient))

    @torch.no_grad()
    def read(
        self, criterion: Criterion, value: Callable[[str], Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        """Returns the phase's mean scores, or reads them now; units without one score zero.

        Args:
            criterion: per step, or read once.
            value: tensor name → value to read; by default the parameters as they are.

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
        self,
        model: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        criterion: Criterion,
    ) -> dict[str, Tensor]:
        """Returns the mean scores over some batches; units without one score zero, the model is left as it was.

        Batches that were left out, as their scores were not finite, count among the phase's skipped steps.
        """
        from halpiee.saliency.score import pairs_of, scores_of

        found = scores_of(model, pairs_of(batches), criterion, units=self.units)
        self.tally.skipped += found.skipped
        return {n: found.get(n, torch.zeros(size)) for n, size in self.units.sizes.items()}

    def generator(self, purpose: str) -> torch.Generator:
        """Returns a generator that is the same for the same seed and purpose."""
        # The CPU generator reads the low 32 bits of a seed only: everything has to be hashed into them.
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {purpose}".encode()))

    def random(self, purpose: str) -> dict[str, Tensor]:
        """Returns random scores in [0, 1)."""
        generator = self.generator(purpose)
        return {n: torch.rand(size, generator=generator) for n, size in self.units.sizes.items()}

    def state(self) -> dict[str, Any]:
        """Returns plain values and tensors."""
        return self.tally.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over saved sums."""
        self.tally = Tally(dict(state["total"]), state["steps"], state["skipped"])
