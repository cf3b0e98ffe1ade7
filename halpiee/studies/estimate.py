"""How long a study takes: the multiply-accumulates of its trainings, at a rate that a processor core does."""

from __future__ import annotations

from collections.abc import Sequence

from halpiee.studies.study import Cell

__all__ = ["core_hours"]

MACS_PER_S = 2e10
"""Of one core of a 2020s server in a training step of a CIFAR network; a GPU does a hundred times as many."""

IMAGES = {32: 50_000, 64: 100_000, 224: 1_281_167}
"""Training images of CIFAR, TinyImageNet and ImageNet, by pixels of a side."""

MACS = {
    "resnet8": (12.5e6, 32),
    "resnet20": (40.8e6, 32),
    "resnet56": (125.7e6, 32),
    "resnet50_cifar": (1297.8e6, 32),
    "vgg13_bn": (228.3e6, 32),
    "vgg16_bn": (313.2e6, 32),
    "vgg19_bn": (398.1e6, 32),
    "mobilenet_v1_cifar": (46.4e6, 32),
    "wrn22_2": (157.7e6, 32),
    "resnet18_modified": (2221.8e6, 64),
    "resnet50": (4089e6, 224),
    "mobilenet_v1": (568.7e6, 224),
}
"""Network → multiply-accumulates of one image, pixels of a side; see ``tests/zoo/test_networks.py``."""


def core_hours(cells: Sequence[Cell]) -> float | None:
    """Returns the hours that one core takes for some cells; ``None`` where a network's size is not known.

    A training step is three forwards. A sparse network costs a core what the dense one does, and a rewound training is
    two.
    """
    total = 0.0
    for cell in cells:
        known = MACS.get(str(cell.options.get("model")))
        if known is None:
            return None
        macs, side = known
        twice = 2 if cell.options.get("method") in ("ltr", "lth", "lrr") else 1
        epochs = twice * cell.options.get("epochs", 20) + cell.knobs.get("onward", 0) * len(
            cell.knobs.get("times", ())
        )
        total += 3 * macs * IMAGES[side] * epochs
    return total / MACS_PER_S / 3600
