"""From a ``--data`` argument to its source, and with the options of loading to the data that a run trains on.

Digits and torchvision's CIFAR, which are one file each, are sources of this file.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halpiee.data.archives import HubSource, ParquetSource, TarSource
from halpiee.data.data import Data, Summary, class_numbers, inputs_in
from halpiee.data.folders import FolderSource
from halpiee.data.functions import FunctionSource
from halpiee.data.images import resized, shift_for
from halpiee.data.loaded import IMAGENET, LoadedData, Mix, as_given, fixed, random
from halpiee.data.loading import Loading
from halpiee.data.source import DatasetSplit, Source, Splits, TensorSplit
from halpiee.data.tensors import Augmentation, TensorData
from halpiee.errors import DataError, MissingError

HINT = (
    "give digits, cifar10, cifar100, a folder of Parquet files or tars, a folder with train/ and val/, hf:NAME, "
    "or package.module:function"
)


def find(source: str, size: int | None = None) -> Source:
    """Returns the source that a ``--data`` argument names; an existing folder comes before ``a:b`` names.

    Raises:
        DataError: it names nothing that is known or there.
    """
    if size is not None and not 1 <= size <= 4096:
        raise DataError(f"--size {size} was asked; it must be between 1 and 4096 pixels")
    if source == "digits":
        return DigitsSource(16 if size is None else size)
    if source in ("cifar10", "cifar100"):
        return CifarSource(source, size)
    path = Path(source).expanduser()
    if path.is_dir():
        try:
            os.listdir(path)
        except OSError as error:
            raise DataError(f"--data {source!r} cannot be read ({error}); check its permissions") from error
        if (path / "dataset_dict.json").is_file():
            return HubSource(str(path), size)
        deep = not (
            path / "train"
        ).is_dir()  # else it is a folder per class, and ImageNet has a million files
        for ending, kind in (("parquet", ParquetSource), ("tar", TarSource)):
            if any(path.rglob(f"*.{ending}") if deep else (path / "train").glob(f"*.{ending}")):
                return kind(path, size)
        return FolderSource(path, size)
    if path.exists():
        raise DataError(f"--data {source!r} is a file, not a folder; {HINT}")
    if source.startswith("hf:"):
        return HubSource(source, size)
    module, _, name = source.partition(":")
    if name and all(part.isidentifier() for part in module.split(".")) and name.isidentifier():
        return FunctionSource(source, size)
    raise DataError(f"--data {source!r}: there is no such folder and no data set of that name; {HINT}")


def load(source: str, *, size: int | None = None) -> TensorData:
    """Loads and decodes a data source.

    Args:
        source: ``digits``; ``cifar10`` or ``cifar100`` (torchvision's, downloaded when they are not there); a
            folder of ``train*.parquet`` and ``test*.parquet`` files in the Hugging Face layout; a folder with
            ``train/`` and ``val/`` or ``test/``, each with one folder per class; or
            ``package.module:function``, which returns (train, test), each a pair of tensors or a dataset.
        size: height and width to bring the images to: shorter side scaled (bilinear), centre cut out. Needed
            where images differ in size; digits are 16 × 16 by default.

    Raises:
        DataError: the source is missing, empty, unreadable, corrupted (which file), or does not fit together.
    """
    return find(source, size).load()


def check(source: str, *, size: int | None = None) -> Summary:
    """Looks whether a source can be loaded, in a second or two: files are there, a few of them decode.

    Raises:
        DataError: as ``load``, as far as a look at the file lists and a few images can tell.
    """
    return find(source, size).check()


@dataclass(frozen=True)
class DigitsSource(Source):
    """scikit-learn's 1,797 handwritten digits (8 × 8, they come inside its wheel), upsampled, three channels.

    Every fifth image of each class, in the data set's order, is a test image.
    """

    size: int = 16

    def check(self, *, bad: int = 0) -> Summary:
        """Looks whether scikit-learn is installed."""
        if importlib.util.find_spec("sklearn") is None:
            raise MissingError(
                "--data digits needs scikit-learn, which is not installed; pip install scikit-learn"
            )
        return Summary("digits", 1442, 355, 10, (3, self.size, self.size))

    def load(self, *, bad: int = 0) -> TensorData:
        """Upsamples and splits the digits."""
        self.check()
        from sklearn.datasets import load_digits

        bunch = load_digits()
        labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
        images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32))[:, None] * (255.0 / 16.0)
        images = torch.nn.functional.interpolate(
            images, size=(self.size, self.size), mode="bilinear", align_corners=False
        )
        pixels = images.round().clamp(0, 255).to(torch.uint8).repeat(1, 3, 1, 1)
        test = torch.zeros(len(labels), dtype=torch.bool)
        for label in range(10):
            test[(labels == label).nonzero()[4::5, 0]] = True
        return TensorData(
            name="digits",
            train_x=pixels[~test],
            train_y=labels[~test],
            test_x=pixels[test],
            test_y=labels[test],
            classes=tuple(str(i) for i in range(10)),
            augmentation=Augmentation(flip=False, shift=shift_for(self.size)),
        )


@dataclass(frozen=True)
class CifarSource(Source):
    """torchvision's CIFAR-10 or CIFAR-100, downloaded once into the user's cache folder."""

    name: str
    size: int | None = None

    def check(self, *, bad: int = 0) -> Summary:
        """Looks whether the files are there, or else the network."""
        import urllib.request

        dataset = self._dataset()
        if not (_cache() / dataset.base_folder).is_dir():
            try:
                request = urllib.request.Request(dataset.url, method="HEAD")
                urllib.request.urlopen(request, timeout=2).close()
            except OSError as error:
                raise self._unreachable(error) from error
        side = self.size or 32
        return Summary(self.name, 50_000, 10_000, 10 if self.name == "cifar10" else 100, (3, side, side))

    def load(self, *, bad: int = 0) -> TensorData:
        """Downloads what is missing and reads it."""
        kind = self._dataset()
        parts = []
        for train in (True, False):
            try:
                part = kind(root=str(_cache()), train=train, download=True)
            except (OSError, RuntimeError) as error:
                raise self._unreachable(error) from error
            x = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
            parts.append((resized(x, self.size), torch.tensor(part.targets)))
        (train_x, train_y), (test_x, test_y) = parts
        augmentation = Augmentation(shift=shift_for(train_x.shape[-1]))
        return TensorData(self.name, train_x, train_y, test_x, test_y, tuple(part.classes), augmentation)

    def _dataset(self) -> Any:
        try:
            from torchvision import datasets
        except (ImportError, RuntimeError) as error:
            raise MissingError(
                f"--data {self.name} is read by torchvision, which cannot be imported ({error}); "
                "pip install torchvision in the build that belongs to your torch"
            ) from error
        return datasets.CIFAR10 if self.name == "cifar10" else datasets.CIFAR100

    def _unreachable(self, error: Exception) -> DataError:
        return DataError(
            f"--data {self.name} is not in {_cache()} and could not be downloaded ({error}); "
            "connect to a network, or give a folder of Parquet files or images"
        )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "halpiee" / "data"


SMALL_BYTES = 2 * 10**9
"""Decoded images that stay on the device of the training; CIFAR takes 0.2 GB, TinyImageNet 1.4 GB."""


def open_data(source: Source, loading: Loading | None = None, *, kind: str = "class") -> Data:
    """Returns data that are ready to be trained on.

    ``kind`` is that of the targets, where the source does not say it: ``class``, ``mask`` or ``boxes``.

    Raises:
        DataError: it is missing, empty, unreadable, corrupted (which file), or does not fit together.
    """
    loading = loading or Loading()
    if isinstance(source, FunctionSource):
        found = source.found()
        if isinstance(found, TensorData):
            return _in_memory(found, loading) if not _one_by_one(loading) else _of_tensors(found, loading)
        if isinstance(found, Data):
            return found
        return _of_datasets(source, found, loading, kind)
    splits = source.splits()
    if splits is None:
        data = source.load(bad=loading.bad_images)
        return _of_tensors(data, loading) if _one_by_one(loading) else _in_memory(data, loading)
    summary = source.check(bad=loading.bad_images)
    if splits.kind == "class" and not _one_by_one(loading) and _stays(summary, loading):
        return _in_memory(source.load(bad=loading.bad_images), loading)
    assert summary.shape is not None
    return _from_files(splits, loading, summary.shape, source.size)


def _one_by_one(loading: Loading) -> bool:
    """Whether images have to be changed one at a time."""
    return loading.keep == "files" or bool({"crop", "jitter", "randaugment"} & set(loading.changes or ()))


def _stays(summary: Summary, loading: Loading) -> bool:
    """Whether all decoded images stay in memory.

    Raises:
        DataError: they were asked to, and memory is too small.
    """
    assert summary.shape is not None
    size_bytes = ((summary.n_train or 0) + (summary.n_test or 0)) * math.prod(summary.shape)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if loading.keep == "memory" and size_bytes > 0.8 * memory_bytes:
        raise DataError(
            f"--data {summary.name!r} needs {size_bytes / 1e9:.1f} GB decoded, this machine has "
            f"{memory_bytes / 1e9:.1f} GB of memory; give --keep files, or a smaller --size"
        )
    return loading.keep == "memory" or size_bytes <= min(SMALL_BYTES, 0.25 * memory_bytes)


def _in_memory(data: TensorData, loading: Loading) -> TensorData:
    """Returns tensors with the random changes and the normalisation that were asked for."""
    changes = loading.changes
    if changes is not None:
        shift = shift_for(data.shape[-1]) if "shift" in changes else 0
        mix = _mix(changes, data.n_classes)
        data = replace(data, augmentation=Augmentation("flip" in changes, shift), mix=mix)
    if loading.normalise == "imagenet":
        mean, std = (torch.tensor(values) for values in IMAGENET)
        data = replace(data, mean=mean, std=std)
    return data


def _of_tensors(data: TensorData, loading: Loading) -> LoadedData:
    """Returns tensors whose images are changed one at a time by workers."""
    train, test = TensorSplit(data.train_x, data.train_y), TensorSplit(data.test_x, data.test_y)
    assert data.mean is not None
    assert data.std is not None
    own = ("flip",) * data.augmentation.flip + ("shift",) * bool(data.augmentation.shift)
    changes = own if loading.changes is None else loading.changes
    size = data.shape[1:]
    return LoadedData(
        Splits(data.name, train, test, data.classes),
        data.shape,
        change=random(changes, size, shift_for(size[-1]), resize=False),
        fixed=fixed(None),
        loading=loading,
        mix=_mix(changes, data.n_classes),
        statistics=IMAGENET if loading.normalise == "imagenet" else (data.mean.tolist(), data.std.tolist()),
    )


def _from_files(
    splits: Splits, loading: Loading, shape: tuple[int, int, int], size: int | None
) -> LoadedData:
    """Returns examples that stay in their files."""
    kind, usual = splits.kind, ("flip",) if splits.kind == "boxes" else ("flip", "crop")
    changes = usual if loading.changes is None else loading.changes
    return LoadedData(
        splits,
        shape,
        change=random(changes, shape[1:], shift_for(shape[-1]), kind=kind, resize=size is not None),
        fixed=fixed(size, kind),
        loading=loading,
        mix=_mix(changes, len(splits.classes)) if kind == "class" else None,
        statistics=None if loading.normalise == "data" else IMAGENET,
    )


def _of_datasets(source: FunctionSource, splits: Splits, loading: Loading, kind: str) -> Data:
    """Returns datasets of one's own: in memory where they are small and do not change images, else as they are."""
    splits = replace(splits, kind=kind)
    try:
        image, _ = splits.train.read(0)
        if isinstance(image, Mapping | tuple | list):
            asked = loading.augment or loading.normalise or source.size
            if asked not in (None, "none"):
                raise DataError(
                    f"--data {splits.name} gives several inputs, which are taken as they come, and {asked} was asked; "
                    "change them in the function, and leave the option out"
                )
            inputs = inputs_in(as_given(image)[0])
            first: Any = inputs[0].shape
            several = LoadedData(_named(splits), first, change=as_given, fixed=as_given, loading=loading)
            several.inputs = inputs
            return several
        again, _ = splits.train.read(0)
        same = torch.equal(*(_tensor(one) for one in (image, again)))
        shape = tuple(_tensor(image).shape)
        size_bytes = (len(splits.train) + len(splits.test)) * 4 * math.prod(shape)
    except DataError:
        raise
    except Exception:  # no dataset: the reader says what is wrong
        return source.whole(splits)
    if kind == "class" and same and size_bytes <= SMALL_BYTES and not _one_by_one(loading):
        return _in_memory(source.whole(splits), loading)
    if loading.changes is None and kind == "class":
        loading = replace(loading, augment="none")
    side = source.size
    given: tuple[int, int, int] = (int(shape[0]), side or int(shape[1]), side or int(shape[2]))
    return _from_files(_named(splits), loading, given, side)


def _named(splits: Splits) -> Splits:
    """Returns datasets with names of their classes: numbers, where they have none."""
    if splits.classes:
        return splits
    assert isinstance(splits.train, DatasetSplit)
    return replace(splits, classes=class_numbers(splits.train.targets(), splits.name))


def _tensor(image: object) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    return image if isinstance(image, torch.Tensor) else functional.pil_to_tensor(image)


def _mix(changes: Sequence[str], n_classes: int) -> Mix | None:
    names = [name for name in changes if name in ("mixup", "cutmix")]
    return Mix(names, n_classes) if names else None
