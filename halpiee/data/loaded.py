"""Examples that are read anew every epoch by worker processes: data of any size.

A batch is found by its number: (seed, epoch) give the order, (seed, epoch, example) the random changes of an example.
So an interrupted epoch goes on at its next batch bit for bit, with any number of workers, and nothing has to be saved.
The random changes, and what brings every example to one size, are torchvision's ``transforms.v2``.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from halpiee.data.data import Data, check_batch, seed_of
from halpiee.data.loading import Loading
from halpiee.data.source import Split, Splits
from halpiee.errors import DataError

RESIZED = 256 / 224
"""The shorter side is scaled to so many times the size before the centre is cut out (ImageNet's usual test)."""
COLOURS = 0.4
"""Largest relative change of brightness, contrast and saturation by ``jitter``."""
MIXUP, CUTMIX = 0.2, 1.0
"""Parameters of the beta distributions: Zhang et al. 2018 (ImageNet), Yun et al. 2019."""

Change = Any
"""A transform of (image, target)."""


def fixed(size: int | None, kind: str = "class") -> Change:
    """Returns the transform of test images.

    Images without a ``size`` stay as large as they are; those with masks or boxes are brought to it whole, so that
    every pixel and box is judged.
    """
    if size is None:
        return v2.Compose([v2.ToImage()])
    if kind != "class":
        return v2.Compose([v2.ToImage(), v2.Resize((size, size))])
    return v2.Compose([v2.Resize(round(size * RESIZED)), v2.CenterCrop(size), v2.ToImage()])


def random(
    changes: Collection[str], size: tuple[int, int], shift: int, *, kind: str = "class", resize: bool = True
) -> Change:
    """Returns the random transform of training images.

    ``changes`` are of ``flip``, ``shift``, ``crop``, ``jitter``, ``randaugment``; the size is (height, width) of the
    output, the shift at most so many pixels; ``resize``: images that are not cropped have to be brought to the size.
    """
    steps: list[Any] = []
    if "jitter" in changes:
        steps.append(v2.ColorJitter(COLOURS, COLOURS, COLOURS))
    if "crop" in changes and kind == "boxes":
        steps.append(v2.RandomIoUCrop())
    elif "crop" in changes:
        scale = (0.08, 1.0) if kind == "class" else (0.25, 1.0)
        steps.append(v2.RandomResizedCrop(size, scale=scale, antialias=True))
    elif kind == "class" and resize:
        steps += [v2.Resize(min(size)), v2.CenterCrop(size)]
    if kind == "boxes" or (kind == "mask" and "crop" not in changes):
        steps.append(v2.Resize(size))
    if "flip" in changes:
        steps.append(v2.RandomHorizontalFlip())
    if "shift" in changes:
        steps.append(v2.RandomCrop(size, padding=shift))
    if "randaugment" in changes:
        steps.append(v2.RandAugment())
    if kind == "boxes":
        steps += [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()]
    return v2.Compose([*steps, v2.ToImage()])


def changed(change: Change, image: Any, target: Any) -> tuple[Tensor, Any]:
    """Returns a transformed example: a tensor ``[C, H, W]``, and its target without torchvision's subclasses."""
    if isinstance(image, Tensor) and not isinstance(image, tv_tensors.Image):
        image = tv_tensors.Image(image)
    image, target = change(image, target)
    if isinstance(target, dict):
        target = {key: _plain(value) for key, value in target.items()}
    return _plain(image), _plain(target)


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Tensor) else value


class Mix:
    """``mixup`` or ``cutmix`` of a batch, on its device; where both are named, each batch draws one of them."""

    def __init__(self, names: Sequence[str], n_classes: int) -> None:
        kinds: dict[str, Any] = {"mixup": (v2.MixUp, MIXUP), "cutmix": (v2.CutMix, CUTMIX)}
        self._kinds = [kinds[name][0](alpha=kinds[name][1], num_classes=n_classes) for name in names]

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Returns mixed images and soft targets ``[B, classes]``, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kind = self._kinds[int(torch.randint(len(self._kinds), (1,)))]
            x, y = kind(x, y)
        return _plain(x), _plain(y)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's training images, per channel of 0–1."""
SAMPLE = 512
"""Images that mean and deviation are taken of."""
TRIES = 20
"""Examples in a row that may be unreadable before a batch is given up."""

Batch = tuple[Any, Any, list[str]]
"""Images, targets, and what was unreadable."""
Key = tuple[int, int, bool]
"""Of a batch: epoch, step, and whether its images are changed at random."""


