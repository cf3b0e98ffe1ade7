"""Networks that move channels, or mix them: shuffles, parts, flattening, ops that change when a channel goes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 4, 1)
        self.c = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = torch.sigmoid(torch.cat([self.a(x), self.b(x)], 1))
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.c(x)


class ChunkReuse(nn.Module):
    """Both halves and what comes of one of them, concatenated (as in YOLO's C2f)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.m = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Any:
        first, second = torch.sigmoid(self.a(x)).chunk(2, 1)
        return self.b(torch.cat([first, second, second + self.m(second)], 1))


class Glu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.b = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Any:
        value, gate = self.a(x).chunk(2, 1)
        return self.b(value * torch.sigmoid(gate))


class SplitLiteral(nn.Module):
    """Parts whose sizes are written as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.mid = nn.Conv2d(6, 7, 1)
        self.b = nn.Conv2d(2 + 7, 5, 1)

    def forward(self, x: Tensor) -> Any:
        first, second = torch.split(self.a(x), [2, 6], 1)
        return self.b(torch.cat([first, torch.sigmoid(self.mid(second))], 1))


class Flatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 4, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.max_pool2d(torch.sigmoid(self.conv(x)), 4)
        return self.head(torch.tanh(self.fc(x.view(x.size(0), -1))))


class NhwcFlatten(Flatten):
    """The channels run fastest behind the flatten."""

    def forward(self, x: Tensor) -> Any:
        x = F.max_pool2d(torch.sigmoid(self.conv(x)), 4)
        return self.head(torch.tanh(self.fc(x.permute(0, 2, 3, 1).flatten(1))))


class PixelShuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 1)
        self.up = nn.PixelShuffle(2)
        self.b = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.sigmoid(self.up(self.a(x))))


class SliceHalf(nn.Module):
    """A slice up to a number, the rest unused."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.sigmoid(self.a(x))[:, :3])


class Mixer(nn.Module):
    """Ops over channels that change when one goes."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 6, 1)
        self.c = nn.Conv2d(6, 5, 1)
        self.op = op

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        if self.op == "softmax":
            x = x.softmax(1)
        elif self.op == "mean":
            x = x * x.mean(1, keepdim=True)
        elif self.op == "amax":
            x = x * x.amax(1, keepdim=True)
        elif self.op == "lrn":
            x = F.local_response_norm(x, 3)
        elif self.op == "sort":
            x = x.sort(1).values
        elif self.op == "cumsum":
            x = x.cumsum(1)
        elif self.op == "fft":
            x = torch.fft.rfft(x, dim=1, n=14).real
        return self.c(torch.sigmoid(self.b(x)))


class ChannelSum(nn.Module):
    """A spatial gate from a sum over channels, of zeros where a channel is gone or not."""

    def __init__(self, act: str) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 5, 1)
        self.act = act

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        x = torch.relu(x) if self.act == "relu" else torch.sigmoid(x)
        return self.b(x * torch.tanh(x.sum(1, keepdim=True)))


class WidthScalar(nn.Module):
    """Divides by the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.b(torch.sigmoid(x / x.shape[1])).view(x.shape[0], -1)
