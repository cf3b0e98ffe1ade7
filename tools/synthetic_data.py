"""Makes data sets that nobody has to download: folders of photographs like ImageNet, and scenes with boxes or masks.

    python -m tools.synthetic_data runs/imagenet --images 100000 --classes 1000    train/CLASS, val/CLASS
    python -m tools.synthetic_data runs/imagenet --time 2000       images/s of halpiee's loader, and of torchvision's
    python -m tools.synthetic_data runs/imagenet --memory          most MB while an epoch is read
    python -m tools.synthetic_data runs/voc --layout voc --images 200              VOC's layout; or coco
    python -m tools.synthetic_data runs/pairs --layout pairs --images 200          image and mask pairs

Photographs have sides of 224 to 500 pixels and detail at every scale: about 50 kB each. ``--distinct`` draws fewer and
links them under further names: to a loader these are as many files. ``--time`` reads the training images with
``--workers`` processes through both loaders in turns, with the same random resized crop and flip, and prints both
rates and their ratio. Scenes are grey noise with a red ``disc`` or a green ``square``, or both; a fifth is for tests.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BATCH = 64


def photograph(seed: int, label: int) -> Image.Image:
    """Returns an image with detail at every scale, in the colour of its class."""
    rng = np.random.default_rng(seed)
    w, h = (int(side) for side in rng.integers(224, 501, 2))
    total = np.zeros((h, w, 3), dtype=np.float32)
    for cells in (4, 16, 64):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((w, h), Image.Resampling.BICUBIC), dtype=np.float32) / 3
    colour = np.random.default_rng(label).integers(0, 256, 3)
    return Image.fromarray((0.7 * total + 0.3 * colour).clip(0, 255).astype(np.uint8))


def make(
    folder: Path, *, images: int, classes: int, test: int | None = None, distinct: int | None = None
) -> None:
    """Writes ``images`` training images and a tenth as many test images, dealt out to the classes in turn.

    Args:
        folder: of the data set; files that are there already stay.
        images: for training.
        classes: folders ``n00000000`` and so on.
        test: images of ``val``; None: a tenth of the training images, at least one a class.
        distinct: images of each split that are drawn, a multiple of ``classes``; the others are links to these.
    """
    for split, first, n in (("train", 0, images), ("val", images, test or max(classes, images // 10))):
        for i in range(n):
            label = i % classes
            path = folder / split / f"n{label:08}" / f"{split}_{i:08}.JPEG"
            if path.is_file():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if distinct is not None and i >= distinct:
                os.link(path.with_name(f"{split}_{i % distinct:08}.JPEG"), path)
            else:
                photograph(first + i, label).save(path, quality=90)


def peak_mb(folder: Path) -> tuple[int, float]:
    """Returns how many images an epoch shows, and the most memory that this process has taken by then."""
    import resource

    seen = sum(len(x) for x, _ in ours(folder, 0))
    return seen, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(folder: Path, workers: int) -> Iterator[Any]:
    """Yields halpiee's batches of 224 pixels."""
    from halpiee.data.loading import Loading
    from halpiee.data.opening import find, open_data

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


NAMES = ("disc", "square")
COLOURS = ((220, 40, 40), (40, 220, 40))

Scene = tuple[NDArray[np.uint8], list[tuple[int, tuple[int, int, int, int]]]]