class LoadedData(Data):
    """A training and a test set that stay in their files.

    ``shape`` is that of one image, as it comes out of ``change``, the random transform of training examples; ``fixed``
    is that of test examples and of those that are scored on; ``mix`` changes whole batches. Without ``statistics`` mean
    and deviation per channel are those of a sample of the training images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        splits: Splits,
        shape: tuple[int, int, int],
        *,
        change: Change,
        fixed: Change,
        loading: Loading,
        mix: Mix | None = None,
        statistics: tuple[Iterable[float], Iterable[float]] | None = IMAGENET,
    ) -> None:
        self.name, self.classes, self._shape = splits.name, splits.classes, shape
        self.train, self.test = splits.train, splits.test
        self._change, self._fixed, self._loading, self.mix = change, fixed, loading, mix
        self._device = torch.device("cpu")
        self._loaders: dict[tuple[int, int], tuple[list[Key], Any]] = {}
        self._bad: dict[str, None] = {}
        mean, std = self._measured() if statistics is None else (torch.tensor(tuple(s)) for s in statistics)
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)

    @property
    def n_train(self) -> int:
        """Number of training examples."""
        return len(self.train)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return self._shape

    @property
    def labels(self) -> Tensor | None:
        """The class of every training example; None: only reading tells."""
        return None if self.train.labels is None else torch.from_numpy(self.train.labels)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence on every example that was left out so far."""
        return tuple(self._bad)

    @property
    def preprocess(self) -> dict[str, Any]:
        """What a network of these data is given; ``resize`` is that of the images that are judged."""
        if self.inputs:
            return super().preprocess
        steps = (getattr(step, "size", None) for step in self._fixed.transforms)
        return super().preprocess | {"resize": next((list(size) for size in steps if size is not None), None)}

    def to(self, device: torch.device | str) -> LoadedData:
        """Returns the same data; its batches are put on a device."""
        other = self._copy()
        other._device = torch.device(device)
        other.mean, other.std = self.mean.to(device), self.std.to(device)
        return other

    def sharded(self, rank: int, ranks: int) -> LoadedData:
        """Returns the part of each batch that one of several processes trains on."""
        other = self._copy()
        other.rank, other.ranks = rank, ranks
        return other

    def batches(
        self, epoch: int, batch_size: int, *, seed: int = 0, augment: bool = True, start: int = 0
    ) -> Iterator[tuple[Any, Any]]:
        """Yields the training batches of one epoch; see ``Data.batches``. Skipped ones are not read."""
        steps = self.steps_per_epoch(batch_size)
        keys, loader = self._loader(batch_size, seed)
        keys[:] = [(epoch, step, augment) for step in range(start, steps)]
        for step, batch in enumerate(loader, start):
            x, y = self._arrived(batch)
            if augment and self.mix is not None:
                x, y = self.mix(x, y, seed_of(seed, epoch, step, self.rank, 1))
            yield x, y

    def test_batches(self, batch_size: int) -> Iterator[tuple[Any, Any]]:
        """Yields the test examples of this process in order, normalised."""
        check_batch(batch_size)
        parts: Any = torch.split(torch.arange(self.rank, len(self.test), self.ranks), batch_size)
        options = self._options(min(self._workers, len(parts)))
        reader: Any = _Reader(self.test, self._fixed)
        for batch in DataLoader(parts, batch_size=None, collate_fn=reader, **options):
            if len(batch[0]) or batch[2]:
                x, y = self._arrived(batch)
                if len(x):
                    yield x, y

    def at(self, index: Tensor) -> tuple[Any, Any]:
        """Returns training examples by their numbers, not changed at random."""
        return self._arrived(_Reader(self.train, self._fixed)(index))

    @property
    def _workers(self) -> int:
        if self._loading.workers is not None:
            return self._loading.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, max(1, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1))))

    def _options(self, workers: int) -> dict[str, Any]:
        return {
            "num_workers": workers,
            "prefetch_factor": self._loading.prefetch if workers else None,
            "pin_memory": self._device.type == "cuda",
            "generator": torch.Generator(),  # else a loader draws from the global one
        }

    def _loader(self, batch_size: int, seed: int) -> tuple[list[Key], Any]:
        """Returns the keys of the batches to load next, and the loader, whose workers stay from epoch to epoch."""
        found = self._loaders.get((batch_size, seed))
        if found is None:
            keys: list[Key] = []
            readers = {True: _Reader(self.train, self._change), False: _Reader(self.train, self._fixed)}
            batches = _Batches(self.train, readers, batch_size, seed, self.rank, self.ranks)
            options = {**self._options(self._workers), "persistent_workers": self._workers > 0}
            loader = DataLoader(batches, batch_size=None, sampler=keys, **options)
            self._loaders.clear()
            found = self._loaders[batch_size, seed] = (keys, loader)
        return found

    def _arrived(self, batch: Batch) -> tuple[Any, Any]:
        """Returns a batch on the device, normalised; refuses more unreadable examples than are allowed."""
        x, y, bad = batch
        self._bad.update(dict.fromkeys(bad))
        limit = self._loading.bad_images
        if len(self._bad) > limit or x is None:
            shown = "; ".join(list(self._bad)[:3])
            more = f" and {len(self._bad) - 3} more" if len(self._bad) > 3 else ""
            raise DataError(
                f"data {self.name!r}: {len(self._bad)} examples could not be used, and --bad-images allows {limit} "
                f"({shown}{more}); mend them, or allow more"
            )
        x = _moved(x, self._device)
        return as_given(x)[0] if self.inputs else self.normalised(x), _moved(y, self._device)

    def _measured(self) -> tuple[Tensor, Tensor]:
        """Returns mean and deviation of a sample of the training images."""
        generator = torch.Generator().manual_seed(0)
        index = torch.randperm(len(self.train), generator=generator)[:SAMPLE].sort().values
        total = squares = torch.zeros(self._shape[0], dtype=torch.float64)
        n = 0
        for part in torch.split(index, 32):
            x, _, bad = _Reader(self.train, self._fixed)(part)
            if x is None or not len(x):
                continue
            pixels = x.double().div(255.0 if x.dtype == torch.uint8 else 1.0).transpose(0, 1).flatten(1)
            total, squares = total + pixels.sum(1), squares + pixels.square().sum(1)
            n += pixels.shape[1]
            self._bad.update(dict.fromkeys(bad))
        if not n:
            raise DataError(
                f"data {self.name!r}: no image of {len(index)} could be read; {next(iter(self._bad))}"
            )
        mean = total / n
        std = (squares / n - mean.square()).clamp(min=0).sqrt()
        return mean.float(), torch.where(std > 1e-6, std, torch.ones_like(std)).float()

    def _copy(self) -> LoadedData:
        other = copy.copy(self)
        other._loaders = {}
        return other


