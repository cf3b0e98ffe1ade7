"""Folders of images: one folder per class (ImageNet, TinyImageNet as its archive unpacks), images with masks or boxes.

Boxes around things are read from the layouts of VOC and COCO.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import torch

from halpiee.data.images import image_files, open_image, read_bytes
from halpiee.data.source import Files, FileSplit, InFolder, Split, Splits
from halpiee.errors import DataError

TEST_NAMES = ("test", "val", "valid", "validation")
TINY = "val_annotations.txt"
"""In TinyImageNet's ``val`` stands the class of each image in this file; its ``test`` has no labels."""

Found = list[tuple[Path, int]]


class FolderSource(InFolder):
    """A folder with ``train/`` and ``val/`` or ``test/``, each with one folder of images per class."""

    def splits(self) -> Splits:
        """Lists the files."""
        folders = train, test = split_folders(
            self.path, "one folder per class", prefer="val" if self._tiny else "test"
        )
        classes = tuple(sorted(p.name for p in train.iterdir() if p.is_dir()))
        unknown = sorted({p.name for p in test.iterdir() if p.is_dir()} - set(classes))
        if classes and unknown and not self._tiny:
            raise DataError(
                f"--data {str(self.path)!r}: {test.name}/ has the class {unknown[0]!r}, which train/ lacks; "
                "both need the same class folders"
            )
        found: list[Found] = []
        for folder in folders:
            files = [(f, i) for i, name in enumerate(classes) for f in image_files(folder / name)]
            if folder is test and self._tiny:
                files = self._annotated(classes)
            if not files:
                raise DataError(
                    f"--data {str(self.path)!r}: {folder.name}/ holds no images in class folders; "
                    f"put them into {folder.name}/CLASS/*.jpg (or .png, .bmp, .webp …)"
                )
            lacking = [name for i, name in enumerate(classes) if i not in {label for _, label in files}]
            if lacking and (folder is train or not self._tiny):
                raise DataError(
                    f"--data {str(self.path)!r}: {folder.name}/ has no image of the class {lacking[0]!r}; put some "
                    f"into {folder.name}/{lacking[0]}, or take the class out of both splits"
                )
            found.append(files)
        return Splits(str(self.path), FileSplit(self.path, found[0]), FileSplit(self.path, found[1]), classes)

    @property
    def _tiny(self) -> bool:
        return (self.path / "val" / TINY).is_file()

    def _annotated(self, classes: tuple[str, ...]) -> Found:
        """Returns the files of TinyImageNet's ``val/images``."""
        number = {name: i for i, name in enumerate(classes)}
        found: Found = []
        file = self.path / "val" / TINY
        for row, line in enumerate(file.read_text("utf-8", errors="replace").splitlines(), 1):
            name, _, rest = line.partition("\t")
            label = number.get(rest.split("\t")[0])
            if label is None or "/" in name:
                raise DataError(
                    f"line {row} of {file} names {line[:60]!r}, which is no image and class of train/; unpack the "
                    "archive again"
                )
            found.append((self.path / "val" / "images" / name, label))
        return found


def listed_classes(folder: Path) -> tuple[str, ...]:
    """Returns the lines of a folder's ``classes.txt``; line i names class i. Nothing where there is no such file."""
    file = folder / "classes.txt"
    lines = file.read_text("utf-8").split("\n") if file.is_file() else []
    return tuple(line.strip() for line in lines if line.strip())


def split_folders(path: Path, what: str, *, prefer: str = "test") -> tuple[Path, Path]:
    """Returns the folders ``train`` and ``test`` (or ``val`` …; ``prefer`` comes first), which should hold ``what``.

    Raises:
        DataError: one is missing.
    """
    train = path / "train"
    names = (prefer, *TEST_NAMES)
    test = next((path / name for name in names if (path / name).is_dir()), None)
    if not train.is_dir() or test is None:
        found = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise DataError(
            f"--data {str(path)!r}: found {found}; "
            f"a folder of images needs train/ and val/ (or test/), each with {what}"
        )
    return train, test


VOID = 255
"""The class of pixels that do not count."""
LOOKED = 500
"""Masks that are read to count the classes where nothing names them."""


class PairSource(InFolder):
    """``train/images`` and ``train/masks``, ``val/images`` and ``val/masks``.

    An image and its mask have one name but for the ending. A mask is one channel or a palette, a pixel's number is its
    class, 255 counts as none. Line i of ``classes.txt`` names class i.
    """

    def splits(self) -> Splits:
        """Lists the files."""
        made, classes = [], listed_classes(self.path)
        for folder in split_folders(self.path, "images/ and masks/"):
            masks = {path.stem: path for path in image_files(folder / "masks")}
            images = list(image_files(folder / "images"))
            lacking = next((path for path in images if path.stem not in masks), None)
            if not images or lacking is not None:
                what = "no images" if not images else f"the image {lacking and lacking.name} without a mask"
                raise DataError(
                    f"--data {str(self.path)!r}: {folder.name}/images has {what}; put pairs of one name into "
                    f"{folder.name}/images and {folder.name}/masks"
                )
            made.append(PairSplit(self.path, images, [masks[path.stem] for path in images]))
        if not classes:
            largest = max(made[0].largest(i) for i in range(min(LOOKED, len(made[0]))))
            classes = tuple(str(i) for i in range(largest + 1))
        for split in made:
            split.n_classes = len(classes)
        return Splits(str(self.path), made[0], made[1], classes, "mask")


class PairSplit(Split):
    """Images with a mask each, files below one folder."""

    n_classes = VOID

    def __init__(self, root: Path, images: list[Path], masks: list[Path]) -> None:
        self._images, self._masks = Files(root, images), Files(root, masks)

    def __len__(self) -> int:
        return len(self._images)

    def largest(self, index: int) -> int:
        """Returns the largest class of a mask."""
        mask = self._mask(index)
        return int(mask[mask != VOID].max(initial=0))

    def read(self, index: int) -> tuple[Any, Any]:
        """Returns an image and its mask, uint8 ``[H, W]``."""
        from torchvision import tv_tensors

        image = open_image(read_bytes(self._images[index]), str(self._images[index]))
        mask = self._mask(index)
        if mask.shape != (image.height, image.width):
            raise DataError(
                f"{self._masks[index]} is {mask.shape[0]}×{mask.shape[1]} and its image {image.height}×{image.width} "
                "(height × width); bring them to one size"
            )
        largest = int(mask[mask != VOID].max(initial=0))
        if largest >= self.n_classes:
            raise DataError(
                f"{self._masks[index]} has a pixel of the class {largest}; classes are 0 to {self.n_classes - 1}, and "
                "255 counts as none: name all classes in classes.txt, or mend the mask"
            )
        return image, tv_tensors.Mask(torch.from_numpy(mask))

    def _mask(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        path = self._masks[index]
        return np.array(open_image(read_bytes(path), str(path), mode="L"), dtype=np.uint8)


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


class BoxSource(InFolder):
    """A folder in VOC's layout or in COCO's.

    VOC: ``JPEGImages``, ``Annotations/*.xml`` and the lists ``ImageSets/Main/train.txt`` and ``val.txt`` (or
    ``test.txt``); objects marked as difficult are left out. COCO: ``annotations/*train*.json`` and ``*val*.json``,
    images in ``train*/``, ``val*/`` or ``images/``; crowds are left out. Classes are numbered from 1, 0 is the
    background.
    """

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
