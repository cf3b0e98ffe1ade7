"""Random changes of training examples, and what brings every example to one size: torchvision's ``transforms.v2``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

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
