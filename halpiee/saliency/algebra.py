"""Criteria made of criteria: the inverse, the absolute value, the product, one in a mode of the batch norms."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from halpiee.errors import UsageError
from halpiee.saliency.criterion import Batches, Criterion, Look, LossFn, Passes, Probing
from halpiee.saliency.probe import NormMode, norm_mode, pass_of
from halpiee.sparsity.granularity import Units

__all__ = ["Absolute", "InMode", "Inverted", "Product"]


@dataclass(frozen=True)
class _Changed:
    """Scores of one criterion, each changed by itself: the passes are the criterion's own.

    Attributes:
        of: the criterion.
    """

    of: Criterion

    @property
    def per_step(self) -> bool:
        """As the criterion's own."""
        return self.of.per_step

    def probe(self, model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
        """Makes the criterion's own passes."""
        return pass_of(self.of)(model, batches, loss_fn)


class Inverted(_Changed):
    """``−c``: keeps what the criterion would remove first (the ablation of Frankle et al. 2021)."""

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score of the unit's shape."""
        return {name: -score for name, score in self.of(units, value, gradient).items()}


class Absolute(_Changed):
    """``|c|``: of GraSP, "magnitude GraSP"."""

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score of the unit's shape."""
        return {name: score.abs() for name, score in self.of(units, value, gradient).items()}


@dataclass(frozen=True)
class InMode(_Changed):
    """``c`` over batches, with batch norms in a mode whatever the model's: by running or by batch statistics.

    Attributes:
        of: the criterion.
        norms: the mode.
    """

    norms: NormMode = "eval"

    def probe(self, model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
        """Makes the criterion's own passes in that mode."""
        with norm_mode(model, self.norms):
            yield from pass_of(self.of)(model, batches, loss_fn)

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score of the unit's shape."""
        return self.of(units, value, gradient)


@dataclass(frozen=True)
class Product:
    """``c₁·c₂``, unit by unit; both are scored by the same pass.

    Attributes:
        one: a criterion.
        other: another; at most one of the two may make passes of its own, unless they are the same.
    """

    one: Criterion
    other: Criterion

    def __post_init__(self) -> None:
        needy = [c for c in (self.one, self.other) if c.per_step or isinstance(c, Probing)]
        if len(needy) == 2 and any(isinstance(c, Probing) for c in needy) and self.one != self.other:
            raise UsageError(
                f"the product of {self.one} and {self.other} was asked, which need different passes over the model; "
                "multiply their scores instead"
            )

    @property
    def per_step(self) -> bool:
        """Whether either needs the gradients of steps."""
        return self.one.per_step or self.other.per_step

    def probe(self, model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
        """Makes the passes of the one that needs some."""
        needy = self.one if self.one.per_step or isinstance(self.one, Probing) else self.other
        return pass_of(needy)(model, batches, loss_fn)

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score of the unit's shape, where both have one."""
        one, other = self.one(units, value, gradient), self.other(units, value, gradient)
        return {name: score * other[name] for name, score in one.items() if name in other}
