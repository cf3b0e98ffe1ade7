"""A training and a test set, wherever they lie: what a run knows of them, and the batches it draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from halpiee.errors import DataError, UsageError
from halpiee.inputs import Input

MOST_CLASSES = 10**6
"""Classes that a data source may have; a network of as many takes 2 kB for each."""


@dataclass(frozen=True)
class Summary:
    """What is known of a source without decoding it; ``None`` where only loading tells.

    ``shape`` is (channels, height, width) of the images as they will be loaded.
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
        name: the source, as ``--data`` names it.
        classes: one name per label.
        mean: float32, per channel of 0–1, of the images that ``normalised`` takes.
        std: likewise.
        inputs: what one example is made of, where that is several tensors; a batch has them in a tuple, or by name.
        rank: of this process among those that train together.
        ranks: the number of these.
    """

    name: str
    classes: tuple[str, ...]
    mean: Tensor | None
    std: Tensor | None
    inputs: tuple[Input, ...] = ()
    rank: int = 0
    ranks: int = 1

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    @abstractmethod
    def n_train(self) -> int:
        """Number of training examples."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""

    @property
    def labels(self) -> Tensor | None:
        """The class of every training example, int64 ``[N]``; None: they have no single one, or only reading tells."""
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the data by now, such as images that were left out."""
        return ()

    @property
    def preprocess(self) -> dict[str, Any]:
        """The fields of ``images.Preprocess`` as JSON values; only the classes of data that normalise themselves."""
        side = list(self.shape[1:])
        known = {
            "resize": side[:1] if side[0] == side[-1] else None,
            "size": side,
            "classes": list(self.classes),
        }
        if self.inputs or getattr(self, "mean", None) is None:
            return {"classes": known["classes"]}
        return known | {name: getattr(self, name).flatten().tolist() for name in ("mean", "std")}

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the full training batches of an epoch, each of ``batch_size`` examples in every process.

        Raises:
            UsageError: a batch of no image.
        """
        check_batch(batch_size)
        return max(1, self.n_train // (batch_size * self.ranks))

    def normalised(self, x: Tensor) -> Tensor:
        """Returns float32 images with (x − mean) / std per channel, as one multiply and one add."""
        assert self.mean is not None
        assert self.std is not None
        scale = 1.0 / (self.std * (255.0 if x.dtype == torch.uint8 else 1.0))
        offset = -self.mean / self.std
        return x.to(torch.float32, copy=True).mul_(scale.view(-1, 1, 1)).add_(offset.view(-1, 1, 1))

    @abstractmethod
    def to(self, device: torch.device | str) -> Data:
        """Returns the same data with its batches on another device."""

    @abstractmethod
    def sharded(self, rank: int, ranks: int) -> Data:
        """Returns what one of several processes trains and tests on.

        Batch k of size b of every rank, put together, is batch k of size b · ranks of one process, each example with
        the random changes it has there. Test examples are dealt out in turn.
        """

    @abstractmethod
    def batches(
        self, epoch: int, batch_size: int, *, seed: int = 0, augment: bool = True, start: int = 0
    ) -> Iterator[tuple[Any, Any]]:
        """Yields the training batches of one epoch, the same for the same (seed, epoch) on every device.

        Args:
            epoch: number of the epoch; each has its own order and augmentation.
            batch_size: images per batch.
            seed: seed of the run.
            augment: whether to change images at random.
            start: batches to leave out at the beginning; the rest equals that of a full epoch bit for bit.

        Yields:
            Normalised images, float32 ``[B, C, H, W]``, and targets: int64 ``[B]`` of single classes.
        """

    @abstractmethod
    def test_batches(self, batch_size: int) -> Iterator[tuple[Any, Any]]:
        """Yields all test images in order, normalised, with their targets; the last batch may be smaller."""

    @abstractmethod
    def at(self, index: Tensor) -> tuple[Any, Any]:
        """Returns training examples by their numbers, normalised and not changed at random."""

    def few(self, a_class: int, *, seed: int = 0, batch_size: int = 256) -> Examples:
        """Returns examples to score on, drawn by the seed: ``a_class`` of each class, where classes are known."""
        order = torch.randperm(self.n_train, generator=torch.Generator().manual_seed(seed_of(seed, -1)))
        labels = self.labels
        if labels is None:
            index = order[: a_class * self.n_classes]
        else:
            drawn = labels.cpu()[order]
            index = torch.cat([order[drawn == c][:a_class] for c in range(self.n_classes)])
        return Examples(self, torch.split(index, batch_size))


class Examples(Sequence[tuple[Any, Any]]):
    """Batches of some training examples, each read when it is asked for; ``parts`` are the numbers of the examples."""

    def __init__(self, data: Data, parts: Sequence[Tensor]) -> None:
        self._data, self._parts = data, parts

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, number: int) -> tuple[Any, Any]: ...
    @overload
    def __getitem__(self, number: slice) -> Examples: ...
    def __getitem__(self, number: int | slice) -> tuple[Any, Any] | Examples:
        if isinstance(number, slice):
            return Examples(self._data, self._parts[number])
        return self._data.at(self._parts[number])


def inputs_in(x: Any) -> tuple[Input, ...]:
    """Returns what an example of several inputs is made of."""
    named = x.items() if isinstance(x, Mapping) else (("", one) for one in x)
    return tuple(Input(name, tuple(one.shape), str(one.dtype).removeprefix("torch.")) for name, one in named)


def check_batch(batch_size: int) -> None:
    """Refuses a batch of no image."""
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} was asked; it must be at least 1")


def seed_of(*numbers: int) -> int:
    """Returns a seed that follows from whole numbers, each at least −2⁶³."""
    state = np.random.SeedSequence([n % 2**64 for n in numbers]).generate_state(1, np.uint64)[0]
    return int(state) & (2**63 - 1)


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
