"""Sources that are folders: Parquet files in the Hugging Face layout, or one folder of images per class."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halpiee.data.data import MOST_CLASSES, Summary
from halpiee.data.images import (
    decode,
    decode_all,
    decode_file,
    fits_memory,
    image_files,
    one_size,
    shift_for,
)
from halpiee.data.tensors import Augmentation, TensorData
from halpiee.errors import DataError

__all__ = ["FolderSource", "ParquetSource"]


TEST_NAMES = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class ParquetSource:
    """A folder of Parquet files in the Hugging Face layout.

    Files whose name starts with ``train`` and ``test`` (or ``val``), anywhere below the folder; columns
    ``img`` or ``image`` (a struct of bytes and path, or the bytes) and ``label``.
    """

    path: Path
    size: int | None = None

    def check(self) -> Summary:
        """Opens every file, reads the labels and decodes the first images of each file."""
        sizes: list[tuple[int, ...]] = []
        names, labels = self._labels()
        for files in self._splits():
            for file in files:
                with _open_parquet(file) as table:
                    image, _ = _columns(file, table.schema_arrow)
                    rows = next(table.iter_batches(8, columns=[image]), None)
                    for blob, where in _blobs(rows.column(0), file, 0) if rows else ():
                        sizes.append(decode(blob, where, self.size).shape)
        shape = one_size(sizes, str(self.path))
        fits_memory(sum(len(y) for y in labels) * math.prod(shape), str(self.path))
        return Summary(str(self.path), len(labels[0]), len(labels[1]), len(names), shape)

    def load(self) -> TensorData:
        """Decodes every row."""
        names, labels = self._labels()
        images: list[Tensor] = []
        for files in self._splits():
            parts: list[Tensor] = []
            for file in files:
                with _open_parquet(file) as table:
                    image, _ = _columns(file, table.schema_arrow)
                    row = 0
                    for group in range(table.num_row_groups):
                        blobs = list(_blobs(_read(file, table, image, group), file, row))
                        row += len(blobs)
                        if blobs:
                            parts.append(decode_all(blobs, self.size, str(self.path)))
            one_size([tuple(part.shape[1:]) for part in parts], str(self.path))
            images.append(torch.cat(parts))
        (train_x, test_x), (train_y, test_y) = images, (torch.from_numpy(y) for y in labels)
        augmentation = Augmentation(shift=shift_for(train_x.shape[-1]))
        return TensorData(str(self.path), train_x, train_y, test_x, test_y, names, augmentation)

    def _labels(self) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
        """Returns the class names (numbers where the files name none) and the labels of both splits."""
        names: tuple[str, ...] | None = None
        splits: list[NDArray[np.int64]] = []
        for split, files in zip(("train", "test"), self._splits(), strict=True):
            parts: list[NDArray[np.int64]] = []
            for file in files:
                with _open_parquet(file) as table:
                    _, label = _columns(file, table.schema_arrow)
                    names = names or _class_names(table.schema_arrow, label)
                    column = _numbers(file, _read(file, table, label))
                if not np.issubdtype(column.dtype, np.integer):
                    raise DataError(
                        f"{file}: its labels are {column.dtype}; they must be whole numbers, none missing"
                    )
                known = len(names) if names else (int(splits[0].max()) + 1 if splits else MOST_CLASSES)
                wrong = np.flatnonzero((column < 0) | (column >= known))
                if len(wrong):
                    raise DataError(
                        f"row {wrong[0]} of {file} has the label {column[wrong[0]]}; "
                        f"labels must be 0 to {known - 1}: take out or relabel such rows"
                    )
                parts.append(np.asarray(column, dtype=np.int64))
            splits.append(np.concatenate(parts))
            if not len(splits[-1]):
                raise DataError(
                    f"--data {str(self.path)!r}: its {split} files hold no rows; "
                    "give a folder with at least one image in each split"
                )
        return names or tuple(str(i) for i in range(int(splits[0].max()) + 1)), splits

    def _splits(self) -> tuple[list[Path], list[Path]]:
        files = sorted(self.path.rglob("*.parquet"))
        train = [f for f in files if f.name.startswith("train")]
        for name in TEST_NAMES:
            test = [f for f in files if f.name.startswith(name)]
            if train and test:
                return train, test
        found = ", ".join(f.name for f in files[:5])
        raise DataError(
            f"--data {str(self.path)!r}: found the Parquet files {found}; "
            "both train*.parquet and test*.parquet (or val*.parquet) are needed: rename them so"
        )


@dataclass(frozen=True)
class FolderSource:
    """A folder with ``train/`` and ``val/`` or ``test/``, each with one folder of images per class."""

    path: Path
    size: int | None = None

    def check(self) -> Summary:
        """Lists the files and decodes sixteen of them."""
        classes, train, test = self._files()
        sample = [files[i * (len(files) - 1) // 7][0] for files in (train, test) for i in range(8)]
        shape = one_size([decode_file(f, self.size).shape for f in dict.fromkeys(sample)], str(self.path))
        fits_memory((len(train) + len(test)) * math.prod(shape), str(self.path))
        return Summary(str(self.path), len(train), len(test), len(classes), shape)

    def load(self) -> TensorData:
        """Decodes every file."""
        summary = self.check()
        classes, train, test = self._files()
        tensors: list[Tensor] = []
        for files in (train, test):
            tensors.append(decode_all([(file, str(file)) for file, _ in files], self.size, str(self.path)))
            tensors.append(torch.tensor([label for _, label in files]))
        assert summary.shape is not None
        augmentation = Augmentation(shift=shift_for(summary.shape[-1]))
        return TensorData(
            str(self.path), tensors[0], tensors[1], tensors[2], tensors[3], classes, augmentation
        )

    def _files(self) -> tuple[tuple[str, ...], list[tuple[Path, int]], list[tuple[Path, int]]]:
        train = self.path / "train"
        test = next((self.path / name for name in TEST_NAMES if (self.path / name).is_dir()), None)
        if not train.is_dir() or test is None:
            found = ", ".join(sorted(p.name for p in self.path.iterdir())[:5]) or "nothing"
            raise DataError(
                f"--data {str(self.path)!r}: found {found}; "
                "a folder of images needs train/ and val/ (or test/), each with one folder per class"
            )
        classes = tuple(sorted(p.name for p in train.iterdir() if p.is_dir()))
        unknown = sorted({p.name for p in test.iterdir() if p.is_dir()} - set(classes))
        if classes and unknown:
            raise DataError(
                f"--data {str(self.path)!r}: {test.name}/ has the class {unknown[0]!r}, which train/ lacks; "
                "both need the same class folders"
            )
        splits: list[list[tuple[Path, int]]] = []
        for folder in (train, test):
            files = [(f, i) for i, name in enumerate(classes) for f in image_files(folder / name)]
            if not files:
                raise DataError(
                    f"--data {str(self.path)!r}: {folder.name}/ holds no images in class folders; "
                    f"put them into {folder.name}/CLASS/*.jpg (or .png, .bmp, .webp …)"
                )
            splits.append(files)
        return classes, splits[0], splits[1]


def _open_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({error}); fetch it again") from error


def _read(path: Path, table: Any, column: str, group: int | None = None) -> Any:
    """Returns one column, of one row group or of the whole file."""
    import pyarrow as pa

    try:
        rows = (
            table.read(columns=[column]) if group is None else table.read_row_group(group, columns=[column])
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); fetch it again") from error
    return rows.column(column)


def _numbers(path: Path, column: Any) -> NDArray[Any]:
    """Returns a column as an array."""
    import pyarrow as pa

    try:
        found: NDArray[Any] = column.to_numpy()
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: its labels are {column.type}; they must be whole numbers, none missing"
        ) from error
    return found


def _columns(path: Path, schema: Any) -> tuple[str, str]:
    twice = next((c for c in schema.names if schema.names.count(c) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns named {twice!r}; name every column once")
    image = next((c for c in ("img", "image") if c in schema.names), None)
    label = next((c for c in ("label", "labels", "fine_label") if c in schema.names), None)
    if image is None or label is None:
        raise DataError(
            f"{path} has the columns {', '.join(schema.names)}; "
            "it needs img (or image) and label: rename them so"
        )
    return image, label


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Returns the class names that Hugging Face's datasets write into the schema, if they are there."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _blobs(column: Any, path: Path, first: int) -> Iterator[tuple[bytes, str]]:
    """Yields each image of a column (bytes, or structs with a field of bytes) and where it is."""
    for row, cell in enumerate(column.to_pylist(), first):
        blob = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(blob, bytes):
            raise DataError(
                f"row {row} of {path} holds no image bytes; write the images into the file, not paths"
            )
        yield blob, f"row {row} of {path}"
