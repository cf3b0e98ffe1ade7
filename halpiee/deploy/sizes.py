"""The heights and widths that a network is exported for, and what a file says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from halpiee.errors import UsageError
from halpiee.structure.surroundings import random_states
from latency.backends.torch.modules import filled, tensors_in

__all__ = ["image_size", "other_sizes", "written_shapes"]


def written_shapes(names: Sequence[str], tensors: Sequence[Tensor]) -> str:
    """Returns what a file says of its inputs: ``image=3x128x128 depth=1x128x128``, without the batch."""
    sizes = ["x".join(map(str, x.shape[1:])) or "1" for x in tensors]
    return " ".join(f"{name}={size}" for name, size in zip(names, sizes, strict=True))


OTHERS: tuple[Callable[[int, int], tuple[int, int]], ...] = (
    lambda h, w: (h + 64, w + 32),
    lambda h, w: (h + 32, w + 96),
    lambda h, w: (2 * h, 3 * w),
    lambda h, w: (2 * h, 2 * w),
    lambda h, w: (h // 2, w),
)
"""Sizes beside that of the examples, height and width apart, that a network is tried on: multiples of 32 first."""


def other_sizes(model: nn.Module, inputs: tuple[Any, ...], most: int = 2) -> list[tuple[Any, ...]]:
    """Returns example inputs of other heights and widths on which a network runs, all images by one factor.

    Raises:
        UsageError: it runs on none, or there is no image among the inputs.
    """
    tensors = tensors_in(inputs)
    images = [x for x in tensors if x.dim() == 4]
    if not images:
        raise UsageError(
            "a free height and width was asked of a network without an input [N, C, H, W]; leave it out"
        )
    h, w = images[0].shape[2:]
    found: list[tuple[Any, ...]] = []
    why = ""
    for size in (one(h, w) for one in OTHERS):
        drawn = [
            x
            if x.dim() != 4
            else torch.randn(*x.shape[:2], x.shape[2] * size[0] // h, x.shape[3] * size[1] // w)
            for x in tensors
        ]
        candidate = filled(inputs, drawn)
        try:
            with torch.no_grad(), random_states():
                model(*candidate)
        except Exception as error:  # whatever the model raises
            why = why or f"{'×'.join(map(str, size))}: {' '.join(str(error).split())[:160]}"
            continue
        found.append(candidate)
        if len(found) == most:
            break
    if not found:
        raise UsageError(
            f"a free height and width was asked of {type(model).__name__}, which runs on {h}×{w} and on no other size "
            f"that was tried ({why}); leave it out, and export one file for each size"
        )
    return found


def image_size(inputs: tuple[Any, ...]) -> tuple[int, int]:
    """Returns height and width of the first image among inputs."""
    first = next(x for x in tensors_in(inputs) if x.dim() == 4)
    return int(first.shape[2]), int(first.shape[3])
