"""``package.module:function``: a user's own tensors, datasets or loaders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from halpiee.data.data import Data, Summary, check_batch, class_numbers, seed_of
from halpiee.data.images import resized, shift_for
from halpiee.data.source import DatasetSplit, Source, Splits
from halpiee.data.tensors import Augmentation, TensorData
from halpiee.errors import DataError, HalpieeError, UsageError, said
from halpiee.zoo.registry import named_code


@dataclass(frozen=True)
class FunctionSource(Source):
    """``package.module:function``: returns ``Data``, or (train, test), each (images, labels) or a dataset.

    A dataset may give several inputs in place of an image: a tuple in forward's order, or a dict by its arguments.
    """

    name: str
    size: int | None = None

    def check(self, *, bad: int = 0) -> Summary:
        """Finds the function without calling it."""
        named_code(self.name, "--data", DataError)
        return Summary(self.name)

    def splits(self) -> Splits | None:
        """Calls the function; returns the examples where it returns datasets, None where it returns tensors."""
        found = self.found()
        return found if isinstance(found, Splits) else None

    def load(self, *, bad: int = 0) -> TensorData:
        """Calls the function, and reads every example of datasets."""
        found = self.found()
        if isinstance(found, TensorData):
            return found
        if isinstance(found, Data):
            raise DataError(
                f"--data {self.name}: the function returned {type(found).__name__}, which lies in no memory"
            )
        return self.whole(found)

    def found(self) -> Data | Splits:
        """Calls the function and returns what it gives: data that are ready, or datasets to read examples of."""
        function = named_code(self.name, "--data", DataError)
        try:
            result = function()
        except HalpieeError:
            raise
        except Exception as error:
            raise DataError(
                f"--data {self.name}: the function ended in {type(error).__name__}{_said(error)}; mend it, or call it "
                "in Python to see where"
            ) from error
        if isinstance(result, Data):
            return result
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise DataError(
                f"--data {self.name}: the function returned {type(result).__name__}; "
                "it must return (train, test), each (images, labels) or a dataset of (image, label)"
            )
        classes: tuple[str, ...] = ()
        with suppress(TypeError, AttributeError):
            names = getattr(result[0], "classes", None)
            classes = tuple(map(str, result[0].dataset.classes if names is None else names))
        if all(isinstance(split, DataLoader) for split in result):
            return LoaderData(self.name, result[0], result[1], classes)
        if all(_are_tensors(split) for split in result):
            (train_x, train_y), (test_x, test_y) = (self._tensors(*split) for split in result)
            return self._data(train_x, train_y, test_x, test_y, classes)
        train, test = (DatasetSplit(split, self.name) for split in result)
        return Splits(self.name, train, test, classes)

    def whole(self, found: Splits) -> TensorData:
        """Returns datasets as tensors.

        Raises:
            DataError: they are no datasets, or their examples do not make tensors.
        """
        parts: list[Tensor] = []
        for split in (found.train, found.test):
            try:
                items = [split.read(i) for i in range(len(split))]
                x = torch.stack([_as_tensor(image) for image, _ in items])
                labels = [_as_tensor(label).squeeze() for _, label in items]
                y = torch.stack(labels if len({y.shape for y in labels}) == 1 else labels[:1])
            except Exception as error:  # whatever a dataset does while it is read
                raise DataError(
                    f"--data {self.name}: a split is neither (images, labels) nor a dataset of equally large "
                    f"(image, label) pairs ({said(error)}); return one of the two"
                ) from error
            parts += self._tensors(x, y)
        return self._data(parts[0], parts[1], parts[2], parts[3], found.classes)

    def _data(
        self, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, classes: tuple[str, ...]
    ) -> TensorData:
        if train_y.ndim == 2:
            classes = classes or tuple(str(i) for i in range(train_y.shape[1]))
        classes = classes or class_numbers(train_y, self.name)
        augmentation = Augmentation(shift=shift_for(train_x.shape[-1]) if train_x.ndim else 0)
        return TensorData(self.name, train_x, train_y, test_x, test_y, classes, augmentation)

    def _tensors(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Returns images and labels of one split."""
        try:
            x, y = torch.as_tensor(x), torch.as_tensor(y)
        except Exception as error:
            raise DataError(
                f"--data {self.name}: images and labels are no tensors of numbers{_said(error)}; return arrays or "
                "tensors"
            ) from error
        if x.is_floating_point():
            x = x.float()
        if y.is_complex() or x.is_complex():
            raise DataError(f"--data {self.name}: images or labels are complex numbers; return real ones")
        if y.ndim == 2 and bool(((y >= 0) & (y <= 1)).all()) and y.shape[1] > 1:
            return resized(x, self.size), y.float()  # a share of each class, or several classes per image
        if y.ndim != 1 or (y.is_floating_point() and not bool((y == y.round()).all())):
            kind = "numbers between classes" if y.ndim == 1 else f"of shape {list(y.shape[1:])} per image"
            raise DataError(
                f"--data {self.name}: the labels are {kind}; `halpiee train` trains classifiers, with one class number "
                "per image; for other tasks attach halpiee.IEE in your own loop (README)"
            )
        if y.is_floating_point() and len(y) and float(y.abs().max()) >= 2**53:
            raise DataError(
                f"--data {self.name}: a label is {float(y.abs().max()):g}; number the classes from 0"
            )
        return resized(x, self.size), y.long()


