"""A network of two prunable groups whose structure is written by hand, so that these tests need no tracer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from halpiee.structure.groups import ChannelGroup, Layer, Slot, Structure


class TinyNet(nn.Module):
    """conv1(3→4) bn relu, conv2(4→6) bn relu, mean, fc(6→2)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        y: torch.Tensor = self.fc(x.mean((2, 3)))
        return y


def tiny_structure() -> Structure:
    """Units 0–2 the image (frozen), 3–6 group a, 7–12 group b, 13–14 the classes (frozen)."""
    image, a, b, classes = (np.arange(i, j) for i, j in ((0, 3), (3, 7), (7, 13), (13, 15)))
    slots = [
        Slot("conv1.weight", "conv1", "conv", "out", 0, a),
        Slot("conv1.weight", "conv1", "conv", "in", 1, image),
        Slot("conv2.weight", "conv2", "conv", "out", 0, b),
        Slot("conv2.weight", "conv2", "conv", "in", 1, a),
        Slot("fc.weight", "fc", "linear", "out", 0, classes),
        Slot("fc.weight", "fc", "linear", "in", 1, b),
        Slot("fc.bias", "fc", "linear", "out", 0, classes),
    ]
    for module, units in (("bn1", a), ("bn2", b)):
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            slots.append(Slot(f"{module}.{tensor}", module, "batch_norm", "norm", 0, units))
    return Structure(
        layers=(
            Layer("conv1", "conv", (("input", 1),), (("a", 1),)),
            Layer("conv2", "conv", (("a", 1),), (("b", 1),)),
            Layer("fc", "linear", (("b", 1),), (("fc", 1),)),
        ),
        groups=(
            ChannelGroup("input", 3, 0, False, reason="is a network input"),
            ChannelGroup("a", 4, 3, True),
            ChannelGroup("b", 6, 7, True),
            ChannelGroup("fc", 2, 13, False, reason="feeds a network output"),
        ),
        ops=(),
        slots=tuple(slots),
    )


@pytest.fixture
def structure() -> Structure:
    return tiny_structure()


@pytest.fixture
def net() -> TinyNet:
    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 3, 5, 5, generator=generator), torch.randint(0, 2, (8,), generator=generator))
        for _ in range(40)
    ]
