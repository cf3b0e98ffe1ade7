"""From a source and the options of loading to the data that a run trains on."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace

import torch

from halpiee.data.data import Data, Summary, class_numbers
from halpiee.data.functions import FunctionSource
from halpiee.data.images import shift_for
from halpiee.data.loaded import IMAGENET, LoadedData
from halpiee.data.options import Loading
from halpiee.data.source import Source, Splits
from halpiee.data.split import DatasetSplit, TensorSplit
from halpiee.data.tensors import Augmentation, TensorData
from halpiee.data.transforms import Mix, fixed, random
from halpiee.errors import DataError

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
    classes = splits.classes
    if not classes:
        assert isinstance(splits.train, DatasetSplit)
        classes = class_numbers(splits.train.targets(), splits.name)
    side = source.size
    given: tuple[int, int, int] = (int(shape[0]), side or int(shape[1]), side or int(shape[2]))
    return _from_files(replace(splits, classes=classes), loading, given, side)


def _tensor(image: object) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    return image if isinstance(image, torch.Tensor) else functional.pil_to_tensor(image)


def _mix(changes: Sequence[str], n_classes: int) -> Mix | None:
    names = [name for name in changes if name in ("mixup", "cutmix")]
    return Mix(names, n_classes) if names else None