class LoaderData(Data):
    """Loaders of one's own: their batches as they come, already normalised.

    The batch size is that of ``train``; ``test`` gives each test example once. Without ``classes`` the labels of the
    test batches tell their number.
    """

    def __init__(
        self, name: str, train: DataLoader[Any], test: DataLoader[Any], classes: tuple[str, ...]
    ) -> None:
        self.name, self._train, self._test, self._device = name, train, test, torch.device("cpu")
        try:
            x, _ = next(iter(test))
            self._shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
            self._steps = len(train)
        except Exception as error:
            raise DataError(
                f"--data {name}: the loaders do not give batches of (images [B, C, H, W], targets) and their number"
                f"{_said(error)}; return such ones"
            ) from error
        self.classes = classes or tuple(str(i) for i in range(1 + max(int(y.max()) for _, y in test)))

    @property
    def n_train(self) -> int:
        """Number of training examples in full batches."""
        return self._steps * int(self._train.batch_size or 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return self._shape

    def to(self, device: torch.device | str) -> LoaderData:
        """Puts the batches on a device."""
        self._device = torch.device(device)
        return self

    def sharded(self, rank: int, ranks: int) -> LoaderData:
        """Refuses several processes, whose parts a loader of one's own does not know."""
        if ranks > 1:
            raise UsageError(
                f"--data {self.name} gives loaders, and {ranks} processes were started; return datasets: they are "
                "dealt out to processes"
            )
        return self

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns the number of batches that the training loader has."""
        check_batch(batch_size)
        return self._steps

    def batches(
        self, epoch: int, batch_size: int, *, seed: int = 0, augment: bool = True, start: int = 0
    ) -> Iterator[tuple[Any, Any]]:
        """Yields the loader's batches; torch's generator starts from (seed, epoch), and skipped ones are read."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, epoch))
            found = iter(self._train)
            state = torch.get_rng_state()
        for step in range(self._steps):
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                x, y = next(found)
                state = torch.get_rng_state()
            if step >= start:
                yield x.to(self._device), y.to(self._device)

    def test_batches(self, batch_size: int) -> Iterator[tuple[Any, Any]]:
        """Yields the test loader's batches."""
        for x, y in self._test:
            yield x.to(self._device), y.to(self._device)

    def at(self, index: Tensor) -> tuple[Any, Any]:
        """Returns as many examples as were asked for, the first of an epoch: a loader has no numbers."""
        xs, ys, wanted = [], [], len(index)
        for x, y in self.batches(0, 1):
            xs.append(x)
            ys.append(y)
            if sum(map(len, xs)) >= wanted:
                break
        y = [one for many in ys for one in many] if isinstance(ys[0], list) else torch.cat(ys)
        return torch.cat(xs)[:wanted], y[:wanted]


def _are_tensors(split: Any) -> bool:
    return isinstance(split, tuple | list) and len(split) == 2 and hasattr(split[0], "shape")


def _said(error: Exception) -> str:
    return f" ({said(error)})" if str(error).strip() else ""


def _as_tensor(image: Any) -> Tensor:
    """Returns ``[C, H, W]`` of a tensor, an array or a PIL image (uint8, three channels)."""
    if isinstance(image, Tensor):
        return image
    if hasattr(image, "convert"):
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return torch.as_tensor(image)
