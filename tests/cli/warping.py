"""Networks that warp their features along a flow, which no backend times: ``warping:once`` and ``warping:twice``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Warping(nn.Module):
    """conv(3→6), conv(6→8), samples at fixed places as often as asked, mean, linear(8→4)."""

    places: Tensor

    def __init__(self, times: int) -> None:
        super().__init__()
        self.first, self.stem = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        self.times = times
        self.register_buffer("places", torch.linspace(-1, 1, 32).reshape(1, 4, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(self.first(x))
        for _ in range(self.times):
            y = functional.grid_sample(y, self.places.expand(len(y), -1, -1, -1), align_corners=False)
        out: Tensor = self.head(y.mean((2, 3)))
        return out


def once() -> nn.Module:
    return Warping(1).eval()


def twice() -> nn.Module:
    return Warping(2).eval()
