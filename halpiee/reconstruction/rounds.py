"""A trained network cut to a latency without training: cut a little, solve its layers again, score again, cut more.

The budget of round k of n is ``D · (Ψ/D)^(k/n)``, with the dense latency D. A later round scores the repaired network,
and can keep only units that are active in it. A closed loop measures and corrects the last selection; its layers are
solved when the loop has ended. Without labels, scores take the dense network's own classes for the labels.

**Measured values.** A sum of scores assumes that units are independent. ``measured_values`` cuts each group alone to a
few widths, its best units kept and all other groups whole; batch norms take the statistics of their new inputs; and
``loss(k) = mean over images of KL(dense ‖ cut)`` is the cost of the width. Between the widths, the value ``−loss`` is
interpolated along its least concave majorant, so that noise of few images makes no width better than its neighbours.
No labels are read. O(groups · widths) forward passes over the images. The solver maximises the sum over groups,
exactly, whatever the curves are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from halpiee.errors import UsageError
from halpiee.inputs import called, count, ordered, split
from halpiee.reconstruction.repair import RepairedLayer, Settings, repair
from halpiee.saliency.criterion import Criterion, LossFn
from halpiee.saliency.score import score
from halpiee.selection.choose import choose, scaled, uniform
from halpiee.selection.cost import LatencyCost
from halpiee.selection.grid import FloatArray
from halpiee.selection.options import blocks
from halpiee.structure.groups import Structure
from halpiee.structure.plan import Selection
from halpiee.structure.shrink import shrink
from halpiee.structure.trace import trace

ROUNDS = 4
"""Rounds by default: docs/decisions/0075-rounds-of-repair.md."""

Batch = Tensor | tuple[Tensor, ...]
"""Images ``[N, …]``, or several inputs in the order of forward's arguments, ``[N, …]`` each."""

BATCH = 128
"""Images that are scored, or pass through a network, together."""


@dataclass(frozen=True)
class InRounds:
    """How a network is cut."""

    rounds: int = ROUNDS  # n
    criterion: Criterion | str = "taylor"  # of the scores, or its name
    protect: Collection[str] = ()  # groups that stay whole
    # those that keep the most score, or those of the widest uniform network that fits, or of ``scaled``, which has
    # fewer blocks too: the structure is traced with ``vanish=True`` for it
    widths: Literal["scores", "uniform", "scaled"] = "scores"
    seed: int = 0  # of random scores and of the positions that repair samples
    # the value of a width: the sum of its units' scores, or ``measured`` on the images, anew in every round
    value: Literal["scores", "measured"] = "scores"
    loss: LossFn = cross_entropy  # (outputs, targets) → scalar, whose gradients scores are taken of


