"""Networks of one kind of layer: depthwise, grouped, transposed, one and three dimensions, norms, attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Depthwise(nn.Module):
    def __init__(self, multiplier: int = 1) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1)
        self.depth = nn.Conv2d(8, 8 * multiplier, 3, padding=1, groups=8)
        self.bn = nn.BatchNorm2d(8 * multiplier)
        self.project = nn.Conv2d(8 * multiplier, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.project(F.hardswish(self.bn(self.depth(F.hardsigmoid(self.expand(x))))))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.g = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.b = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.sigmoid(self.g(torch.sigmoid(self.a(x)))))


class GroupedShuffled(nn.Module):
    """Two grouped convolutions with a channel shuffle between: groups do not align."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.g1 = nn.Conv2d(8, 16, 1, groups=4)
        self.g2 = nn.Conv2d(16, 8, 1, groups=4)
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = torch.sigmoid(self.g1(torch.sigmoid(self.a(x))))
        n, c, h, w = x.shape
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.b(torch.sigmoid(self.g2(x)))


class Transposed(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.up = nn.ConvTranspose2d(8, 6 if groups == 1 else 16, 2, stride=2, groups=groups)
        self.b = nn.Conv2d(6 if groups == 1 else 16, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.sigmoid(self.up(torch.sigmoid(self.a(x)))))


class OneDimensional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(3, 8, 3)
        self.bn = nn.BatchNorm1d(8)
        self.b = nn.Conv1d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.b(F.avg_pool1d(torch.sigmoid(self.bn(self.a(x))), 2))


class ThreeDimensional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv3d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm3d(8)
        self.b = nn.Conv3d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.b(F.max_pool3d(torch.sigmoid(self.bn(self.a(x))), 2))


class LayerNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 8)
        self.norm = nn.LayerNorm(8)
        self.b = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.b(F.gelu(self.norm(self.a(x))))


class GroupNormed(nn.Module):
    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.norm = nn.GroupNorm(groups, 8)
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.sigmoid(self.norm(self.a(x))))


class InstanceNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.norm = nn.InstanceNorm2d(8, affine=True)
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.sigmoid(self.norm(self.a(x))))


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.scale = nn.Parameter(torch.zeros(8, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, 8, 1, 1))
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.sigmoid(self.a(x) * self.scale + self.shift))


class Attention(nn.Module):
    """Self-attention whose shapes follow its projections; the scale is a number."""

    def __init__(self, fused: bool, joint: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 24) if joint else None
        parts: Any = (None, None, None) if joint else (nn.Linear(6, 8) for _ in range(3))
        self.q, self.k, self.v = parts
        self.out = nn.Linear(8, 5)
        self.fused = fused

    def forward(self, x: Tensor) -> Any:
        n, t, _ = x.shape
        parts = self.qkv(x).chunk(3, -1) if self.qkv is not None else (self.q(x), self.k(x), self.v(x))
        q, k, v = (p.view(n, t, 2, -1).transpose(1, 2) for p in parts)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        else:
            y = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, -1))
