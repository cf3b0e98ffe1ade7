"""A trained network cut to a latency without training: cut a little, solve its layers again, score again, cut more.

The budget of round k of n is ``D · (Ψ/D)^(k/n)``, with the dense latency D. A later round scores the repaired network,
and can keep only units that are active in it. A closed loop measures and corrects the last selection; its layers are
solved when the loop has ended. Without labels, scores take the dense network's own classes for the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from halpiee.reconstruction.repair import RepairedLayer, Settings, repair
from halpiee.reconstruction.value_curves import measured_values
from halpiee.saliency.criterion import Criterion, LossFn
from halpiee.saliency.score import score
from halpiee.selection.choose import choose, uniform
from halpiee.selection.cost import LatencyCost
from halpiee.selection.grid import FloatArray
from halpiee.structure.groups import Structure
from halpiee.structure.plan import Selection
from halpiee.structure.trace import trace

ROUNDS = 4
"""Rounds by default: docs/decisions/0075-rounds-of-repair.md."""

BATCH = 128
"""Images whose scores are taken together."""


@dataclass(frozen=True)
class InRounds:
    """How a network is cut."""

    rounds: int = ROUNDS  # n
    criterion: Criterion | str = "taylor"  # of the scores, or its name
    protect: Collection[str] = ()  # groups that stay whole
    # those that keep the most score, or those of the widest uniform network that fits
    widths: Literal["scores", "uniform"] = "scores"
    seed: int = 0  # of random scores and of the positions that repair samples
    # what a width is worth: the sum of its units' scores, or ``measured`` by forward passes over the images
    # (``value_curves``), anew in every round
    value: Literal["scores", "measured"] = "scores"
    loss: LossFn = cross_entropy  # (outputs, targets) → scalar, whose gradients scores are taken of


class Rounds:
    """A selection in rounds, for a closed loop, which measures it, solves it again under another cost, or goes back.

    Args:
        model: the dense network with trained weights, in evaluation mode; it is not changed.
        cost: calibrated, of the model's structure.
        budget_us: Ψ on the scale of ``cost.dense_us``.
        images: ``[N, …]`` of the training data, without augmentation, where the model lies: layers are solved from
            these; no labels.
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
        images: Tensor,
        scored: Tensor,
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
            self._scores = self._scored(compact, trace(compact, (images[:1],)))
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
            [self._images],
            settings=Settings(images=len(self._images), seed=self._how.seed),
            report=report,
        )

    def _labelled(self, images: Tensor) -> Sequence[tuple[Tensor, Any]]:
        with torch.no_grad():
            return paired(images, torch.cat([self._model(x).argmax(1) for x in torch.split(images, BATCH)]))

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
        # A removed layer has no weights to solve: groups keep a unit.
        cost = cost.restricted(vanish=False)
        if self._how.widths == "uniform":
            return uniform_selection(self._scores, cost, capacity_us, protect=self._how.protect)
        return choose(
            self._scores,
            cost,
            capacity_us,
            may=self._keep,
            protect=self._how.protect,
            values=self._values or None,
        )


def uniform_selection(
    scores: Mapping[str, Tensor], cost: LatencyCost, budget_us: float, *, protect: Collection[str] = ()
) -> Selection:
    """Returns the best-scoring units of the widest uniform network within a latency.

    The value of other widths has no bound: the gap is not a number.

    Raises:
        BudgetError: not the narrowest uniform network is that fast.
    """
    counts = uniform(cost, budget_us, protect=protect)
    keep = {name: torch.zeros(len(values), dtype=torch.bool) for name, values in scores.items()}
    for name, values in scores.items():
        keep[name][values.argsort(descending=True, stable=True)[: counts[name]]] = True
    return Selection(
        keep,
        (cost.total(counts),),
        (budget_us,),
        value=sum(float(values[keep[name].to(values.device)].sum()) for name, values in scores.items()),
        next_step=cost.next_step(counts, cost.candidates),
        path="uniform",
    )


def paired(images: Tensor, labels: Sequence[Any] | Tensor) -> list[tuple[Tensor, Any]]:
    """Returns batches of images and labels."""
    return [(images[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, len(images), BATCH)]