class Rounds:
    """A selection in rounds, for a closed loop, which measures it, solves it again under another cost, or goes back.

    Args:
        model: the dense network with trained weights, in evaluation mode; it is not changed.
        cost: calibrated, of the model's structure.
        budget_us: Ψ on the scale of ``cost.dense_us``.
        images: of the training data, without augmentation, where the model lies: layers are solved from these; no
            labels.
        scored: others, to score on: layers are fitted to ``images``.
        labels: of these, a tensor or a list, one of each; by default the classes that the dense network predicts.
        how: number of rounds, criterion and widths.
        note: called with a line on each round.

    Raises:
        BudgetError: no network is that fast.
    """

    def __init__(
        self,
        model: nn.Module,
        cost: LatencyCost,
        budget_us: float,
        *,
        images: Batch,
        scored: Batch,
        labels: Sequence[Any] | Tensor | None = None,
        how: InRounds | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        structure = cost.structure
        self._model, self._structure, self._budget_us = model, structure, budget_us
        self._images, self._how = images, how or InRounds()
        self._keep: Mapping[str, Tensor] = {
            g.name: torch.ones(g.size, dtype=torch.bool) for g in structure.prunable
        }
        self._values: dict[str, FloatArray] = {}
        self._answers = self._labelled(scored) if labels is None else paired(scored, labels)
        self._scores: dict[str, Tensor] = self._scored(model, structure)
        self._choose(cost, budget_us)  # refuses a budget that nothing meets before the long work
        rounds = self._how.rounds
        for k in range(1, rounds):
            chosen = self._choose(cost, cost.dense_us * (budget_us / cost.dense_us) ** (k / rounds))
            compact = self._repaired(chosen.keep)
            self._keep = chosen.keep
            self._scores = self._scored(compact, trace(compact, ordered(compact, split(images, 1)[0])))
            note(f"round {k} of {rounds}: {chosen.latency_us:.0f} µs")
        self._selections = [self._choose(cost, budget_us)]

    @property
    def selection(self) -> Selection:
        """The present selection."""
        return self._selections[-1]

    @property
    def counts(self) -> dict[str, int]:
        """Units per group."""
        return self.selection.counts

    @property
    def keep(self) -> Mapping[str, Tensor]:
        """Which units stay."""
        return self.selection.keep

    @property
    def next_step_us(self) -> float:
        """Smallest extra cost of any next allowed size; NaN when everything is active."""
        return self.selection.next_step_us

    def solve_again(self, cost: LatencyCost) -> None:
        """Replaces the selection under a corrected cost."""
        self._selections.append(self._choose(cost, self._budget_us))

    def go_back(self, turn: int) -> None:
        """Restores the selection after so many calls of ``solve_again``."""
        self._selections.append(self._selections[turn])

    def repaired(self, report: Callable[[RepairedLayer], None] = lambda layer: None) -> nn.Module:
        """Returns the compact network of the selection, its layers solved again; ``report`` is called with each."""
        return self._repaired(self.keep, report)

    def _repaired(
        self, keep: Mapping[str, Tensor], report: Callable[[RepairedLayer], None] = lambda layer: None
    ) -> nn.Module:
        return repair(
            self._model,
            self._structure,
            keep,
            [(self._images, None)],
            settings=Settings(images=count(self._images), seed=self._how.seed),
            report=report,
        )

    def _labelled(self, images: Batch) -> Sequence[tuple[Batch, Any]]:
        with torch.no_grad():
            return paired(images, torch.cat([called(self._model, x).argmax(1) for x in split(images, BATCH)]))

    def _scored(self, model: nn.Module, structure: Structure) -> dict[str, Tensor]:
        """Returns scores in the dense network's numbering, 0 for inactive units.

        A group that the compact network's trace shows with another size keeps its scores.
        """
        how = self._how
        found = score(model, self._answers, how.criterion, units=structure, seed=how.seed, loss_fn=how.loss)
        curves: dict[str, FloatArray] = {}
        if self._how.value == "measured":
            curves = measured_values(model, structure, found, self._images, protect=self._how.protect)
        scores = {}
        for g in self._structure.prunable:
            alive = self._keep[g.name]
            mine = found.get(g.name)
            if mine is None or len(mine) != int(alive.sum()):
                scores[g.name] = self._scores[g.name]
                continue
            scores[g.name] = torch.zeros(g.size, dtype=mine.dtype)
            scores[g.name][alive] = mine
            if g.name in curves:  # the compact network's group are the active units
                self._values[g.name] = np.pad(curves[g.name], (0, g.size - len(mine)), mode="edge")
        return scores

    def _choose(self, cost: LatencyCost, capacity_us: float) -> Selection:
        shape = {"uniform": uniform, "scaled": scaled}.get(self._how.widths)
        if shape is not scaled:  # a block that goes by its scores is missed more than one of many channels
            cost = cost.restricted(vanish=False)
        if shape is not None:
            counts = shape(cost, capacity_us, protect=self._how.protect)
            return best_of(self._scores, counts, cost, capacity_us)
        return choose(
            self._scores,
            cost,
            capacity_us,
            may=self._keep,
            protect=self._how.protect,
            values=self._values or None,
        )


def best_of(
    scores: Mapping[str, Tensor], counts: Mapping[str, int], cost: LatencyCost, budget_us: float
) -> Selection:
    """Returns the best-scoring units of given widths.

    The value of other widths has no bound: the gap is not a number.
    """
    keep = {name: torch.zeros(len(values), dtype=torch.bool) for name, values in scores.items()}
    for name, values in scores.items():
        keep[name][values.argsort(descending=True, stable=True)[: counts[name]]] = True
    return Selection(
        keep,
        (cost.total(counts),),
        (budget_us,),
        value=sum(float(values[keep[name].to(values.device)].sum()) for name, values in scores.items()),
        next_step=cost.next_step(counts, {n: allowed for n, allowed in cost.candidates.items() if counts[n]}),
        path="uniform",
    )


def paired(images: Batch, labels: Sequence[Any] | Tensor) -> list[tuple[Batch, Any]]:
    """Returns batches of images and labels."""
    return [(x, labels[i * BATCH : (i + 1) * BATCH]) for i, x in enumerate(split(images, BATCH))]


SHARES = (0.1, 0.25, 0.5, 0.75)
"""Widths that are measured, as shares of a group's units."""


def measured_values(
    model: nn.Module,
    structure: Structure,
    scores: Mapping[str, Tensor],
    images: Batch,
    *,
    shares: Sequence[float] = SHARES,
    protect: Collection[str] = (),
) -> dict[str, FloatArray]:
    """Returns group → float ``[size + 1]``: value of keeping its best 0, 1, … units, minus the KL divergence in nats.

    The values of a group end in 0, the whole group's, and fall towards narrow widths. That of width 0 is a share of the
    loss of removing its block; where a group may not vanish it is extrapolated.

    Args:
        model: with trained weights; it is not changed.
        structure: of the model.
        scores: Tensor ``[size]`` per group, which order its units; groups without scores are left out.
        images: ``[N, …]``, where the model lies.
        shares: of its units, the widths to measure; at least one unit each.
        protect: groups to leave out.

    Raises:
        UsageError: the model's answer is no tensor ``[N, classes, …]``, or a share is none.
    """
    if not shares or not all(0 < share < 1 for share in shares):
        raise UsageError(
            f"widths at {list(shares)} of each group were to be measured; give shares between 0 and 1"
        )
    dense = copy.deepcopy(model).eval()
    answers = _answers(dense, images)
    groups = [g for g in structure.prunable if g.name in scores and g.name not in protect]
    found = {}
    for group in groups:
        order = scores[group.name].detach().cpu().double().argsort(descending=True, stable=True)
        points = {group.size: 0.0}
        for k in sorted({max(1, round(share * group.size)) for share in shares} - {group.size}):
            keep = torch.zeros(group.size, dtype=torch.bool)
            keep[order[:k]] = True
            points[k] = -_loss(dense, structure, {group.name: keep}, images, answers)
        found[group.name] = concave(points, group.size)
    for names in blocks(structure):
        if all(name in found for name in names):
            gone = {name: torch.zeros(len(found[name]) - 1, dtype=torch.bool) for name in names}
            removal = _loss(dense, structure, gone, images, answers)
            for name in names:
                found[name][0] = -removal / len(names)
    return found


def concave(points: Mapping[int, float], size: int) -> FloatArray:
    """Returns the least concave majorant of points (width → value) at 0 … size, its first piece extended to 0.

    No point counts for more than the whole group, although noise may measure it so.
    """
    hull: list[tuple[int, float]] = []
    for k, value in sorted((k, min(value, points[size])) for k, value in points.items()):
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (k - hull[-1][0]) <= (value - hull[-1][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((k, value))
    widths, values = (np.array(side, dtype=np.float64) for side in zip(*hull, strict=True))
    curve = np.interp(np.arange(size + 1), widths, values)
    first = int(widths[0])
    slope = (values[1] - values[0]) / (widths[1] - widths[0]) if len(hull) > 1 else 0.0
    curve[:first] = values[0] - slope * (first - np.arange(first))
    return curve


def _answers(model: nn.Module, images: Batch) -> list[Tensor]:
    """Returns log-probabilities batch by batch."""
    with torch.no_grad():
        found = [called(model, x) for x in split(images, BATCH)]
    if not all(isinstance(y, Tensor) and y.dim() >= 2 and y.is_floating_point() for y in found):
        raise UsageError(
            f"values were to be measured on a {type(found[0]).__name__} that the model returns; it takes a tensor "
            "[N, classes, …]: wrap the model so that it returns its logits, or use sums of scores"
        )
    return [torch.log_softmax(y.double(), dim=1) for y in found]


def _loss(
    dense: nn.Module,
    structure: Structure,
    keep: Mapping[str, Tensor],
    images: Batch,
    answers: Sequence[Tensor],
) -> float:
    """Returns the mean over images of KL(dense ‖ cut), with batch norms as the cut network needs them."""
    cut = shrink(dense, structure, keep)
    _renormed(cut, images)
    total = 0.0
    for expected, found in zip(answers, _answers(cut.eval(), images), strict=True):
        total += float((expected.exp() * (expected - found)).sum())
    positions = sum(expected[:, 0].numel() for expected in answers)
    return total / max(positions, 1)


def _renormed(model: nn.Module, images: Batch) -> None:
    """Gives every batch norm the statistics of its input: the mean over batches."""
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not norms or count(images) < 2:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for x in split(images, BATCH):
            if count(x) > 1:
                called(model, x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
