"""Images in larger files: Parquet in the Hugging Face layout, WebDataset's tars, and Hugging Face data sets.

The last are a folder that ``save_to_disk`` wrote, or ``hf:NAME``, read by the package of the extra ``datasets``.
"""

from __future__ import annotations

import json
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halpiee.data.data import MOST_CLASSES
from halpiee.data.folders import TEST_NAMES, listed_classes
from halpiee.data.images import IMAGE_SUFFIXES
from halpiee.data.source import HubSplit, ImageSource, InFolder, ParquetSplit, Splits, TarSplit
from halpiee.errors import DataError, MissingError, said


class ParquetSource(InFolder):
    """A folder of Parquet files in the Hugging Face layout.

    Files whose name starts with ``train`` and ``test`` (or ``val``), anywhere below the folder; columns
    ``img`` or ``image`` (a struct of bytes and path, or the bytes) and ``label``.
    """

    def splits(self) -> Splits:
        """Reads the labels; images are read when they are asked for. Classes without names have numbers."""
        names: tuple[str, ...] | None = None
        made: list[ParquetSplit] = []
        for split, files in zip(("train", "test"), _named(self.path, "parquet", "Parquet"), strict=True):
            columns, groups, parts = [], [], []
            for file in files:
                with _open_parquet(file) as table:
                    image, label = _columns(file, table.schema_arrow)
                    names = names or _class_names(table.schema_arrow, label)
                    labels = _labels(file, table, label)
                    columns.append((file, image))
                    groups.append([table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)])
                known = len(names) if names else (int(made[0].labels.max()) + 1 if made else MOST_CLASSES)
                wrong = np.flatnonzero((labels < 0) | (labels >= known))
                if len(wrong):
                    raise DataError(
                        f"row {wrong[0]} of {file} has the label {labels[wrong[0]]}; "
                        f"labels must be 0 to {known - 1}: take out or relabel such rows"
                    )
                parts.append(labels)
            if not sum(map(len, parts)):
                raise DataError(
                    f"--data {str(self.path)!r}: its {split} files hold no rows; "
                    "give a folder with at least one image in each split"
                )
            made.append(ParquetSplit(columns, groups, np.concatenate(parts)))
        numbers = (str(i) for i in range(int(made[0].labels.max()) + 1))
        return Splits(str(self.path), made[0], made[1], names or tuple(numbers))


class TarSource(InFolder):
    """A folder of WebDataset's tars: ``train*.tar`` and ``test*.tar`` (or ``val*.tar``), anywhere below it.

    Members of one name up to the first dot are one example: an image, and its class as text in ``.cls``, or under
    ``label`` or ``cls`` in ``.json``. Line i of a file ``classes.txt`` in the folder names class i.
    """

    def splits(self) -> Splits:
        """Reads the headers of all members, and the labels."""
        made = [_indexed(files, self.path) for files in _named(self.path, "tar", "tar")]
        numbers = (str(i) for i in range(int(made[0].labels.max()) + 1))
        names = listed_classes(self.path) or tuple(numbers)
        for split in made:
            if len(wrong := np.flatnonzero(split.labels >= len(names))):
                raise DataError(
                    f"{split.where(int(wrong[0]))} has the label {split.labels[wrong[0]]}; labels must be 0 to "
                    f"{len(names) - 1}: take out or relabel such images"
                )
        return Splits(str(self.path), made[0], made[1], names)


def _indexed(tars: list[Path], root: Path) -> TarSplit:
    """Returns the images of some tars, with the class of each."""
    members: list[tuple[int, int, int]] = []
    labels: list[int] = []
    for number, path in enumerate(tars):
        images: dict[str, tuple[int, int, int]] = {}
        classes: dict[str, int] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    key, _, ending = name.partition(".")
                    key = f"{folder}/{key}"
                    if not member.isfile():
                        continue
                    if f".{ending.lower()}".endswith(IMAGE_SUFFIXES):
                        images[key] = (number, member.offset_data, member.size)
                    elif ending in ("cls", "json"):
                        file = tar.extractfile(member)
                        assert file is not None
                        classes[key] = _class_of(file.read(10**6), ending, f"{member.name} of {path}")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(
                f"{path} is not a readable tar ({error}); unpack a compressed one with gunzip, or fetch it again"
            ) from error
        if lacking := next((key for key in images if key not in classes), None):
            raise DataError(
                f"{path} has an image {lacking.strip('/')!r} without .cls or .json; write its class beside it"
            )
        members += images.values()
        labels += [classes[key] for key in images]
    if not members:
        raise DataError(
            f"--data {str(root)!r}: {tars[0].name} … hold no images; give tars of images with .cls files"
        )
    return TarSplit(tars, np.array(members, dtype=np.int64), np.array(labels, dtype=np.int64))


