"""Networks with attention, which no backend times: ``attending:once`` and ``attending:twice``."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Attending(nn.Module):
    """conv(3→6), conv(6→8), attention among the positions as often as asked, mean, linear(8→4)."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.first, self.stem = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        rows = self.stem(self.first(x)).flatten(2).transpose(1, 2)
        for _ in range(self.times):
            rows = functional.scaled_dot_product_attention(rows, rows, rows)
        y: Tensor = self.head(rows.mean(1))
        return y


def once() -> nn.Module:
    return Attending(1).eval()


def twice() -> nn.Module:
    return Attending(2).eval()
