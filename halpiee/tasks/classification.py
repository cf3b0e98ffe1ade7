"""Which class, or which classes, an image shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from halpiee.data.data import Data
from halpiee.tasks.task import Sums, Task, misshapen, task

LOOKED = 64
"""Targets that tell whether images have several classes each."""


@task("classification")
class Classification(Task):
    """Cross-entropy of single classes or of shares of them; of several classes per image, binary cross-entropy.

    The targets say which: whole numbers ``[B]``; numbers ``[B, classes]`` whose rows sum to 1; or rows of 0 and 1.
    """

    title = "Top-1 accuracy"
    names_classes = True

    def __init__(self) -> None:
        self._several: bool | None = None

    def prepare(self, data: Data, network: nn.Module) -> None:
        """Looks once whether images have several classes each: a look at every batch would wait for the device."""
        _, targets = data.at(torch.arange(min(LOOKED, data.n_train)))
        self._several = several(targets)
        self.names_classes = not self._several
        self.title = "F1 score" if self._several else Classification.title

    def wrong(self, answers: Any, n_classes: int, shape: Sequence[int]) -> str:
        """Returns what is wrong with logits that are not ``[2, classes]``."""
        return misshapen(answers, [2, n_classes], "give a classifier that takes num_classes")

    def loss(self, answers: Any, targets: Any, *, smoothing: float = 0.0) -> Tensor:
        """Returns the cross-entropy."""
        if several(targets) if self._several is None else self._several:
            wanted = targets * (1 - smoothing) + 0.5 * smoothing
            return functional.binary_cross_entropy_with_logits(answers, wanted)
        return functional.cross_entropy(answers, targets, label_smoothing=smoothing)

    def metric(self, n_classes: int) -> Accuracy:
        """Returns top-1 and, beyond five classes, top-5 accuracy; of several classes per image, the F1 score."""
        return Accuracy(n_classes, self._several)

    def distance(self, answers: Any, teacher: Any) -> Tensor:
        """Returns the divergence of the classes' shares at temperature 2."""
        return matching(answers, teacher)


def matching(answers: Tensor, wanted: Tensor, temperature: float = 2.0) -> Tensor:
    """Returns ``T² · KL(softmax(wanted / T) ‖ softmax(answers / T))``, the mean over images (Hinton et al. 2015).

    Both are logits ``[N, classes]``: of the network in training, and of the one to match.
    """
    ours, theirs = (logits.float() / temperature for logits in (answers, wanted))
    divergence = functional.kl_div(ours.log_softmax(1), theirs.softmax(1), reduction="batchmean")
    return temperature**2 * divergence


class Accuracy(Sums):
    """Counts hits. Of several classes per image, ``accuracy`` is F1 = 2·TP / (2·TP + FP + FN) at logit 0."""

    def __init__(self, n_classes: int, several: bool | None = None) -> None:
        super().__init__(6)
        self._n_classes, self._several = n_classes, several

    def add(self, answers: Any, targets: Any) -> None:
        """Counts first and fifth places, images; true and false positives, false negatives."""
        zero = torch.zeros((), dtype=torch.float64, device=answers.device)
        if several(targets) if self._several is None else self._several:
            said, true = answers > 0, targets > 0.5
            hits = [(said & true).sum(), (said & ~true).sum(), (~said & true).sum()]
            self.count(torch.stack([zero, zero, zero, *(hit.double() for hit in hits)]))
            return
        if targets.ndim == 2:
            targets = targets.argmax(1)
        best = answers.topk(min(5, self._n_classes), dim=1).indices == targets[:, None]
        found = [best[:, 0].sum(), best.any(1).sum(), torch.full_like(zero, len(targets))]
        self.count(torch.stack([*(one.double() for one in found), zero, zero, zero]))

    def figures(self) -> dict[str, float]:
        """Returns ``accuracy`` and, beyond five classes, ``top5``."""
        first, fifth, total, true, extra, lacking = self.counts.tolist()
        if not total:
            return {"accuracy": 2 * true / max(1.0, 2 * true + extra + lacking)}
        figures = {"accuracy": first / total}
        return figures if self._n_classes <= 5 else {**figures, "top5": fifth / total}


def several(targets: Tensor) -> bool:
    """Whether targets are several classes per image, and not shares of one image's class."""
    if targets.ndim != 2:
        return False
    return bool((targets.sum(1) - 1).abs().max() > 1e-3)
