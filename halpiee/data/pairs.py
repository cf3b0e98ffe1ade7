"""Folders of image and mask pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halpiee.data.folders import split_folders
from halpiee.data.images import image_files, open_image, read_bytes
from halpiee.data.source import ImageSource, Splits
from halpiee.data.split import Files, Split
from halpiee.errors import DataError

__all__ = ["VOID", "PairSource"]

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
        made, listed = [], self.path / "classes.txt"
        names = listed.read_text("utf-8").split("\n") if listed.is_file() else []
        classes = tuple(name.strip() for name in names if name.strip())
        for folder in split_folders(self.path, "images/ and masks/", prefer="test"):
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
    """Images with a mask each.

    Args:
        root: folder of all files.
        images: their files.
        masks: the file of each image's mask.
    """

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
