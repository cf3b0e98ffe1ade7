"""What the benchmarks of methods share: networks that a CPU trains on CIFAR-10 in minutes, their images and a mean.

``mlp``: 768-512-256-10 with batch norm, 16×16 images, 98 % sparse, 4,000 steps; ``resnet8``: 16-32-64 channels, 16×16,
95 %, 2,000 steps; ``resnet8-long``: 6,000 steps. Batches of 128, SGD with Nesterov momentum, a cosine to zero.
For a GPU: ``wrn22-2-90``, ``-95`` and ``-98`` per cent sparse at 32×32, 12,000 steps (31 epochs).
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halpiee.data.tensors import Augmentation, TensorData
from halpiee.zoo.blocks import BasicBlock
from halpiee.zoo.resnet import ResNet, wrn22_2
from tools.results import recorded

__all__ = [
    "BATCH",
    "LARGE",
    "SETTINGS",
    "Runs",
    "Setting",
    "accuracy",
    "batches",
    "few",
    "parser",
    "sgd",
]

BATCH = 128


@dataclass(frozen=True)
class Setting:
    """A network and how it is trained.

    Attributes:
        build: the network.
        density: share of weights that is kept.
        steps: optimizer steps.
        lr: first rate of a cosine to zero.
        interval: ΔT.
        cycle: h, j and q of IEE.
        augmentation: of the training images.
        size: of the images.
    """

    build: Callable[[], nn.Module]
    density: float
    steps: int
    lr: float
    interval: int
    cycle: tuple[int, int, int]
    augmentation: Augmentation
    size: int = 16


def mlp() -> nn.Module:
    """Returns 768-512-256-10 with batch norm."""
    sizes = (768, 512, 256)
    layers: list[nn.Module] = [nn.Flatten()]
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o, bias=False), nn.BatchNorm1d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def resnet8() -> nn.Module:
    """Returns one block in each of three stages of 16, 32 and 64 channels."""
    return ResNet(BasicBlock, (1, 1, 1), (16, 32, 64))


SETTINGS = {
    "mlp": Setting(mlp, 0.02, 4000, 0.05, 100, (33, 33, 33), Augmentation(flip=False, shift=0)),
    "resnet8": Setting(resnet8, 0.05, 2000, 0.1, 60, (20, 20, 20), Augmentation(flip=True, shift=0)),
    "resnet8-long": Setting(resnet8, 0.05, 6000, 0.1, 100, (33, 33, 33), Augmentation(flip=True, shift=0)),
}
"""What a CPU trains in minutes."""

LARGE = {
    f"wrn22-2-{sparsity}": Setting(
        wrn22_2, 1 - sparsity / 100, 12000, 0.1, 100, (100, 100, 100), Augmentation(), size=32
    )
    for sparsity in (95, 90, 98)
}
"""What takes a GPU minutes."""


def sgd(model: nn.Module, lr: float) -> torch.optim.SGD:
    """Returns the optimizer all of them train with."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


def few(data: TensorData, a_class: int) -> list[tuple[Tensor, Tensor]]:
    """Returns one batch of the first images of each class."""
    index = torch.cat([(data.train_y == c).nonzero().flatten()[:a_class] for c in range(data.n_classes)])
    return [(data.normalised(data.train_x[index]), data.train_y[index])]


def batches(data: TensorData, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields training batches without end."""
    for epoch in itertools.count():
        yield from data.batches(epoch, BATCH, seed=seed)


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorData) -> float:
    """Returns top-1 accuracy on the test images."""
    model.eval()
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in data.test_batches(500))
    return hits / len(data.test_y)


def parser(about: str | None, out: str, methods: Iterable[str]) -> argparse.ArgumentParser:
    """Returns the options that the benchmarks share.

    Args:
        about: what the benchmark says of itself.
        out: the usual name of the file of its runs.
        methods: the names to choose from; by default all.
    """
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument(
        "--data", required=True, help="CIFAR-10: a Parquet folder, or any data of halpiee train"
    )
    found.add_argument("--out", type=Path, default=Path(out))
    found.add_argument("--methods", nargs="+", choices=list(methods), default=list(methods))
    recorded(found)
    found.add_argument("--table", action="store_true", help="only print what stands in --out")
    return found


class Runs:
    """The runs in a file with one JSON line a run; ignores a line that an interruption tore.

    Args:
        path: of the file; it and its folder are made with the first run.

    Attributes:
        rows: the runs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                self.rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue

    def add(self, row: dict[str, Any]) -> None:
        """Writes and prints a run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * torn + json.dumps(row) + "\n")
        self.rows.append(row)
        print(json.dumps(row), flush=True)
