"""Which class every pixel of an image shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from halpiee.data.folders import VOID, PairSource
from halpiee.data.source import Source
from halpiee.tasks.task import Sums, Task, misshapen, task


@task("segmentation")
class Segmentation(Task):
    """Cross-entropy of every pixel; pixels of the class 255 do not count. Masks are int64 ``[B, H, W]``."""

    kind: ClassVar[str] = "mask"
    figure: ClassVar[str] = "miou"
    title = "Mean IoU"
    names_classes = True

    def source(self, data: str, size: int | None) -> Source:
        """Returns a folder of image and mask pairs, or a function's datasets."""
        return PairSource.of(data, size) or super().source(data, size)

    def network(self, model: nn.Module) -> nn.Module:
        """Returns a network that gives logits ``[B, classes, H, W]`` alone: torchvision's give a dictionary."""
        return Segmenter(model)

    def wrong(self, answers: Any, n_classes: int, shape: Sequence[int]) -> str:
        """Returns what is wrong with logits of another shape."""
        return misshapen(answers, [2, n_classes, *shape[1:]], "give a network that answers every pixel")

    def loss(self, answers: Any, targets: Any, *, smoothing: float = 0.0) -> Tensor:
        """Returns the mean over all pixels of the batch that count; 0 where none does."""
        total: Tensor = functional.cross_entropy(
            answers, targets.long(), ignore_index=VOID, label_smoothing=smoothing, reduction="sum"
        )
        mean: Tensor = total / (targets != VOID).sum().clamp(min=1)
        return mean

    def metric(self, n_classes: int) -> Overlap:
        """Returns the mean over classes of intersection over union, and the share of right pixels."""
        return Overlap(n_classes)

    def distance(self, answers: Any, teacher: Any) -> Tensor:
        """Returns the Kullback–Leibler divergence of the classes' shares, the mean over pixels."""
        ours, theirs = answers.log_softmax(1), teacher.log_softmax(1)
        return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(1).mean()


class Segmenter(nn.Module):
    """A network whose output is a tensor; the model's is one, or a dictionary with one under ``out``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``[B, C, H, W]`` to logits ``[B, classes, H, W]``."""
        answer = self.net(x)
        found: Tensor = answer["out"] if isinstance(answer, dict) else answer
        return found


class Overlap(Sums):
    """Counts pixels by class shown and class said; classes that are neither do not count in the mean."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes, n_classes)

    def add(self, answers: Any, targets: Any) -> None:
        """Counts a batch."""
        n = len(self.counts)
        counted = targets != VOID
        pairs = targets[counted].long() * n + answers.argmax(1)[counted]
        self.count(torch.bincount(pairs, minlength=n * n).view(n, n).double())

    def figures(self) -> dict[str, float]:
        """Returns ``miou`` and ``pixels``."""
        right = self.counts.diagonal()
        union = self.counts.sum(0) + self.counts.sum(1) - right
        there = union > 0
        return {
            "miou": float((right[there] / union[there]).mean()) if bool(there.any()) else 0.0,
            "pixels": float(right.sum() / self.counts.sum().clamp(min=1)),
        }
