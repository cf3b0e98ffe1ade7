"""Small networks and batches for methods on single weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

Batches = list[tuple[Tensor, Tensor]]


def linear(seed: int = 0) -> nn.Sequential:
    """8 → 12 → 6 → 3 with batch norm: 96 + 72 + 18 = 186 weights."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def conv(seed: int = 0) -> nn.Sequential:
    """conv 2 → 4 → 4, linear 4 → 3, on 4×4 images: 72 + 144 + 12 = 228 weights."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def batches(model: nn.Module, n: int, seed: int = 1) -> Batches:
    """Random images or vectors, whatever the first layer takes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 4, 4) if isinstance(next(model.children()), nn.Conv2d) else (8,)
    return [
        (torch.randn(8, *shape, generator=generator), torch.randint(0, 3, (8,), generator=generator))
        for _ in range(n)
    ]


def train(model: nn.Module, optimizer: Optimizer, data: Batches) -> Iterator[int]:
    """Trains a step a batch and yields how many are done."""
    for i, (x, y) in enumerate(data):
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model(x), y))
        optimizer.step()
        yield i + 1


def sgd(model: nn.Module) -> Optimizer:
    """Momentum, Nesterov and weight decay: all that moves a weight without a gradient."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)


def plain_sgd(model: nn.Module) -> Optimizer:
    """Neither momentum nor weight decay."""
    return torch.optim.SGD(model.parameters(), lr=0.05)


def heavy_sgd(model: nn.Module) -> Optimizer:
    """Momentum without Nesterov's look ahead."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def decayed_sgd(model: nn.Module) -> Optimizer:
    """Weight decay alone."""
    return torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1)


def adamw(model: nn.Module) -> Optimizer:
    """AdamW with weight decay."""
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def momentum(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """All state of the parameter's shape."""
    state = optimizer.state.get(parameter, {})
    return [v for v in state.values() if isinstance(v, Tensor) and v.shape == parameter.shape]


def gradient(model: nn.Module, name: str) -> Tensor:
    """The gradient of a parameter that has one."""
    found = model.get_parameter(name).grad
    assert found is not None
    return found
