"""Labelled images in memory, and the batches a training run draws from them.

Everything is decoded once into uint8 tensors ``[N, 3, H, W]``; a batch is an index, a shift, a flip and an affine map.
All of an epoch's random numbers come from one generator seeded with (seed, epoch) and are drawn before its first batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from halpiee.data.data import Data, check_batch, seed_of
from halpiee.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image: a random horizontal flip and a random shift (CIFAR's usual pair).

    Attributes:
        flip: mirror every second image on average; off where mirrored images are other classes (digits).
        shift: largest shift in pixels, in each direction, along each axis.
        padding: what comes in at the border: black (``zero``) or the mirrored image (``reflect``).
    """

    flip: bool = True
    shift: int = 4
    padding: Literal["zero", "reflect"] = "zero"


@dataclass(frozen=True, eq=False)
class TensorData(Data):
    """A training and a test set in memory.

    Attributes: those of ``Data``, and
        train_x, test_x: ``[N, C, H, W]``, uint8 (0–255) or float32, of one C, H, W.
        train_y, test_y: int64 ``[N]``; float32 ``[N, classes]``: shares of the classes, or 0 and 1 for each.
        augmentation: what ``batches`` does to training images.
        mean: float32 ``[C]``, of the training images where it is left out, as ``std``.
        mix: changes a whole batch, by a seed.
        left_out: a sentence on every image that could not be read.

    Raises:
        DataError: a split is empty, shapes or lengths do not fit, or a label is out of range.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    mean: Tensor | None = None
    std: Tensor | None = None
    mix: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None
    left_out: tuple[str, ...] = ()
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        for split, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            _check_split(self.name, split, x, y, len(self.classes))
        if self.train_x.shape[1:] != self.test_x.shape[1:] or self.train_x.dtype != self.test_x.dtype:
            raise DataError(
                f"data {self.name!r}: training images are {_kind(self.train_x)}, "
                f"test images {_kind(self.test_x)}; both must be of one shape and dtype: "
                "give --size to resize them"
            )
        if (self.mean is None) != (self.std is None):
            raise DataError(f"data {self.name!r}: mean and std come together; give both or neither")
        if self.mean is None:
            mean, std = _statistics(self.train_x)
            object.__setattr__(self, "mean", mean)
            object.__setattr__(self, "std", std)

    @property
    def n_train(self) -> int:
        """Number of training images."""
        return len(self.train_y)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, c, h, w = self.train_x.shape
        return c, h, w

    def to(self, device: torch.device | str) -> TensorData:
        """Returns the same data with its tensors on another device; the batches stay the same."""
        names = ("train_x", "train_y", "test_x", "test_y", "mean", "std")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``left_out``."""
        return self.left_out

    @property
    def labels(self) -> Tensor | None:
        """The class of every training image; None: targets of several classes each."""
        return self.train_y if self.train_y.ndim == 1 else None

    def sharded(self, rank: int, ranks: int) -> TensorData:
        """Returns the part of each batch that one of several processes trains on; see ``Data.sharded``."""
        return replace(self, rank=rank, ranks=ranks)

    def batches(
        self, epoch: int, batch_size: int, *, seed: int = 0, augment: bool = True, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the training batches of one epoch; see ``Data.batches``. Skipped ones cost nothing."""
        n, steps = len(self.train_y), self.steps_per_epoch(batch_size)
        generator = torch.Generator().manual_seed(seed_of(seed, epoch))
        order = torch.randperm(n, generator=generator)
        flips = torch.rand(n, generator=generator) < 0.5
        limit = self.augmentation.shift
        shifts = torch.randint(-limit, limit + 1, (2, n), generator=generator)
        # All of an epoch's numbers go to the device at once: each upload waits for what is under way there.
        order, flips, shifts = (drawn.to(self.train_x.device) for drawn in (order, flips, shifts))
        for step in range(start, steps):
            first = step * batch_size * self.ranks
            share = max(1, min(batch_size * self.ranks, n - first) // self.ranks)
            at = slice(first + self.rank * share, first + (self.rank + 1) * share)
            index = order[at]
            x, y = self.train_x[index], self.train_y[index]
            if augment:
                flip = flips[at] if self.augmentation.flip else None
                x = shift_and_flip(x, shifts[:, at], flip, self.augmentation.padding)
            x = self.normalised(x)
            if augment and self.mix is not None:
                x, y = self.mix(x, y, seed_of(seed, epoch, step, self.rank, 1))
            yield x, y

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields all test images of this process in order, normalised, with their labels."""
        check_batch(batch_size)
        x, y = (t[self.rank :: self.ranks] for t in (self.test_x, self.test_y))
        for some, their in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            yield self.normalised(some), their

    def at(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns training images by their numbers, normalised, and their labels."""
        index = index.to(self.train_x.device)
        return self.normalised(self.train_x[index]), self.train_y[index]


def shift_and_flip(x: Tensor, shifts: Tensor, flip: Tensor | None, padding: str) -> Tensor:
    """Moves every image by its own shift, then mirrors some of them.

    Args:
        x: images ``[B, C, H, W]``.
        shifts: int64 ``[2, B]``, pixels down and right; negative: up and left.
        flip: bool ``[B]``, which images to mirror left to right; ``None``: none.
        padding: ``zero`` or ``reflect``.

    Returns:
        ``out[b, c, i, j] = x[b, c, i − shifts[0, b], j' − shifts[1, b]]`` with j' = W − 1 − j where mirrored.
    """
    b, c, h, w = x.shape
    rows = torch.arange(h, device=x.device) - shifts[0, :, None]
    columns = torch.arange(w, device=x.device).expand(b, w)
    if flip is not None:
        columns = torch.where(flip[:, None], w - 1 - columns, columns)
    columns = columns - shifts[1, :, None]
    inside = (((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None, :])[:, None]
    if padding == "reflect":
        rows, columns = (_reflected(i, n) for i, n in ((rows, h), (columns, w)))
    flat = rows.clamp(0, h - 1)[:, :, None] * w + columns.clamp(0, w - 1)[:, None, :]
    moved = x.flatten(2).gather(2, flat.view(b, 1, h * w).expand(b, c, h * w)).view(b, c, h, w)
    return moved if padding == "reflect" else moved * inside


def _reflected(index: Tensor, n: int) -> Tensor:
    """Returns positions mirrored at the border without repeating the edge: −1 → 1, n → n − 2."""
    index = index.abs()
    return (n - 1) - ((n - 1) - index).abs()


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation per channel, float32 ``[C]``; a constant channel gets std 1."""
    means, stds = [], []
    for channel in x.unbind(1):
        if x.dtype == torch.uint8:  # a histogram says all, and is several times faster than float sums
            share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
            level = torch.arange(256, device=x.device, dtype=torch.float64) / 255.0
            mean = (share * level).sum()
            std = (share * (level - mean).square()).sum().sqrt()
        else:
            mean = channel.double().mean()
            std = channel.double().std(correction=0)
        means.append(mean)
        stds.append(torch.where(std > 1e-6, std, torch.ones_like(std)))
    return torch.stack(means).float(), torch.stack(stds).float()


def _check_split(name: str, split: str, x: Tensor, y: Tensor, n_classes: int) -> None:
    if x.ndim != 4 or x.dtype not in (torch.uint8, torch.float32):
        raise DataError(
            f"data {name!r}: {split} images are {_kind(x)}; "
            "they must be uint8 or float32 of shape [N, channels, height, width]"
        )
    if 0 in x.shape[1:]:
        raise DataError(
            f"data {name!r}: {split} images are {_kind(x)}, without a pixel; give images of at least 1×1"
        )
    if len(x) == 0:
        raise DataError(f"data {name!r}: the {split} split holds no images; give a source with at least one")
    shares = y.dtype == torch.float32 and y.shape == (len(x), n_classes)
    if not shares and (y.dtype != torch.int64 or y.shape != (len(x),)):
        raise DataError(
            f"data {name!r}: {split} labels are {_kind(y)}; they must be int64 of shape [{len(x)}], one per image, or "
            f"float32 of shape [{len(x)}, {n_classes}], shares of the classes or 0 and 1 for each"
        )
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        at = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
        raise DataError(
            f"data {name!r}: {split} image {at} holds a value that is NaN or infinite, which no training survives; "
            "mend or take out such images"
        )
    outside = (y < 0) | (y > 1 if shares else y >= n_classes) | y.isnan()
    if shares and bool(outside.any()):
        raise DataError(
            f"data {name!r}: {split} labels are shares of classes, and some lie outside of 0 to 1"
        )
    if bool(outside.any()):
        at = int(outside.nonzero()[0])
        raise DataError(
            f"data {name!r}: {split} image {at} has the label {int(y[at])}, "
            f"but the {n_classes} classes are 0 to {n_classes - 1}; take out or relabel such images"
        )


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
