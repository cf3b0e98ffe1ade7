"""Makes small data sets of coloured rectangles that nobody has to download: for detection and for segmentation.

    python -m tools.synthetic_scenes runs/voc --layout voc       200 images in VOC's layout, a fifth of them for tests
    python -m tools.synthetic_scenes runs/pairs --layout pairs   image and mask pairs

Image ``i`` is the same wherever it is made: grey noise with a red ``disc`` or a green ``square``, or both.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["NAMES", "coco", "main", "pairs", "scene", "voc"]

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


LAYOUTS = {"voc": voc, "coco": coco, "pairs": pairs}


def main(arguments: list[str] | None = None) -> int:
    """Writes a data set; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of the data set; must not exist")
    parser.add_argument("--layout", choices=list(LAYOUTS), default="voc")
    parser.add_argument("--images", type=int, default=200, help="of which a fifth are for tests")
    parser.add_argument("--side", type=int, default=160, help="pixels of a side")
    asked = parser.parse_args(arguments)
    test = max(1, asked.images // 5)
    LAYOUTS[asked.layout](asked.folder, train=asked.images - test, test=test, side=asked.side)
    return 0


if __name__ == "__main__":
    sys.exit(main())
