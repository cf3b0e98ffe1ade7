"""A training and a test set, wherever they lie: what a run knows of them, and the batches it draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from halpiee.errors import DataError, UsageError

__all__ = ["MOST_CLASSES", "Data", "Summary", "class_numbers"]

MOST_CLASSES = 10**6
"""Classes that a data source may have; a network of as many takes 2 kB for each."""


@dataclass(frozen=True)
class Summary:
    """What is known of a source without decoding it.

    Attributes:
        name: the source as asked for.
        n_train: training images; ``None`` where only loading tells.
        n_test: test images; likewise.
        n_classes: classes; likewise.
        shape: (channels, height, width) of the images as they will be loaded; likewise.
    """

    name: str
    n_train: int | None = None
    n_test: int | None = None
    n_classes: int | None = None
    shape: tuple[int, int, int] | None = None


class Data(ABC):
    """A training and a test set.

    All of an epoch's random numbers follow from (seed, epoch), so an interrupted epoch continues bit for bit:
    ``batches(..., start=k)`` is the tail of ``batches(...)``.

    Attributes:
        name: the source as asked for.
        classes: one name per label.
    """

    name: str
    classes: tuple[str, ...]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    @abstractmethod
    def n_train(self) -> int:
        """Number of training images."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the number of training batches of an epoch; a last incomplete one is left out."""
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size} was asked; it must be at least 1")
        return max(1, self.n_train // batch_size)

    @abstractmethod
    def to(self, device: torch.device | str) -> Data:
        """Returns the same data with its batches on another device."""

    @abstractmethod
    def batches(
        self, epoch: int, batch_size: int, *, seed: int = 0, augment: bool = True, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the training batches of one epoch, the same for the same (seed, epoch) on every device.

        Args:
            epoch: number of the epoch; each has its own order and augmentation.
            batch_size: images per batch.
            seed: seed of the run.
            augment: whether to change images at random.
            start: batches to leave out at the beginning; the rest equals that of a full epoch bit for bit.

        Yields:
            Normalised images, float32 ``[B, C, H, W]``, and labels, int64 ``[B]``.
        """

    @abstractmethod
    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields all test images in order, normalised, with their labels; the last batch may be smaller."""


def class_numbers(labels: Tensor, name: str) -> tuple[str, ...]:
    """Returns 0, 1, … up to the largest label, as the names of classes that have none.

    Raises:
        DataError: a label that is no number of a class.
    """
    largest = int(labels.max()) if len(labels) else -1
    if largest >= MOST_CLASSES:
        at = int((labels == largest).nonzero()[0])
        raise DataError(
            f"data {name!r}: training image {at} has the label {largest}; classes are numbered from 0, and there are "
            f"at most {MOST_CLASSES:,}: number them so"
        )
    return tuple(str(i) for i in range(largest + 1))
