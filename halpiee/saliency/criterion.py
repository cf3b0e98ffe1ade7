"""The interface of a criterion, a score per unit from the weights and gradients of one step, and its passes.

A pass over a model yields loss gradients, Hessian-gradient products or nothing: a generator with one item per batch.
It leaves parameters and their ``.grad`` alone; the caller restores batch norm statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from halpiee.errors import UsageError, said
from halpiee.inputs import called
from halpiee.sparsity.granularity import Units
from latency.errors import out_of_memory

Look = Callable[[str], Tensor | None]
"""Tensor name → the parameter's value (or its gradient), ``None`` where there is none."""

Batches = Iterable[tuple[Any, Any]]
"""(inputs, targets); several inputs are a tuple of tensors, or a dictionary by the names of forward's arguments."""

LossFn = Callable[[Any, Any], Tensor]
"""(outputs, targets) → scalar."""

Gradients = dict[str, Tensor | None]
"""Parameter name → its gradient, or its substitute of a criterion."""

Passes = Generator[Gradients | None, None, None]
"""Gradients to score by, once or once a batch; ``None``: a batch that was not finite. Closing it restores the model."""


def elementwise(of: Callable[..., Tensor], *looks: Look) -> Look:
    """Returns tensor name → ``of`` the values that the looks return for it; ``None`` where one returns none."""

    def element(name: str) -> Tensor | None:
        found = [look(name) for look in looks]
        return None if any(x is None for x in found) else of(*(x.detach() for x in found if x is not None))

    return element


class Criterion(Protocol):
    """Scores units; higher is more important."""

    @property
    def per_step(self) -> bool:
        """Whether it is scored on every step and averaged over a phase; otherwise it is read once at its end."""

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → float score of the unit's shape; units that nothing is known of are missing."""


@runtime_checkable
class Probing(Criterion, Protocol):
    """A criterion with its own passes over the model, whose items take the place of ``gradient``."""

    def probe(self, model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
        """Yields the gradients to score by, once or once a batch; ``None``: a batch that was not finite."""


NormMode = Literal["train", "eval", "given"]
"""How batch norms run while scoring: by batch statistics, by running ones, or in the mode the model is in."""

Pass = Callable[[nn.Module, Batches, LossFn], Passes]


@contextmanager
def norm_mode(model: nn.Module, mode: NormMode) -> Iterator[None]:
    """Inside, batch norms run in ``mode``; all other modules (dropout) stay as they are."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    before = [m.training for m in norms]
    try:
        if mode != "given":
            for module in norms:
                module.training = mode == "train"
        yield
    finally:
        for module, training in zip(norms, before, strict=True):
            module.training = training


def pass_of(criterion: Criterion) -> Pass:
    """Returns the pass a criterion needs: its own, loss gradients, or none."""
    if isinstance(criterion, Probing):
        return criterion.probe
    return loss_gradients if criterion.per_step else no_gradients


def no_gradients(model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
    """Yields nothing to score by, once, and reads no batch."""
    yield {}


def loss_gradients(model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
    """Yields ∂L/∂θ of each batch."""
    parameters = _trained(model)
    for inputs, targets in batches:
        loss = loss_of(loss_fn, called(model, inputs), targets)
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        yield dict(zip(parameters, found, strict=True))


def pooled_gradients(model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
    """Yields ∂L/∂θ once: its mean over the batches that are finite."""
    total: dict[str, Tensor | None] = {}
    finite = 0
    for found in loss_gradients(model, batches, loss_fn):
        if found is None or not all(g is None or bool(torch.isfinite(g).all()) for g in found.values()):
            yield None
            continue
        finite += 1
        for name, g in found.items():
            before = total.get(name)
            total[name] = g if before is None else before if g is None else before + g
    if finite:
        yield {name: None if g is None else g / finite for name, g in total.items()}


def hessian_gradients(
    model: nn.Module, batches: Batches, loss_fn: LossFn, *, temperature: float = 1.0, pooled: bool = False
) -> Passes:
    """Yields H·g of ``L(logits / temperature)``, by double backward of ``Σ stop(g)·g``.

    Of several answers all are divided, so that no part of the loss outweighs another by it. ``pooled``: g is the mean
    over all batches (each batch is run twice), not that of the batch.
    """
    parameters = _trained(model)

    def gradients(inputs: Any, targets: Any, *, graph: bool) -> list[Tensor]:
        answers = called(model, inputs)
        one = isinstance(answers, Tensor)
        cooled = answers / temperature if one else tuple(answer / temperature for answer in answers)
        return _gradients(loss_of(loss_fn, cooled, targets), parameters, graph=graph)

    mean: list[Tensor] | None = None
    if pooled:
        finite: list[tuple[Any, Any]] = []
        for inputs, targets in batches:
            found = gradients(inputs, targets, graph=False)
            if all(bool(torch.isfinite(g).all()) for g in found):
                finite.append((inputs, targets))
                mean = found if mean is None else [m + g for m, g in zip(mean, found, strict=True)]
            else:
                yield None
        batches = finite
        mean = [m / len(finite) for m in mean] if mean is not None else None
    for inputs, targets in batches:
        found = gradients(inputs, targets, graph=True)
        fixed = [g.detach() for g in found] if mean is None else mean
        dot = torch.stack([(s * g).sum() for s, g in zip(fixed, found, strict=True)]).sum()
        yield dict(zip(parameters, _gradients(dot, parameters), strict=True))


def loss_of(loss_fn: LossFn, answers: Any, targets: Any) -> Tensor:
    """Returns a loss that depends on parameters; a UsageError refuses others, and what no cross-entropy is of."""
    try:
        loss = loss_fn(answers, targets)
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        if loss_fn is not cross_entropy or out_of_memory(error):
            raise  # a loss of the user's own speaks for itself
        raise UsageError(
            f"cross-entropy was asked of these answers and targets ({said(error, 200)}); give as targets the class of "
            "each example, a whole number of dtype int64 from 0 on, or a loss_fn of your own"
        ) from error
    if not loss.requires_grad:
        raise UsageError(
            "the gradient of the loss was needed to score by, and the loss depends on no parameter: the forward or the "
            "loss function runs under torch.no_grad() or detaches; score without, or by magnitude"
        )
    return loss


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _gradients(of: Tensor, parameters: dict[str, nn.Parameter], *, graph: bool = False) -> list[Tensor]:
    """Returns the gradients of a scalar, zeros where it does not depend on a parameter."""
    places = list(parameters.values())
    found = torch.autograd.grad(of, places, create_graph=graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, places, strict=True)]
