"""Where in a layer's input do the images lie? Samples of two networks must be of the same image and position.

Images may lie in any dimension, several entries each (windows of an image), side by side or interleaved (attention
flattens sequence and image into one). The layout is told from the layer's inputs for one image, another, and both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from halpiee.reconstruction.layer_call import LayerCall, call_of

__all__ = ["Layout", "layouts_of", "sampled"]


@dataclass(frozen=True)
class Layout:
    """How a layer's samples are taken.

    Attributes:
        dim: dimension of its input and output that holds the images, maybe several entries of each.
        minor: whether entries of one image lie apart (image last) and not side by side.
        rows: output channels that stay, or ``None``: all.
        skipped: why the layer is not solved, or ``None``.
    """

    dim: int = 0
    minor: bool = False
    rows: Tensor | None = None
    skipped: str | None = None

    def by_image(self, x: Tensor, images: int) -> Tensor:
        """Returns ``[images, places, C]`` of a linear layer's input or output."""
        k = x.shape[self.dim] // images
        two = (k, images) if self.minor else (images, k)
        split = x.reshape(*x.shape[: self.dim], *two, *x.shape[self.dim + 1 :])
        return split.movedim(self.dim + self.minor, 0).reshape(images, -1, x.shape[-1])


def layouts_of(
    model: nn.Module,
    names: Mapping[int, str],
    inputs: tuple[Tensor, ...],
    kept: Mapping[str, Mapping[int, Tensor]],
) -> dict[str, Layout]:
    """Returns how every layer is sampled, told from its inputs for one image, for another, and for both."""
    looks = []
    for first, last in ((0, 1), (1, 2), (0, 2)):
        with _Calls(names) as calls:
            model(*(x[first:last] for x in inputs))
        looks.append(calls.seen)
    return {name: _planned([look.get(name, []) for look in looks], kept.get(name, {})) for name in looks[2]}


def _planned(looks: list[list[tuple[LayerCall, Tensor]]], kept: Mapping[int, Tensor]) -> Layout:
    if any(len(look) != 1 for look in looks):
        return Layout(skipped="it is called more than once")
    call = looks[0][0][0]
    found = _layout(*(look[0][1] for look in looks), dims=1 if call.kind != "linear" else None)
    if found is None:
        return Layout(skipped="no dimension of its input holds the images one after another")
    if call.kind != "conv_transpose":
        return Layout(*found, kept.get(0))
    if call.groups > 1 and kept:
        return Layout(skipped="it is a transposed convolution whose groups were cut")
    return Layout(*found, kept.get(1))


def _layout(one: Tensor, other: Tensor, both: Tensor, *, dims: int | None) -> tuple[int, bool] | None:
    """Returns the dimension in which two images lie, and whether interleaved; ``None`` where they do not."""
    if one.dim() < 2 or one.dim() != both.dim():
        return None
    for dim in range(one.dim() - 1 if dims is None else dims):
        if both.shape[dim] != 2 * one.shape[dim] or one.shape != other.shape:
            continue
        for minor in (False, True) if dims is None else (False,):
            if minor and one.shape[dim] == 1:
                continue
            pair = torch.stack([one, other], dim + minor).flatten(dim, dim + 1)
            if pair.shape == both.shape and torch.allclose(pair, both, rtol=1e-3, atol=1e-4):
                return dim, minor
    return None


class _Calls(TorchFunctionMode):
    """Notes the calls of each weight, and their inputs."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.seen: dict[str, list[tuple[LayerCall, Tensor]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = call_of(func, args, kwargs)
        if found is not None and id(found[2]) in self._names:
            self.seen.setdefault(self._names[id(found[2])], []).append((found[0], found[1]))
        return func(*args, **kwargs)


def sampled(x: Tensor, call: LayerCall, plan: Layout, images: int, positions: Tensor) -> Tensor:
    """Returns ``[rows, C]``: a tensor of a layer's output shape at some positions of all images."""
    flat = plan.by_image(x, images) if call.kind == "linear" else x.flatten(2).transpose(1, 2)
    return flat[:, positions.to(flat.device)].flatten(0, 1).float()
