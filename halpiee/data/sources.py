"""Where images come from: digits, Parquet files, class folders, torchvision's CIFAR, or a function.

A source answers twice: ``check()`` within a second or two, from file lists and a few decoded images;
``load()`` decodes everything. Both name the file or row that is wrong.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from halpiee.data.data import Summary, class_numbers
from halpiee.data.folders import FolderSource, ParquetSource
from halpiee.data.images import resized, shift_for
from halpiee.data.tensors import Augmentation, TensorData
from halpiee.errors import DataError, HalpieeError, MissingError

__all__ = ["CifarSource", "DigitsSource", "FunctionSource", "Source", "check", "find", "load"]


HINT = (
    "give digits, cifar10, cifar100, a folder of Parquet files, a folder with train/ and val/, "
    "or package.module:function"
)


class Source(Protocol):
    """A place images come from."""

    def check(self) -> Summary:
        """Looks whether loading would work, without decoding everything."""
        ...

    def load(self) -> TensorData:
        """Decodes everything."""
        ...


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
        if any(path.rglob("*.parquet")):
            return ParquetSource(path, size)
        return FolderSource(path, size)
    if path.exists():
        raise DataError(f"--data {source!r} is a file, not a folder; {HINT}")
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

    Args:
        source: as for ``load``.
        size: as for ``load``.

    Raises:
        DataError: as ``load``, as far as a look at the file lists and a few images can tell.
    """
    return find(source, size).check()


@dataclass(frozen=True)
class DigitsSource:
    """scikit-learn's 1,797 handwritten digits (8 × 8, they come inside its wheel), upsampled, three channels.

    Every fifth image of each class, in the data set's order, is a test image.
    """

    size: int = 16

    def check(self) -> Summary:
        """Looks whether scikit-learn is installed."""
        if importlib.util.find_spec("sklearn") is None:
            raise MissingError(
                "--data digits needs scikit-learn, which is not installed; pip install scikit-learn"
            )
        return Summary("digits", 1442, 355, 10, (3, self.size, self.size))

    def load(self) -> TensorData:
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
class CifarSource:
    """torchvision's CIFAR-10 or CIFAR-100, downloaded once into the user's cache folder."""

    name: str
    size: int | None = None

    def check(self) -> Summary:
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

    def load(self) -> TensorData:
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


@dataclass(frozen=True)
class FunctionSource:
    """``package.module:function``: returns ``Data``, or (train, test), each (images, labels) or a dataset."""

    name: str
    size: int | None = None

    def check(self) -> Summary:
        """Finds the function without calling it."""
        self._function()
        return Summary(self.name)

    def load(self) -> TensorData:
        """Calls the function."""
        function = self._function()
        try:
            result = function()
        except HalpieeError:
            raise
        except Exception as error:
            raise DataError(
                f"--data {self.name}: the function ended in {type(error).__name__}{_said(error)}; mend it, or call it "
                "in Python to see where"
            ) from error
        if isinstance(result, TensorData):
            return result
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise DataError(
                f"--data {self.name}: the function returned {type(result).__name__}; "
                "it must return (train, test), each (images, labels) or a dataset of (image, label)"
            )
        (train_x, train_y), (test_x, test_y) = (self._tensors(split) for split in result)
        names = getattr(result[0], "classes", None)
        try:
            classes = tuple(str(n) for n in names) if names is not None and len(names) else ()
        except TypeError:
            classes = ()
        classes = classes or class_numbers(train_y, self.name)
        augmentation = Augmentation(shift=shift_for(train_x.shape[-1]) if train_x.ndim else 0)
        return TensorData(self.name, train_x, train_y, test_x, test_y, classes, augmentation)

    def _function(self) -> Callable[[], Any]:
        module_name, _, function_name = self.name.partition(":")
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # whatever the module does while it is imported
            raise DataError(
                f"--data {self.name}: the module {module_name!r} cannot be imported "
                f"({'' if isinstance(error, ImportError) else type(error).__name__ + ': '}{_short(error)}); "
                "run from the folder it lies in, or install it"
            ) from error
        function = getattr(module, function_name, None)
        if not callable(function):
            raise DataError(
                f"--data {self.name}: {module_name!r} has no function {function_name!r}; "
                "give package.module:function"
            )
        result: Callable[[], Any] = function
        return result

    def _tensors(self, split: Any) -> tuple[Tensor, Tensor]:
        """Returns images and labels of one split: as given, or item by item from a dataset."""
        if isinstance(split, tuple | list) and len(split) == 2 and hasattr(split[0], "shape"):
            try:
                x, y = (torch.as_tensor(part) for part in split)
            except Exception as error:
                raise DataError(
                    f"--data {self.name}: images and labels are no tensors of numbers{_said(error)}; return arrays or "
                    "tensors"
                ) from error
        else:
            try:
                items = [split[i] for i in range(len(split))]
                x = torch.stack([_as_tensor(image) for image, _ in items])
                labels = [_as_tensor(label).squeeze() for _, label in items]
                y = torch.stack(labels if all(y.ndim == 0 for y in labels) else labels[:1])
            except Exception as error:  # whatever a dataset does while it is read
                raise DataError(
                    f"--data {self.name}: a split is neither (images, labels) nor a dataset of equally large "
                    f"(image, label) pairs ({_short(error)}); return one of the two"
                ) from error
        if x.is_floating_point():
            x = x.float()
        if y.is_complex() or x.is_complex():
            raise DataError(f"--data {self.name}: images or labels are complex numbers; return real ones")
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


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "halpiee" / "data"


def _short(error: Exception) -> str:
    """Returns what an exception says, on one line."""
    return " ".join(str(error).split())[:300]


def _said(error: Exception) -> str:
    return f" ({_short(error)})" if str(error).strip() else ""


def _as_tensor(image: Any) -> Tensor:
    """Returns ``[C, H, W]`` of a tensor, an array or a PIL image (uint8, three channels)."""
    if isinstance(image, Tensor):
        return image
    if hasattr(image, "convert"):
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return torch.as_tensor(image)
