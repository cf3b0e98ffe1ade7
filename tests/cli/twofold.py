"""A network of an image and a depth map, and an optional gain: ``twofold:net``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Twofold(nn.Module):
    """conv(3→8) of the image plus conv(1→8) of the depth map, then conv(8→4); a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
        self.mid, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor, gain: float = 1.0, depth: Tensor | None = None) -> dict[str, Tensor]:
        x = self.a(image) * gain
        if depth is not None:
            x = x + self.b(depth)
        return {"flow": self.head(self.mid(x.relu()).relu())}


class Tokens(nn.Module):
    """An embedding of token numbers, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(self.table(ids).relu())
        return y


def net() -> nn.Module:
    torch.manual_seed(0)
    return Twofold().eval()


def tokens() -> nn.Module:
    torch.manual_seed(0)
    return Tokens().eval()
