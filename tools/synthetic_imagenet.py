"""Makes a folder like ImageNet of JPEGs that nobody has to download, and times the loader on it.

    python -m tools.synthetic_imagenet /tmp/imagenet --images 100000 --classes 1000     train/CLASS, val/CLASS
    python -m tools.synthetic_imagenet /tmp/imagenet --time 2000                        images/s, and of torchvision's

Images have sides of 224 to 500 pixels and the detail of photographs: about 50 kB each. ``--time`` reads the training
images with ``--workers`` processes through halpiee's loader and through torchvision's ImageFolder in turns, with the
same random resized crop and flip, and prints both rates and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["main", "make", "photograph"]

BATCH = 64


def photograph(seed: int, label: int, *, least: int = 224, most: int = 500) -> Image.Image:
    """Returns an image with detail at every scale, in a colour that hangs on its class."""
    rng = np.random.default_rng(seed)
    w, h = (int(side) for side in rng.integers(least, most + 1, 2))
    total = np.zeros((h, w, 3), dtype=np.float32)
    for cells in (4, 16, 64):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((w, h), Image.Resampling.BICUBIC), dtype=np.float32) / 3
    colour = np.random.default_rng(label).integers(0, 256, 3)
    return Image.fromarray((0.7 * total + 0.3 * colour).clip(0, 255).astype(np.uint8))


def make(folder: Path, *, images: int, classes: int, test: int | None = None) -> None:
    """Writes ``images`` training images and a tenth as many test images, dealt out to the classes in turn.

    Args:
        folder: of the data set; files that are there already stay.
        images: for training.
        classes: folders ``n00000000`` and so on.
        test: images of ``val``; None: a tenth of the training images, at least one a class.
    """
    for split, first, n in (("train", 0, images), ("val", images, test or max(classes, images // 10))):
        for i in range(n):
            label = i % classes
            path = folder / split / f"n{label:08}" / f"{split}_{i:08}.JPEG"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                photograph(first + i, label).save(path, quality=90)


def ours(folder: Path, workers: int) -> Iterator[Any]:
    """Yields halpiee's batches of 224 pixels."""
    from halpiee.data.opening import open_data
    from halpiee.data.options import Loading
    from halpiee.data.sources import find

    data = open_data(find(str(folder), 224), Loading(keep="files", augment="flip,crop", workers=workers))
    return data.batches(0, BATCH)


def theirs(folder: Path, workers: int) -> Iterator[Any]:
    """Yields torchvision's: ImageFolder, transforms and normalisation in the workers, as its reference scripts do."""
    import torch
    from torchvision import datasets
    from torchvision.transforms import v2

    change = v2.Compose(
        [
            v2.RandomResizedCrop(224, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    dataset = datasets.ImageFolder(str(folder / "train"), change)
    return iter(
        torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, drop_last=True)
    )


def rate(batches: Iterator[Any], images: int) -> float:
    """Returns images per second, the first batch aside."""
    next(batches)
    begun, seen = time.perf_counter(), 0
    for x, _ in islice(batches, max(1, images // BATCH)):
        seen += len(x)
    return seen / (time.perf_counter() - begun)


def main(arguments: list[str] | None = None) -> int:
    """Makes the images, or times the loaders; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--time", type=int, metavar="IMAGES", help="images of each loader and turn")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args(arguments)
    if asked.time is None:
        make(asked.folder, images=asked.images, classes=asked.classes)
        return 0
    ratios = []
    for turn in range(asked.turns):
        own, other = (rate(loader(asked.folder, asked.workers), asked.time) for loader in (ours, theirs))
        ratios.append(own / other)
        print(
            f"turn {turn + 1}: halpiee {own:.0f} images/s, torchvision {other:.0f}, ratio {own / other:.2f}"
        )
    print(f"median ratio {statistics.median(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
