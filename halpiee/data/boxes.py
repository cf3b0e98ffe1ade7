"""Images with boxes around things, in the layouts of VOC and COCO."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import torch

from halpiee.data.folders import TEST_NAMES
from halpiee.data.images import open_image, read_bytes
from halpiee.data.source import Files, ImageSource, Split, Splits
from halpiee.errors import DataError

Box = tuple[str, float, float, float, float]
"""Class, and x and y of two corners in pixels."""
Boxed = list[tuple[Path, list[Box]]]
"""Images, and their boxes."""


class _Image(msgspec.Struct):
    id: int
    file_name: str
    width: int
    height: int


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _Category(msgspec.Struct):
    id: int
    name: str


class _Coco(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True)
class BoxSource(ImageSource):
    """A folder in VOC's layout or in COCO's.

    VOC: ``JPEGImages``, ``Annotations/*.xml`` and the lists ``ImageSets/Main/train.txt`` and ``val.txt`` (or
    ``test.txt``); objects marked as difficult are left out. COCO: ``annotations/*train*.json`` and ``*val*.json``,
    images in ``train*/``, ``val*/`` or ``images/``; crowds are left out. Classes are numbered from 1, 0 is the
    background.
    """

    path: Path
    size: int | None = None

    @classmethod
    def of(cls, data: str, size: int | None) -> BoxSource | None:
        """Returns the source where ``data`` is a folder; None: it is none."""
        path = Path(data).expanduser()
        return cls(path, size) if path.is_dir() else None

    def splits(self) -> Splits:
        """Reads all annotations."""
        if (self.path / "Annotations").is_dir():
            train, test = self._voc()
        elif (self.path / "annotations").is_dir():
            train, test = self._coco()
        else:
            found = ", ".join(sorted(p.name for p in self.path.iterdir())[:5]) or "nothing"
            raise DataError(
                f"--data {str(self.path)!r}: found {found}; boxes are read from VOC's layout (JPEGImages, Annotations, "
                "ImageSets/Main) or COCO's (annotations/*.json, images)"
            )
        classes = tuple(sorted({box[0] for _, boxes in train for box in boxes}))
        if not classes:
            raise DataError(
                f"--data {str(self.path)!r}: no training image has a box; give annotations with some"
            )
        unknown = sorted({box[0] for _, boxes in test for box in boxes} - set(classes))
        if unknown:
            raise DataError(
                f"--data {str(self.path)!r}: test images show the class {unknown[0]!r}, which no training image has; "
                "take it out, or add some"
            )
        number = {name: i + 1 for i, name in enumerate(classes)}
        made = [BoxSplit(self.path, split, number) for split in (train, test)]
        return Splits(str(self.path), made[0], made[1], classes, "boxes")

    def _voc(self) -> list[Boxed]:
        lists = self.path / "ImageSets" / "Main"
        test = next((name for name in ("val", *TEST_NAMES) if (lists / f"{name}.txt").is_file()), None)
        if test is None or not (lists / "train.txt").is_file():
            raise DataError(
                f"--data {str(self.path)!r}: {lists} needs train.txt and val.txt (or test.txt); write them"
            )
        splits: list[Boxed] = []
        for name in ("train", test):
            keys = (lists / f"{name}.txt").read_text("utf-8").split()
            if odd := next((key for key in keys if "/" in key or key.startswith(".")), None):
                raise DataError(
                    f"{lists / name}.txt names {odd[:60]!r}, which is no image; give names without folders"
                )
            splits.append([self._voc_image(key) for key in keys])
        return splits

    def _voc_image(self, key: str) -> tuple[Path, list[Box]]:
        path = self.path / "Annotations" / f"{key}.xml"
        try:
            root = ElementTree.fromstring(read_bytes(path))
            width, height = (float(_text(root, f"size/{side}")) for side in ("width", "height"))
            boxes = []
            for thing in root.iter("object"):
                if (thing.findtext("difficult") or "0").strip() == "1":
                    continue
                corners = [float(_text(thing, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
                x, y = corners[0] - 1, corners[1] - 1  # VOC counts pixels from 1, the last one included
                boxes.append((_text(thing, "name").strip(), x, y, corners[2], corners[3]))
        except (ElementTree.ParseError, ValueError) as error:
            raise DataError(f"{path} is no annotation of VOC ({error}); mend it or take it out") from error
        _inside(boxes, width, height, str(path))
        return self.path / "JPEGImages" / f"{key}.jpg", boxes

    def _coco(self) -> list[Boxed]:
        folder = self.path / "annotations"
        files = sorted(folder.glob("*.json"))
        splits: list[Boxed] = []
        for names in (("train",), ("val", *TEST_NAMES)):
            file = next((file for name in names for file in files if name in file.stem), None)
            if file is None:
                raise DataError(
                    f"--data {str(self.path)!r}: {folder} needs *train*.json and *val*.json (or test); found "
                    f"{', '.join(file.name for file in files[:5]) or 'none'}"
                )
            splits.append(self._coco_file(file, next(name for name in names if name in file.stem)))
        return splits

    def _coco_file(self, file: Path, split: str) -> Boxed:
        try:
            found = msgspec.json.decode(read_bytes(file), type=_Coco)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise DataError(f"{file} is no annotation file of COCO ({error}); fetch it again") from error
        names = {category.id: category.name for category in found.categories}
        folders = [p for p in sorted(self.path.iterdir()) if p.is_dir() and p.name.startswith(split)]
        folder = folders[0] if folders else self.path / "images"
        images = {image.id: (image, list[Box]()) for image in found.images}
        for one in found.annotations:
            if one.image_id not in images or one.category_id not in names:
                raise DataError(
                    f"{file} has a box of image {one.image_id} and category {one.category_id}, of which it lacks one; "
                    "fetch it again"
                )
            x, y, w, h = one.bbox
            if not one.iscrowd and w > 0 and h > 0:  # COCO's own files have a few boxes without area
                images[one.image_id][1].append((names[one.category_id], x, y, x + w, y + h))
        made: Boxed = []
        for image, boxes in images.values():
            _inside(boxes, image.width, image.height, f"image {image.file_name[:80]!r} of {file}")
            if image.file_name.startswith("/") or ".." in image.file_name:
                raise DataError(
                    f"{file} names the image {image.file_name[:80]!r}; names lie below the folder"
                )
            made.append((folder / image.file_name, boxes))
        return made


class BoxSplit(Split):
    """Images with boxes, files below one folder; ``number`` is that of each class."""

    def __init__(self, root: Path, examples: Boxed, number: dict[str, int]) -> None:
        self._images = Files(root, [path for path, _ in examples])
        self._starts = np.cumsum([0, *(len(boxes) for _, boxes in examples)])
        flat = [box for _, boxes in examples for box in boxes]
        self._boxes = np.array([box[1:] for box in flat], dtype=np.float32).reshape(-1, 4)
        self._labels = np.array([number[box[0]] for box in flat], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> tuple[Any, Any]:
        """Returns an image, and its ``boxes`` float32 ``[M, 4]`` and ``labels`` int64 ``[M]``."""
        from torchvision import tv_tensors

        path = self._images[index]
        image = open_image(read_bytes(path), str(path))
        at = slice(int(self._starts[index]), int(self._starts[index + 1]))
        boxes = torch.from_numpy(self._boxes[at])
        if len(boxes) and bool((boxes[:, 2:].amax(0) > torch.tensor(image.size) + 1).any()):
            raise DataError(
                f"{path} is {image.height}×{image.width} (height × width), and a box reaches beyond it; mend its "
                "annotation"
            )
        canvas = (image.height, image.width)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas),
            "labels": torch.from_numpy(self._labels[at]),
        }
        return image, target


def _text(node: ElementTree.Element, path: str) -> str:
    found = node.findtext(path)
    if found is None:
        raise ValueError(f"no {path}")
    return found


def _inside(boxes: list[Box], width: float, height: float, where: str) -> None:
    """Refuses a box outside its image, or one without an area; a pixel beyond the border is rounding."""
    for name, x0, y0, x1, y1 in boxes:
        if not (-1 <= x0 < x1 <= width + 1 and -1 <= y0 < y1 <= height + 1):
            raise DataError(
                f"{where} has a box of {name[:40]!r} from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}), which does not lie in "
                f"its image of {width:g}×{height:g} pixels; mend or take out the box"
            )
