"""A small network and small data, named as ``toy:net`` and ``toy:data`` by the tests of a run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """conv(3→8) conv(8→12) with batch norms, mean, fc."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        answer: Tensor = self.fc(x.mean((2, 3)))
        return answer


class Block(nn.Module):
    """Two convolutions of 8 and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Residual(nn.Module):
    """conv(3→8), two blocks, mean, fc."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.first, self.second = Block(), Block()
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        logits: Tensor = self.fc(self.second(self.first(x)).mean((2, 3)))
        return logits


def residual(num_classes: int = 6) -> nn.Module:
    return Residual(num_classes)


def net(num_classes: int = 6) -> nn.Module:
    return Net(num_classes)


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Six classes told apart by the brightness of the channels."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(n) % 6
        x = torch.randint(0, 120, (n, 3, 6, 6), generator=generator)
        x[torch.arange(n), y % 3] += (40 + 40 * (y // 3))[:, None, None]
        return x.to(torch.uint8), y

    return split(120), split(36)


def few_digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Every fourth of scikit-learn's digits, in batches of 16 as many steps as of all in batches of 64."""
    from halpiee.data.opening import load

    found = load("digits", size=16)
    return (found.train_x[::4], found.train_y[::4]), (found.test_x[::4], found.test_y[::4])


class Plain(nn.Module):
    """conv(3→8) conv(8→12) with biases, mean, fc; no statistics of a batch, so that its parts add up."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        answer: Tensor = self.fc(x.mean((2, 3)))
        return answer


def plain(num_classes: int = 6) -> nn.Module:
    return Plain(num_classes)


def work_on(study: Any, out: Path) -> None:
    """Does what a process of a study does, on one thread."""
    from halpiee.studies.results import sheet_of
    from halpiee.studies.work import work
    from halpiee.training.job import Silent

    def one_thread(step: object) -> int:
        torch.set_num_threads(1)
        return 1

    stage: Any = importlib.import_module("halpiee.training.stage")
    stage.pick_threads = one_thread
    work(study, sheet_of(out), seeds=1, talk=Silent())
