"""Scores of a model's units over some batches, outside any training; warnings of groups whose scores are all equal.

A group whose units all have the same score, or none, can only be ranked by index.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from halpiee.errors import ScoreWarning, UsageError
from halpiee.saliency.criterion import Batches, Criterion, LossFn, pass_of
from halpiee.saliency.registry import criterion_of
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.granularity import Channels, Units, Weights
from halpiee.structure.groups import Structure
from latency.errors import outside


class Scores(dict[str, Tensor]):
    """Unit name → score on the CPU.

    ``batches`` says how many were averaged, 1 where the criterion reads no data, ``skipped`` how many were left out
    because a score was not finite, and ``flat`` why the scores of a unit name do not rank its units.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches, self.skipped = 0, 0
        self.flat: dict[str, str] = {}


def score(
    model: nn.Module,
    batches: Batches | tuple[Tensor, Tensor],
    criterion: Criterion | str,
    *,
    units: Structure | Units | Literal["weights", "filters"],
    loss_fn: LossFn = cross_entropy,
    seed: int = 0,
) -> Scores:
    """Returns the importance of every unit.

    Gradients are taken per batch; coupled layers are summed before the absolute value, batches are averaged after
    it. A batch with a score that is not finite is left out whole and counted in ``.skipped``. The model is not changed:
    not its parameters, gradients, buffers, modes or frozen parameters. These (``requires_grad=False``) are scored like
    others, by their gradient. Groups whose scores do not rank their units are listed in ``.flat``, with a warning.

    Args:
        model: the network, in the mode its batch norms are to run in; snip, grasp and synflow set their own.
        batches: (inputs, targets), or one such pair; not read by criteria that need no data.
        criterion: a criterion, or a name of ``CRITERIA``.
        units: a structure → ``{group: [size]}``; ``"weights"`` → ``{parameter name: weight's shape}``; ``"filters"``
            → ``{convolution: [C_out]}``; or units made by hand.
        loss_fn: (outputs, targets) → scalar.
        seed: of random scores.

    Raises:
        UsageError: an unknown criterion, or no finite score.
        StructureError: a weight that is computed from other tensors.

    Warns:
        ScoreWarning: scores that do not rank the units of a group.
    """
    criterion = criterion_of(criterion, seed)
    result = scores_of(model, batches, criterion, units=units, loss_fn=loss_fn)
    warn_of_ties(result.flat, criterion)
    return result


def scores_of(
    model: nn.Module,
    batches: Batches | tuple[Tensor, Tensor],
    criterion: Criterion,
    *,
    units: Structure | Units | Literal["weights", "filters"],
    loss_fn: LossFn = cross_entropy,
) -> Scores:
    """Returns the scores without a warning; see ``score``."""
    chosen = units_of(model, units)
    parameters = dict(model.named_parameters())
    result = Scores()
    # The passes are generators: closing one restores the model.
    with (
        torch.enable_grad(),
        buffers_kept(model),
        _unfrozen(model),
        closing(pass_of(criterion)(model, pairs_of(batches), loss_fn)) as passes,
    ):
        for found in passes:
            scores = None
            if found is not None:
                with torch.no_grad():
                    scores = criterion(chosen, parameters.get, found.get)
            if scores is None or not all(bool(torch.isfinite(s).all()) for s in scores.values()):
                result.skipped += 1
                continue
            result.batches += 1
            for name, s in scores.items():
                result[name] = result[name] + s if name in result else s.detach()
    if not result.batches:
        raise UsageError(
            f"no batch gave finite scores ({result.skipped} were left out); give at least one batch of finite inputs "
            "and targets, and finite weights"
        )
    for name in result:
        result[name] = (result[name] / result.batches).cpu()
        why = flat(result[name])
        if why is not None:
            result.flat[name] = why
    for name, size in chosen.sizes.items():
        if name not in result:
            result[name] = torch.zeros(size)
            result.flat[name] = NO_GRADIENT
    return result