def as_given(x: Any, target: Any = None) -> tuple[Any, Any]:
    """Returns several inputs as a tuple or a dictionary of tensors: of the former, loaders make lists."""
    return tree_map(torch.as_tensor, tuple(x) if isinstance(x, list) else x), target


class _Reader:
    """Reads examples and makes one batch of them; what is unreadable is left out and named."""

    def __init__(self, split: Split, change: Change) -> None:
        self._split, self._change = split, change

    def __call__(self, indices: Tensor) -> Batch:
        found, bad = [], []
        for index in indices.tolist():
            try:
                found.append(self.one(index))
            except DataError as error:
                bad.append(str(error))
        return collated(found, bad)

    def one(self, index: int) -> tuple[Tensor, Any]:
        """Returns one example."""
        return changed(self._change, *self._split.read(index))


class _Batches(Dataset[Batch]):
    """Training batches by their keys; runs in the workers."""

    def __init__(
        self, split: Split, readers: Mapping[bool, _Reader], batch_size: int, seed: int, rank: int, ranks: int
    ) -> None:
        self._split, self._readers, self._batch_size, self._seed = split, readers, batch_size, seed
        self._rank, self._ranks = rank, ranks
        self._order: tuple[int, Tensor] | None = None

    def __getitem__(self, key: Key) -> Batch:
        epoch, step, augment = key
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of(self._seed, epoch))
            self._order = epoch, self._split.order(generator)
        order = self._order[1]
        whole = order[step * self._batch_size * self._ranks :][: self._batch_size * self._ranks]
        share = max(1, len(whole) // self._ranks)
        found, bad = [], []
        with torch.random.fork_rng(devices=[]):
            for index in whole[self._rank * share :][:share].tolist():
                for other in range(index, index + TRIES):  # the next one takes the place of an unreadable one
                    try:
                        torch.manual_seed(seed_of(self._seed, epoch, index, 0))
                        found.append(self._readers[augment].one(other % len(order)))
                        break
                    except DataError as error:
                        bad.append(str(error))
        return collated(found, bad)


def collated(found: list[tuple[Tensor, Any]], bad: list[str]) -> Batch:
    """Returns examples as one batch; None in place of the images where their sizes differ."""
    if not found:
        return torch.zeros(0), torch.zeros(0), bad
    images, targets = [image for image, _ in found], [target for _, target in found]
    stacked: Any = targets
    if not isinstance(targets[0], dict):
        stacked = torch.stack([torch.as_tensor(target) for target in targets])
    sizes = sorted({tuple(tuple(one.shape) for one in tree_leaves(image)) for image in images})
    if len(sizes) > 1:
        shown = ", ".join("×".join(map(str, size[0][1:])) for size in sizes[:3])
        how = "give --size to bring them" if isinstance(images[0], Tensor) else "bring each input"
        return None, None, [*bad, f"images differ in size ({shown} …); {how} to one"]
    return tree_map(lambda *parts: torch.stack(parts), *images), stacked, bad


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    return value