def _class_of(blob: bytes, ending: str, where: str) -> int:
    """Returns the class that a member of a tar names."""
    try:
        value = json.loads(blob)
        if ending == "json":
            value = value["label"] if "label" in value else value["cls"]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST_CLASSES:
            raise ValueError(value)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where} holds no class number; write a whole number from 0 as text") from error
    return value


def _named(path: Path, ending: str, kind: str) -> tuple[list[Path], list[Path]]:
    """Returns the files of the training and of the test split, by the beginning of their names."""
    files = sorted(path.rglob(f"*.{ending}"))
    train = [f for f in files if f.name.startswith("train")]
    for name in TEST_NAMES:
        test = [f for f in files if f.name.startswith(name)]
        if train and test:
            return train, test
    found = ", ".join(f.name for f in files[:5])
    raise DataError(
        f"--data {str(path)!r}: found the {kind} files {found}; "
        f"both train*.{ending} and test*.{ending} (or val*.{ending}) are needed: rename them so"
    )


def _open_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({error}); fetch it again") from error


def _labels(path: Path, table: Any, name: str) -> NDArray[np.int64]:
    """Returns a column of whole numbers."""
    import pyarrow as pa

    try:
        column = table.read(columns=[name]).column(name)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); fetch it again") from error
    kind = str(column.type)
    with suppress(pa.ArrowException, ValueError, TypeError):
        found = column.to_numpy()
        kind = str(found.dtype)
        if np.issubdtype(found.dtype, np.integer):
            return np.asarray(found, dtype=np.int64)
    raise DataError(f"{path}: its labels are {kind}; they must be whole numbers, none missing")


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


@dataclass(frozen=True)
class HubSource(ImageSource):
    """``hf:NAME``, ``hf:NAME@CONFIGURATION`` or a folder; rows are mapped into memory and decoded when asked for."""

    name: str
    size: int | None = None

    def splits(self) -> Splits:
        """Opens the data set; class names are those of its features."""
        found = self._opened()
        test = next((name for name in TEST_NAMES if name in found), None)
        if "train" not in found or test is None:
            raise DataError(
                f"--data {self.name} has the splits {', '.join(found)}; it needs train and test (or validation): save "
                "it with splits of these names"
            )
        features = found["train"].features
        kinds = {name: type(feature).__name__ for name, feature in features.items()}
        image = next((name for name, kind in kinds.items() if kind == "Image"), None)
        label = next((name for name, kind in kinds.items() if kind == "ClassLabel"), None)
        if label is None and "label" in kinds:
            label = "label"
        if image is None or label is None:
            raise DataError(
                f"--data {self.name} has the columns {', '.join(kinds)}; it needs one of type Image and one of type "
                "ClassLabel: cast them"
            )
        made = []
        for split in ("train", test):
            labels = np.asarray(found[split].with_format("numpy")[label][:])
            if labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
                raise DataError(
                    f"--data {self.name}: its column {label} holds {labels.dtype}; labels are whole numbers from 0"
                )
            made.append(HubSplit(found[split], self.name, image, labels.astype(np.int64)))
        names = getattr(features[label], "names", None)
        classes = tuple(names) if names else tuple(str(i) for i in range(int(made[0].labels.max()) + 1))
        return Splits(self.name, made[0], made[1], classes)

    def _opened(self) -> Any:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise MissingError(
                f"--data {self.name} is read by the package datasets, which is not installed; type pip install "
                "'halpiee[datasets]'"
            ) from error
        name, _, configuration = self.name.removeprefix("hf:").partition("@")
        try:
            if not self.name.startswith("hf:"):
                return datasets.load_from_disk(str(Path(self.name)))
            return datasets.load_dataset(name, configuration or None)
        except Exception as error:  # of files, of the network, of the hub
            raise DataError(
                f"--data {self.name} cannot be opened ({type(error).__name__}: {said(error)}); check the name, or "
                "fetch it first and give its folder"
            ) from error
