"""A convolution or linear layer as a linear map, and where in its input the images lie.

``y[p] = x_p · W`` at every position p: ``x_p`` is the patch of the input that the position sees.

Samples of two networks must be of the same image and position. Images may lie in any dimension, several entries each
(windows of an image), side by side or interleaved (attention flattens sequence and image into one). The layout follows
from the layer's inputs for one image, another, and both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

CONVS, TRANSPOSED = (
    {getattr(home, f"{name}{dims}d"): dims for home in (functional, torch) for dims in (1, 2, 3)}
    for name in ("conv", "conv_transpose")
)
"""Function → spatial dimensions."""


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: y at a position = patch of x at this position · W."""

    kind: str  # ``linear``, ``conv`` or ``conv_transpose``
    dims: int = 0  # spatial dimensions
    stride: tuple[int, ...] = ()  # along each of them; so are the next two
    padding: tuple[int, ...] = ()  # see ``stride``
    dilation: tuple[int, ...] = ()  # see ``stride``
    groups: int = 1  # of channels

    def patches(self, x: Tensor, weight: Tensor, out: tuple[int, ...], positions: Tensor) -> Tensor:
        """Returns ``[groups, rows, unknowns]``: the inputs of the outputs at some positions.

        Args:
            x: ``[N, C, …]``, or ``[N, …, C]`` of a linear layer.
            weight: of the layer, for its kernel.
            out: spatial size of the output.
            positions: flat indices into it.
        """
        if self.kind == "linear":
            return x.reshape(len(x), -1, x.shape[-1])[:, positions].flatten(0, 1)[None]
        kernel = tuple(weight.shape[2:])
        at = torch.unravel_index(positions, out)
        rows = []
        if self.kind == "conv":
            x = functional.pad(x, [p for pad in reversed(self.padding) for p in (pad, pad)])
            for place in zip(*(a.tolist() for a in at), strict=True):
                part = x
                for d, o in enumerate(place):
                    first = o * self.stride[d]
                    last = first + (kernel[d] - 1) * self.dilation[d] + 1
                    part = part.narrow(2 + d, first, last - first)
                    part = part[(slice(None),) * (2 + d) + (slice(None, None, self.dilation[d]),)]
                rows.append(part)
        else:
            for place in zip(*(a.tolist() for a in at), strict=True):
                rows.append(self._behind(x, kernel, place))
        stacked = torch.stack(rows, 1)  # [N, P, C, *kernel]
        n, p = stacked.shape[:2]
        split = stacked.reshape(n * p, self.groups, -1)
        return split.transpose(0, 1)

    def _behind(self, x: Tensor, kernel: tuple[int, ...], place: tuple[int, ...]) -> Tensor:
        """Returns ``[N, C, *kernel]``: the inputs that each tap of a transposed convolution brings to a place."""
        part = x
        for d, o in enumerate(place):
            index, there = [], []
            for k in range(kernel[d]):
                offset = o + self.padding[d] - k * self.dilation[d]
                i, rest = divmod(offset, self.stride[d])
                inside = rest == 0 and 0 <= i < x.shape[2 + d]
                index.append(i if inside else 0)
                there.append(float(inside))
            part = part.index_select(2 + d, torch.tensor(index, device=x.device))
            shape = [1] * part.dim()
            shape[2 + d] = len(there)
            part = part * torch.tensor(there, dtype=x.dtype, device=x.device).view(shape)
        return part

    def flat(self, weight: Tensor) -> Tensor:
        """Returns the weights as ``[groups, unknowns, outputs of a group]``."""
        if self.kind == "conv_transpose":  # [C_in, C_out / groups, *kernel]
            c_in, c_out = weight.shape[0] // self.groups, weight.shape[1]
            split = weight.reshape(self.groups, c_in, c_out, -1)
            return split.transpose(2, 3).reshape(self.groups, -1, c_out)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1).transpose(1, 2)

    def shaped(self, flat: Tensor, weight: Tensor) -> Tensor:
        """Returns weights of ``flat``'s form in the layer's own."""
        if self.kind == "conv_transpose":
            c_in, c_out = weight.shape[0] // self.groups, weight.shape[1]
            return flat.reshape(self.groups, c_in, -1, c_out).transpose(2, 3).reshape(weight.shape)
        return flat.transpose(1, 2).reshape(weight.shape)


def call_of(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[LayerCall, Tensor, Tensor, Any] | None:
    """Returns a layer call, its input, weight and bias; ``None`` for another function."""

    def given(i: int, name: str, default: Any) -> Any:
        return args[i] if len(args) > i else kwargs.get(name, default)

    if func in (functional.linear, torch._C._nn.linear):
        return LayerCall("linear"), given(0, "input", None), given(1, "weight", None), given(2, "bias", None)
    dims = CONVS.get(func) or TRANSPOSED.get(func)
    if dims is None:
        return None
    kind, place = ("conv", 5) if func in CONVS else ("conv_transpose", 7)
    x, weight, bias = given(0, "input", None), given(1, "weight", None), given(2, "bias", None)
    stride, padding = _each(given(3, "stride", 1), dims), given(4, "padding", 0)
    dilation = _each(given(place, "dilation", 1), dims)
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if padding == "same" and any(s % 2 for s in spans):
            return None  # PyTorch pads one side more
        padding = [s // 2 for s in spans] if padding == "same" else 0
    call = LayerCall(kind, dims, stride, _each(padding, dims), dilation, given(6, "groups", 1))
    return call, x, weight, bias


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in value) if isinstance(value, tuple | list | torch.Size) else (int(value),)
    return values * dims if len(values) == 1 else values


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside, attention calls its linear layers one by one, where a function mode sees them.

    ``multi_head_attention_forward`` is one call for a mode unless ``has_torch_function`` finds none.
    """
    names: Any = functional
    before, original = torch.backends.mha.get_fastpath_enabled(), names.has_torch_function
    torch.backends.mha.set_fastpath_enabled(False)
    names.has_torch_function = lambda tensors: False
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        names.has_torch_function = original


@dataclass(frozen=True)
class Layout:
    """How a layer's samples are taken."""

    dim: int = 0  # dimension of its input and output that holds the images, maybe several entries of each
    minor: bool = False  # whether entries of one image lie apart (image last) and not side by side
    rows: Tensor | None = None  # output channels that stay, or ``None``: all
    skipped: str | None = None  # why the layer is not solved, or ``None``

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
    """Returns how every layer is sampled, from its inputs for one image, for another, and for both."""
    passes = []
    for first, last in ((0, 1), (1, 2), (0, 2)):
        with _Calls(names) as calls:
            model(*(x[first:last] for x in inputs))
        passes.append(calls.seen)
    return {name: _planned([seen.get(name, []) for seen in passes], kept.get(name, {})) for name in passes[2]}


def _planned(passes: list[list[tuple[LayerCall, Tensor]]], kept: Mapping[int, Tensor]) -> Layout:
    if any(len(calls) != 1 for calls in passes):
        return Layout(skipped="it is called more than once")
    call = passes[0][0][0]
    found = _layout(*(calls[0][1] for calls in passes), dims=1 if call.kind != "linear" else None)
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
