"""Windowed attention that may have lost heads: torchvision's Swin, video Swin and MaxViT.

The parameters, buffers and numbers are those of the class each of these stands for; only the forward is
another one, in which heads need not be as wide together as the input (Liu et al. 2021, equation 4; Tu et al.
2022). Scores of places that a cyclic shift has brought together are lowered by 100, as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d


def in_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """Maps ``[N, *sizes, C]`` to ``[N · windows, places of a window, C]``."""
    n = len(window)
    split = [number for size, w in zip(x.shape[1:-1], window, strict=True) for number in (size // w, w)]
    x = x.view(x.shape[0], *split, x.shape[-1])
    x = x.permute(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    return x.reshape(-1, math.prod(window), x.shape[-1])


def from_windows(x: Tensor, window: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Maps ``[N · windows, places of a window, C]`` back to ``[N, *sizes, C]``."""
    n = len(window)
    x = x.view(-1, *(size // w for size, w in zip(sizes, window, strict=True)), *window, x.shape[-1])
    x = x.permute(0, *(d for i in range(n) for d in (1 + i, 1 + n + i)), 2 * n + 1)
    return x.reshape(-1, *sizes, x.shape[-1])


def apart(sizes: Sequence[int], window: Sequence[int], shift: Sequence[int], like: Tensor) -> Tensor:
    """Returns the bias of scores ``[windows, 1, places, places]``: −100 between shifted neighbours."""
    regions = like.new_zeros(1, *sizes, 1)
    for axis, (size, w, s) in enumerate(zip(sizes, window, shift, strict=True)):
        region = torch.zeros(size, device=like.device, dtype=like.dtype)
        if s:
            region[size - w : size - s] = 1
            region[size - s :] = 2
        shape = [1] * regions.dim()
        shape[1 + axis] = size
        regions = regions + region.view(shape) * 3**axis
    places = in_windows(regions, window).squeeze(-1)
    different = places.unsqueeze(1) != places.unsqueeze(2)
    return torch.zeros_like(different, dtype=like.dtype).masked_fill(different, -100.0).unsqueeze(1)


class Windowed(nn.Module):
    """Attention within shifted windows; the shared part of the three kinds of Swin."""

    num_heads: int
    attention_dropout: float
    dropout: float
    qkv: nn.Linear
    proj: nn.Linear

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Returns the scores ``[N, heads, L, L]`` of queries and keys ``[N, heads, L, width]``."""
        scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return scores

    def projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns queries, keys and values ``[N, heads, L, width of a head]``."""
        width = self.qkv.weight.shape[0] // (3 * self.num_heads)
        rows: Tensor = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, width)
        return tuple(part.transpose(1, 2) for part in rows.unbind(2))

    def attended(self, x: Tensor, window: Sequence[int], shift: Sequence[int], bias: Tensor) -> Tensor:
        """Maps ``[N, *sizes, C]`` to the same shape, given the bias of relative positions."""
        sizes = x.shape[1:-1]
        dims = tuple(range(1, 1 + len(sizes)))
        padding = [n for size, w in zip(sizes[::-1], window[::-1], strict=True) for n in (0, -size % w)]
        x = F.pad(x, (0, 0, *padding))
        padded = x.shape[1:-1]
        if any(shift):
            x = torch.roll(x, tuple(-s for s in shift), dims)
        q, k, v = self.projected(in_windows(x, window))
        scores = self.scores(q, k) + bias
        if any(shift):
            mask = apart(padded, window, shift, scores)
            scores = (scores.view(-1, mask.shape[0], *scores.shape[1:]) + mask).flatten(0, 1)
        weights = F.dropout(scores.softmax(-1), self.attention_dropout, self.training)
        y = F.dropout(self.proj((weights @ v).transpose(1, 2).flatten(2)), self.dropout, self.training)
        y = from_windows(y, window, padded)
        if any(shift):
            y = torch.roll(y, tuple(shift), dims)
        for dim, size in zip(dims, sizes, strict=True):
            y = y.narrow(dim, 0, size)
        return y.contiguous()


class Windows(Windowed, ShiftedWindowAttention):  # type: ignore[misc]
    """Swin's attention, with heads fewer than its input would hold."""

    window_size: list[int]
    shift_size: list[int]
    get_relative_position_bias: Callable[[], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, H, W, C]`` to the same shape."""
        window = tuple(self.window_size)
        shift = [
            0 if w >= size + -size % w else s
            for size, w, s in zip(x.shape[1:-1], window, self.shift_size, strict=True)
        ]
        return self.attended(x, window, shift, self.get_relative_position_bias())


class CosineWindows(Windows, ShiftedWindowAttentionV2):  # type: ignore[misc]
    """Swin V2's attention: scores are cosines, the keys have no bias (Liu et al. 2022, equation 2)."""

    logit_scale: Tensor

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Returns scaled cosines ``[N, heads, L, L]``."""
        scale = torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale

    def projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns queries, keys and values ``[N, heads, L, width of a head]``."""
        width = self.qkv.weight.shape[0] // (3 * self.num_heads)
        rows = F.linear(x, self.qkv.weight).view(*x.shape[:2], 3, self.num_heads, width)
        q, k, v = rows.unbind(2)
        if self.qkv.bias is not None:
            bias = self.qkv.bias.view(3, self.num_heads, width)
            q, v = q + bias[0], v + bias[2]
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class VideoWindows(Windowed, ShiftedWindowAttention3d):  # type: ignore[misc]
    """Video Swin's attention; a window as large as the video is not shifted."""

    window_size: list[int]
    shift_size: list[int]
    get_relative_position_bias: Callable[[list[int]], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, T, H, W, C]`` to the same shape."""
        sizes = x.shape[1:-1]
        window = [min(w, size) for w, size in zip(self.window_size, sizes, strict=True)]
        shift = [
            0 if size <= w else s for size, w, s in zip(sizes, self.window_size, self.shift_size, strict=True)
        ]
        return self.attended(x, window, shift, self.get_relative_position_bias(window))


class GridHeads(RelativePositionalMultiHeadAttention):  # type: ignore[misc]
    """MaxViT's attention within a partition, with heads fewer than its input would hold."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, partitions, places, C]`` to the same shape."""
        width = self.to_qkv.weight.shape[0] // (3 * self.n_heads)
        rows = self.to_qkv(x).view(*x.shape[:3], 3, self.n_heads, width)
        q, k, v = (part.transpose(2, 3) for part in rows.unbind(3))
        scores = q @ (k * self.scale_factor).transpose(-2, -1) + self.get_relative_positional_bias()
        y: Tensor = self.merge((scores.softmax(-1) @ v).transpose(2, 3).flatten(3))
        return y


NARROW: dict[str, type[nn.Module]] = {
    "ShiftedWindowAttention": Windows,
    "ShiftedWindowAttentionV2": CosineWindows,
    "ShiftedWindowAttention3d": VideoWindows,
    "RelativePositionalMultiHeadAttention": GridHeads,
}
"""Name of a class → its replacement."""
