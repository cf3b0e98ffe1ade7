"""Folders of images: one folder per class (ImageNet, TinyImageNet as its archive unpacks), or images with masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halpiee.data.images import image_files, open_image, read_bytes
from halpiee.data.source import Files, FileSplit, ImageSource, Split, Splits
from halpiee.errors import DataError

TEST_NAMES = ("test", "val", "valid", "validation")
TINY = "val_annotations.txt"
"""In TinyImageNet's ``val`` stands the class of each image in this file; its ``test`` has no labels."""

Found = list[tuple[Path, int]]


@dataclass(frozen=True)
class FolderSource(ImageSource):
    """A folder with ``train/`` and ``val/`` or ``test/``, each with one folder of images per class."""

    path: Path
    size: int | None = None

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


@dataclass(frozen=True)
class PairSource(ImageSource):
    """``train/images`` and ``train/masks``, ``val/images`` and ``val/masks``.

    An image and its mask have one name but for the ending. A mask is one channel or a palette, a pixel's number is its
    class, 255 counts as none. Line i of ``classes.txt`` names class i.
    """

    path: Path
    size: int | None = None

    @classmethod
    def of(cls, data: str, size: int | None) -> PairSource | None:
        """Returns the source where ``data`` is such a folder, or any other one that exists; None: it is none."""
        path = Path(data).expanduser()
        return cls(path, size) if path.is_dir() else None

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
