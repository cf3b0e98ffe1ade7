"""What a source of images can do: tell what it holds within seconds, hand out its examples, or decode them all."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halpiee.data.data import Summary
from halpiee.data.images import cut, pixels, shift_for
from halpiee.data.split import ImageSplit, Split
from halpiee.data.tensors import Augmentation, TensorData
from halpiee.errors import DataError


@dataclass(frozen=True)
class Splits:
    """The examples of a source, one name per class, and the kind of the targets: ``class``, ``mask`` or ``boxes``."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    kind: str = "class"


class Source(ABC):
    """Where examples come from."""

    size: int | None
    """Pixels of a side that images are brought to; None: they stay as they are."""

    @abstractmethod
    def check(self, *, bad: int = 0) -> Summary:
        """Checks that loading would work, without decoding everything; ``bad`` images of a sample may be unreadable.

        Raises:
            DataError: it would not.
        """

    def splits(self) -> Splits | None:
        """Returns the examples, to be read one at a time; None: they are tensors and lie in memory."""
        return None

    @abstractmethod
    def load(self, *, bad: int = 0) -> TensorData:
        """Decodes everything; ``bad`` images may be unreadable and are left out.

        Raises:
            DataError: more of them are, or the images differ in size.
        """


class ImageSource(Source):
    """Images that are files, or lie in files: a subclass tells where."""

    def splits(self) -> Splits:
        """Returns the examples."""
        raise NotImplementedError

    def check(self, *, bad: int = 0) -> Summary:
        """Lists what is there and decodes a few images of each split."""
        found = self.splits()
        shapes: list[tuple[int, ...]] = []
        unread: list[DataError] = []
        for split in (found.train, found.test):
            for index in split.sample():
                try:
                    image = split.read(index)[0]
                    whole = found.kind != "class" and self.size is not None
                    image = image.resize((self.size,) * 2) if whole else cut(image, self.size)
                    shapes.append(pixels(image).shape)
                except DataError as error:
                    unread.append(error)
        if len(unread) > bad or not shapes:
            raise unread[0]
        shape = one_size(shapes, found.name)
        return Summary(found.name, len(found.train), len(found.test), len(found.classes), shape)

    def load(self, *, bad: int = 0) -> TensorData:
        """Decodes every image."""
        found = self.splits()
        tensors: list[Tensor] = []
        left_out: list[str] = []
        for split in (found.train, found.test):
            assert isinstance(split, ImageSplit)
            x, kept, unread = _decoded(split, self.size, found.name)
            left_out += unread
            if len(left_out) > bad:
                raise DataError(left_out[0])
            tensors += [x, torch.from_numpy(split.labels[kept])]
        train_x, train_y, test_x, test_y = tensors
        shift = Augmentation(shift=shift_for(train_x.shape[-1]))
        return TensorData(
            found.name, train_x, train_y, test_x, test_y, found.classes, shift, left_out=tuple(left_out)
        )


def _decoded(split: ImageSplit, size: int | None, name: str) -> tuple[Tensor, NDArray[np.int64], list[str]]:
    """Returns all images of a split, uint8 ``[N, 3, H, W]``, their numbers, and what could not be read."""

    def one(index: int) -> NDArray[np.uint8] | str:
        try:
            return pixels(cut(split.read(index)[0], size))
        except DataError as error:
            return str(error)

    # A decoder gives the interpreter lock back, but a thumbnail is done before another thread has taken it:
    # 60,000 CIFAR images take 7 s on one thread and 17 s on eight.
    first = one(0)
    if split.in_one_file and not isinstance(first, str) and first[0].size <= 64 * 64:
        found: list[NDArray[np.uint8] | str] = [one(index) for index in range(len(split))]
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = list(pool.map(one, range(len(split))))
    images = {i: image for i, image in enumerate(found) if not isinstance(image, str)}
    unread = [image for image in found if isinstance(image, str)]
    if not images:
        raise DataError(unread[0])
    one_size([image.shape for image in images.values()], name)
    return torch.from_numpy(np.stack(list(images.values()))), np.array(list(images), dtype=np.int64), unread


def one_size(shapes: Sequence[tuple[Any, ...]], name: str) -> tuple[int, int, int]:
    """Returns the one shape (channels, height, width) that all images have, or refuses."""
    found = sorted(set(shapes))
    if len(found) > 1:
        sizes = ", ".join(f"{h}×{w}" for _, h, w in found[:3])
        raise DataError(
            f"--data {name!r}: images differ in size ({sizes} …); give --size to bring them to one"
        )
    c, h, w = found[0]
    return c, h, w