def pairs_of(batches: object) -> Batches:
    """Returns batches, given many, or one pair of tensors; a UsageError refuses others."""
    if isinstance(batches, tuple) and len(batches) == 2 and all(isinstance(t, Tensor) for t in batches):
        return [batches]
    advice = "give [(inputs, targets), …], or a data loader"
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | str):
        raise UsageError(f"batches of type {type(batches).__name__} were given to score on; {advice}")
    for one in batches if isinstance(batches, list | tuple) else ():
        if not isinstance(one, list | tuple) or len(one) != 2 or one[1] is None:
            raise UsageError(
                f"a batch of {type(one).__name__} without targets was given to score on; {advice}"
            )
    return batches


def units_of(model: nn.Module, units: Structure | Units | Literal["weights", "filters"]) -> Units:
    """Returns the units of a structure, or of a word: ``weights``, ``filters``."""
    if isinstance(units, Structure):
        return Channels(model, units, trainable_only=False)
    if isinstance(units, Units):
        return units
    if units in ("weights", "filters"):
        return Weights(model) if units == "weights" else Filters(model)
    found = repr(units) if isinstance(units, str) else type(units).__name__
    raise UsageError(f"units={found} was asked; give 'weights', 'filters', a structure, or units")


@contextmanager
def _unfrozen(model: nn.Module) -> Iterator[None]:
    """Inside, every parameter takes part in the gradient, the frozen ones too."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Inside, running statistics may change; afterwards they are as before."""
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in model.named_buffers():
                tensor.copy_(buffers[name])


NO_GRADIENT = "no gradient reaches them"

ALL_ZERO = "all their scores are 0"

ADVICE = {NO_GRADIENT: "take them out of torch.no_grad() or detach(), choose another criterion"}
"""Reason → advice beside another criterion."""

SAME = 1e-6
"""Scores that differ by less than this share of the largest are the same: the precision of 32 bits."""


def flat(score: Tensor) -> str | None:
    """Returns why all units have the same score; ``None`` where they differ, or where there are fewer than two."""
    if score.numel() < 2:
        return None
    low, high = torch.aminmax(score.detach().float())
    largest = float(torch.maximum(low.abs(), high.abs()))
    if float(high - low) > SAME * largest:
        return None
    return ALL_ZERO if largest == 0 else f"all their scores are {float(high):.4g}"


def undecided(
    scores: Mapping[str, Tensor], may: Mapping[str, Tensor], chosen: Mapping[str, Tensor]
) -> dict[str, str]:
    """Returns the groups of which a choice took some of the possible units and left others of the same score.

    Returns group → why its scores do not rank its units.
    """
    found = {}
    for name, score in scores.items():
        possible, taken = may[name].cpu(), chosen[name].cpu()
        if bool((possible & taken).any()) and bool((possible & ~taken).any()):
            why = flat(score.cpu()[possible])
            if why is not None:
                found[name] = why
    return found


def warn_of_ties(found: Mapping[str, str], criterion: object) -> None:
    """Warns once of groups (with the reason) whose units all have the same score."""
    if not found:
        return
    kinds: dict[str, list[str]] = {}
    for name, why in found.items():
        kinds.setdefault(why if why in (NO_GRADIENT, ALL_ZERO) else "same", []).append(name)
    for kind, names in kinds.items():
        whys = {found[name] for name in names}
        why = whys.pop() if len(whys) == 1 else "all scores within each of them are the same"
        shown = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        warnings.warn(
            f"{_shown(criterion)} does not tell the units of {shown} apart: {why}, so they are ranked by index; "
            f"{ADVICE.get(kind, 'choose another criterion')}, or leave them whole with protect=…",
            ScoreWarning,
            stacklevel=outside(),
        )


def _shown(criterion: object) -> str:
    inner = getattr(criterion, "of", None)
    name = type(criterion).__name__
    return name if inner is None else f"{name} {_shown(inner)}"
