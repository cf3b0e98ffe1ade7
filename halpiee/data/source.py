"""What a source of images can do: tell what it holds within seconds, hand out its examples, or decode them all.

A ``Split`` is one half of a source, the training or the test examples, read one at a time: nothing else lies in memory.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halpiee.data.data import Summary
from halpiee.data.images import cut, open_image, pixels, read_bytes, shift_for
from halpiee.data.tensors import Augmentation, TensorData
from halpiee.errors import DataError, said


class Split(ABC):
    """Examples by index.

    ``labels`` are int64 ``[N]``, the class of every image; None: the task has no single one, or only reading tells.
    """

    labels: NDArray[np.int64] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def read(self, index: int) -> tuple[Any, Any]:
        """Returns the image (PIL, or a tensor ``[C, H, W]``) and the target of one example.

        Raises:
            DataError: it is damaged, and where it lies.
        """

    def sample(self) -> list[int]:
        """Returns the numbers of a few examples, to look at before the training: some from all over."""
        return sorted({i * (len(self) - 1) // 7 for i in range(8)})

    def order(self, generator: torch.Generator) -> Tensor:
        """Returns the indices in the order of an epoch: any order is as likely as another, where reading allows it."""
        return torch.randperm(len(self), generator=generator)


class ImageSplit(Split):
    """Encoded images with a class each."""

    labels: NDArray[np.int64]
    in_one_file = True

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def blob(self, index: int) -> bytes:
        """Returns the bytes of an image."""

    @abstractmethod
    def where(self, index: int) -> str:
        """Returns where an image lies, for messages."""

    def read(self, index: int) -> tuple[Any, int]:
        """Returns the decoded RGB image and its class."""
        return open_image(self.blob(index), self.where(index)), int(self.labels[index])


class Files:
    """Paths below a folder in one block of bytes: a list of Python objects would be copied into every worker."""

    def __init__(self, root: Path, paths: Sequence[Path]) -> None:
        self.root = root
        self._names = np.array([str(path.relative_to(root)).encode() for path in paths], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Path:
        return self.root / bytes(self._names[index]).decode()


class FileSplit(ImageSplit):
    """One file per image."""

    in_one_file = False

    def __init__(self, root: Path, files: Sequence[tuple[Path, int]]) -> None:
        self._files = Files(root, [path for path, _ in files])
        self.labels = np.array([label for _, label in files], dtype=np.int64)

    def where(self, index: int) -> str:
        """Returns the file."""
        return str(self._files[index])

    def blob(self, index: int) -> bytes:
        """Returns the file's bytes."""
        return read_bytes(self._files[index])


