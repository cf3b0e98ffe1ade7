"""Networks whose channels join others: sums, concatenations, gates, shared layers, several inputs or outputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = torch.sigmoid(self.stem(x))
        x = torch.sigmoid(x + self.conv2(F.silu(self.bn1(self.conv1(x)))))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(10)
        self.join = nn.Conv2d(10, 5, 1)
        self.head = nn.Conv2d(15, 4, 1)

    def forward(self, x: Tensor) -> Any:
        both = torch.sigmoid(self.bn(torch.cat([self.a(x), self.b(x)], 1)))
        return self.head(torch.cat([both, self.join(both)], 1))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.squeeze = nn.Conv2d(8, 3, 1)
        self.excite = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = F.silu(self.conv(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(x * gate)


class Shared(nn.Module):
    """One convolution used twice, at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = torch.sigmoid(self.twice(torch.sigmoid(self.stem(x))))
        return self.head(torch.sigmoid(self.twice(F.max_pool2d(x, 2))))


class Functional(nn.Module):
    """Convolutions with parameters of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(6, 3, 3, 3))
        self.shift = nn.Parameter(torch.zeros(6))
        self.matrix = nn.Parameter(torch.zeros(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(F.conv2d(x, self.kernel, self.shift))
        return x.mean((2, 3)) @ self.matrix


class InputResidual(nn.Module):
    """A residual onto the network's input."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 3, 3, padding=1)
        self.c = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.c(torch.sigmoid(x + self.b(torch.sigmoid(self.a(x)))))


class PaddedShortcut(nn.Module):
    """A skip whose missing channels are filled with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(4, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Any:
        x = torch.sigmoid(self.a(x))
        return self.c(torch.sigmoid(self.b(x) + F.pad(x, (0, 0, 0, 0, 2, 2))))


class Outputs(nn.Module):
    """Two outputs, nested, one of them in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.b = nn.Conv2d(6, 8, 1)
        self.c = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = torch.sigmoid(self.a(x))
        middle = self.b(features)
        return {"aux": [middle], "out": self.c(torch.sigmoid(middle))}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 6, 1)
        self.vector = nn.Linear(4, 6)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor, v: Tensor) -> Any:
        return self.head(torch.sigmoid(self.image(x) + self.vector(v)[:, :, None, None]))


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, tokens: Tensor) -> Any:
        return self.head(torch.sigmoid(self.table(tokens)).sum(1))