def scene(i: int, side: int) -> Scene:
    """Returns an image of grey noise with one or two rectangles, and the class and corners of each."""
    rng = np.random.default_rng(i)
    image = rng.integers(90, 110, (side, side, 3), dtype=np.uint8)
    things = []
    for kind in range(1 + i % 2):
        w, h = rng.integers(side // 4, side // 2, 2)
        x, y = rng.integers(0, side - w), rng.integers(0, side - h)
        label = (i + kind) % 2
        image[y : y + h, x : x + w] = COLOURS[label]
        things.append((label, (int(x), int(y), int(x + w), int(y + h))))
    return image, things


def voc(path: Path, *, train: int = 8, test: int = 4, side: int = 64) -> Path:
    """Writes VOC's layout; corners there count from 1, and the last pixel is included."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (path / name).mkdir(parents=True)
    for split, first, n in (("train", 0, train), ("val", train, test)):
        for i in range(first, first + n):
            image, things = scene(i, side)
            Image.fromarray(image).save(path / f"JPEGImages/{i:06}.jpg", quality=95)
            objects = "".join(
                f"<object><name>{NAMES[label]}</name><difficult>0</difficult><bndbox><xmin>{x0 + 1}</xmin>"
                f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
                for label, (x0, y0, x1, y1) in things
            )
            size = f"<size><width>{side}</width><height>{side}</height><depth>3</depth></size>"
            (path / f"Annotations/{i:06}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        listed = "\n".join(f"{i:06}" for i in range(first, first + n))
        (path / f"ImageSets/Main/{split}.txt").write_text(listed + "\n")
    return path


def coco(path: Path, *, train: int = 8, test: int = 4, side: int = 64) -> Path:
    """Writes COCO's layout: boxes are corner, width and height; category ids have gaps."""
    (path / "annotations").mkdir(parents=True)
    for split, first, n in (("train2017", 0, train), ("val2017", train, test)):
        (path / split).mkdir()
        images, annotations = [], []
        for i in range(first, first + n):
            image, things = scene(i, side)
            Image.fromarray(image).save(path / split / f"{i}.jpg", quality=95)
            images.append({"id": i, "file_name": f"{i}.jpg", "width": side, "height": side})
            for label, (x0, y0, x1, y1) in things:
                box = [x0, y0, x1 - x0, y1 - y0]
                annotations.append({"image_id": i, "category_id": 7 + 10 * label, "bbox": box, "iscrowd": 0})
        categories = [{"id": 7 + 10 * k, "name": name} for k, name in enumerate(NAMES)]
        found = {"images": images, "annotations": annotations, "categories": categories}
        (path / f"annotations/instances_{split}.json").write_text(json.dumps(found))
    return path


def pairs(path: Path, *, train: int = 8, test: int = 4, side: int = 32) -> Path:
    """Writes image and mask pairs: class 0 is the ground, 1 and 2 the rectangles."""
    for split, first, n in (("train", 0, train), ("val", train, test)):
        for kind in ("images", "masks"):
            (path / split / kind).mkdir(parents=True)
        for i in range(first, first + n):
            image, things = scene(i, side)
            mask = np.zeros((side, side), dtype=np.uint8)
            for label, (x0, y0, x1, y1) in things:
                mask[y0:y1, x0:x1] = label + 1
            Image.fromarray(image).save(path / split / f"images/{i}.jpg", quality=95)
            Image.fromarray(mask).save(path / split / f"masks/{i}.png")
    return path


SCENES = {"voc": voc, "coco": coco, "pairs": pairs}


def main(arguments: list[str] | None = None) -> int:
    """Makes the images, or times the loaders; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", choices=["imagenet", *SCENES], default="imagenet")
    parser.add_argument("--side", type=int, default=160, help="pixels of a side of a scene")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--test", type=int, help="images of val (default: a tenth)")
    parser.add_argument("--distinct", type=int, help="images that are drawn (default: all)")
    parser.add_argument("--memory", action="store_true", help="read an epoch, and print its memory")
    parser.add_argument("--time", type=int, metavar="IMAGES", help="images of each loader and turn")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args(arguments)
    if given.layout in SCENES:
        test = max(1, given.images // 5)
        SCENES[given.layout](given.folder, train=given.images - test, test=test, side=given.side)
        return 0
    if given.memory:
        seen, most = peak_mb(given.folder)
        print(f"{seen:,} images read, at most {most:.0f} MB")
        return 0
    if given.time is None:
        make(
            given.folder, images=given.images, classes=given.classes, test=given.test, distinct=given.distinct
        )
        return 0
    ratios = []
    for turn in range(given.turns):
        own, other = (rate(loader(given.folder, given.workers), given.time) for loader in (ours, theirs))
        ratios.append(own / other)
        print(f"turn {turn + 1}: {own:.0f} images/s, torchvision {other:.0f}, ratio {own / other:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