class TarSplit(ImageSplit):
    """Members of uncompressed tar files, found by their offset: any order costs the same, and no file is unpacked.

    ``members`` are int64 ``[N, 3]``: file, offset in bytes, size in bytes; ``labels`` int64 ``[N]``.
    """

    def __init__(self, tars: Sequence[Path], members: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        self._tars, self._members, self.labels = tuple(tars), members, labels

    def where(self, index: int) -> str:
        """Returns the tar and the place in it."""
        return f"the image at byte {self._members[index, 1]:,} of {self._tars[self._members[index, 0]]}"

    def blob(self, index: int) -> bytes:
        """Returns the member's bytes."""
        tar, offset, size = (int(i) for i in self._members[index])
        try:
            with open(self._tars[tar], "rb", buffering=0) as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise DataError(
                f"{self._tars[tar]} cannot be read ({error}); check its permissions or take it out"
            ) from error


class ParquetSplit(ImageSplit):
    """Rows of Parquet files, which are read a row group at a time; the last groups stay in memory.

    ``files`` come with the column of their images, ``groups`` are the rows in each row group of each file.
    """

    KEPT = 4
    """Row groups in memory; an epoch is shuffled within as many."""

    def __init__(
        self, files: Sequence[tuple[Path, str]], groups: Sequence[Sequence[int]], labels: NDArray[np.int64]
    ) -> None:
        self._files, self.labels = tuple(files), labels
        self._groups = [(file, group) for file, rows in enumerate(groups) for group in range(len(rows))]
        self._starts = np.cumsum([0, *(rows for per_file in groups for rows in per_file)])
        self._first = [int(n) for n in np.cumsum([0, *(sum(rows) for rows in groups)])]
        self._kept: OrderedDict[int, list[Any]] = OrderedDict()

    def where(self, index: int) -> str:
        """Returns row and file."""
        file = bisect_right(self._first, index) - 1
        return f"row {index - self._first[file]} of {self._files[file][0]}"

    def blob(self, index: int) -> bytes:
        """Returns the bytes in a row."""
        at = int(np.searchsorted(self._starts, index, side="right")) - 1
        rows = self._kept.get(at)
        if rows is None:
            file, group = self._groups[at]
            path, column = self._files[file]
            rows = self._kept[at] = read_group(path, column, group)
            while len(self._kept) > self.KEPT:
                self._kept.popitem(last=False)
        cell = rows[index - int(self._starts[at])]
        found = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(found, bytes):
            raise DataError(
                f"{self.where(index)} holds no image bytes; write the images into the file, not paths"
            )
        return found

    def sample(self) -> list[int]:
        """Returns the first eight rows of the first eight files: others may lie in row groups of a hundred MB."""
        firsts = [(a, min(b, a + 8)) for a, b in zip(self._first, self._first[1:], strict=False)]
        return [row for first, end in firsts[:8] for row in range(first, end)]

    def order(self, generator: torch.Generator) -> Tensor:
        """Returns row groups in random order, their rows shuffled ``KEPT`` groups at a time.

        Where everything fits into that, any order is as likely as another.
        """
        n = len(self._groups)
        if n <= self.KEPT:
            return super().order(generator)
        found = []
        for part in torch.split(torch.randperm(n, generator=generator), self.KEPT):
            rows = torch.cat([torch.arange(int(self._starts[g]), int(self._starts[g + 1])) for g in part])
            found.append(rows[torch.randperm(len(rows), generator=generator)])
        return torch.cat(found)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": OrderedDict()}


def read_group(path: Path, column: str, group: int) -> list[Any]:
    """Returns one column of one row group of a Parquet file.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            rows: list[Any] = table.read_row_group(group, columns=[column]).column(column).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); fetch it again") from error
    return rows


class DatasetSplit(Split):
    """A map-style dataset of (image, target) pairs: torchvision's, or one's own."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset, self._name = dataset, name

    def __len__(self) -> int:
        return len(self._dataset)

    def targets(self) -> Tensor:
        """Returns the class of every example, from an attribute ``targets`` or by reading all of them."""
        listed = getattr(self._dataset, "targets", None)
        found = [self.read(i)[1] for i in range(len(self))] if listed is None else listed
        return torch.as_tensor(found)

    def read(self, index: int) -> tuple[Any, Any]:
        """Returns the pair."""
        try:
            image, target = self._dataset[index]
        except Exception as error:  # whatever a dataset does while it is read
            raise DataError(
                f"--data {self._name}: example {index} is no (image, target) pair ({said(error)}); "
                "mend the dataset"
            ) from error
        if hasattr(image, "convert") and image.mode != "RGB":
            image = image.convert("RGB")
        return image, target


class TensorSplit(Split):
    """Images ``[N, C, H, W]`` in memory, to be changed one by one, and their targets ``[N]`` or ``[N, classes]``."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._x, self._y = x, y
        self.labels = y.numpy() if y.ndim == 1 else None

    def __len__(self) -> int:
        return len(self._x)

    def read(self, index: int) -> tuple[Any, Any]:
        """Returns an image and its target."""
        return self._x[index], self._y[index]


class HubSplit(ImageSplit):
    """Rows of a Hugging Face data set."""

    def __init__(self, dataset: Any, name: str, column: str, labels: NDArray[np.int64]) -> None:
        import datasets

        self._rows = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self._name, self._column, self.labels = name, column, labels

    def where(self, index: int) -> str:
        """Returns row and source."""
        return f"row {index} of {self._name}"

    def blob(self, index: int) -> bytes:
        """Returns the bytes in a row, or in the file that it names."""
        cell = self._rows[index][self._column]
        found = cell.get("bytes")
        return found if isinstance(found, bytes) else read_bytes(Path(str(cell.get("path"))))


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


@dataclass(frozen=True)
class InFolder(ImageSource):
    """Images in a folder."""

    path: Path
    size: int | None = None

    @classmethod
    def of(cls, data: str, size: int | None) -> Self | None:
        """Returns the source where ``data`` is a folder; None: it is none."""
        path = Path(data).expanduser()
        return cls(path, size) if path.is_dir() else None


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
