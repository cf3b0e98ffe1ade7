"""A convolution or linear layer as a linear map: what is each output computed from, and by which weights?

``y[p] = x_p · W`` at every position p: ``x_p`` is the patch of the input that the position sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["LayerCall", "call_of", "plain_attention"]

CONVS = {
    functional.conv1d: 1,
    functional.conv2d: 2,
    functional.conv3d: 3,
    torch.conv1d: 1,
    torch.conv2d: 2,
    torch.conv3d: 3,
}
TRANSPOSED = {
    functional.conv_transpose1d: 1,
    functional.conv_transpose2d: 2,
    functional.conv_transpose3d: 3,
    torch.conv_transpose1d: 1,
    torch.conv_transpose2d: 2,
    torch.conv_transpose3d: 3,
}


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer: y at a position = patch of x at this position · W.

    Attributes:
        kind: ``linear``, ``conv`` or ``conv_transpose``.
        dims: spatial dimensions.
        stride: along each of them; so are the next two.
        padding: see ``stride``.
        dilation: see ``stride``.
        groups: of channels.
    """

    kind: str
    dims: int = 0
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def patches(self, x: Tensor, weight: Tensor, out: tuple[int, ...], positions: Tensor) -> Tensor:
        """Returns ``[groups, rows, unknowns]``: what the outputs at some positions are computed from.

        Args:
            x: the input, ``[N, C, …]``, or ``[N, …, C]`` of a linear layer.
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
    x, weight, bias = given(0, "input", None), given(1, "weight", None), given(2, "bias", None)
    stride, padding = _each(given(3, "stride", 1), dims), given(4, "padding", 0)
    if func in CONVS:
        dilation = _each(given(5, "dilation", 1), dims)
        if isinstance(padding, str):
            spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            if padding == "same" and any(s % 2 for s in spans):
                return None  # PyTorch pads one side more
            padding = [s // 2 for s in spans] if padding == "same" else 0
        call = LayerCall("conv", dims, stride, _each(padding, dims), dilation, given(6, "groups", 1))
    else:
        call = LayerCall(
            "conv_transpose",
            dims,
            stride,
            _each(padding, dims),
            _each(given(7, "dilation", 1), dims),
            given(6, "groups", 1),
        )
    return call, x, weight, bias


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in value) if isinstance(value, tuple | list | torch.Size) else (int(value),)
    return values * dims if len(values) == 1 else values


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside, attention calls its linear layers one by one, where a function mode sees them.

    ``multi_head_attention_forward`` hands itself to a mode as one call; told that there is none, it runs its body.
    """
    names: Any = functional
    before, asks = torch.backends.mha.get_fastpath_enabled(), names.has_torch_function
    torch.backends.mha.set_fastpath_enabled(False)
    names.has_torch_function = lambda tensors: False
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        names.has_torch_function = asks
