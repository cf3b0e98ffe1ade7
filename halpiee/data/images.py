"""Image files and bytes to uint8 arrays and tensors of one size."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halpiee.errors import DataError

if TYPE_CHECKING:
    from PIL import Image


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class Preprocess:
    """What a network is given: ``halpiee.load(RUN).preprocess(image)`` prepares an image as test images were."""

    # pixels of the shorter side, or (height, width); None: images stay as large as they are
    resize: list[int] | None
    size: list[int]  # (height, width) of what is then cut out of the centre
    mean: list[float]  # per channel of 0–1, or of the numbers themselves where data are no uint8
    std: list[float]  # likewise
    classes: list[str]  # one name per answer

    def __call__(self, image: Any) -> Tensor:
        """Returns ``[1, C, H, W]`` of a PIL image of any mode, or of a tensor ``[C, H, W]``."""
        from torchvision.transforms import v2

        if not isinstance(image, Tensor):
            image = image.convert("RGB" if len(self.mean) == 3 else "L")
            if self.resize == [min(self.size)]:  # as data that are kept in memory
                image = cut(image, self.resize[0])
        if self.resize is not None:
            image = v2.CenterCrop(self.size)(v2.Resize(self.resize)(image))
        x: Tensor = v2.functional.to_image(image).as_subclass(Tensor)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return ((x.float() / (255.0 if x.dtype == torch.uint8 else 1.0) - mean) / std).unsqueeze(0)


def image_files(folder: Path) -> Iterator[Path]:
    """Yields every image file below a folder, in order of its name."""
    if folder.is_dir():
        for root, folders, files in os.walk(folder):
            folders.sort()
            yield from (Path(root) / f for f in sorted(files) if f.lower().endswith(IMAGE_SUFFIXES))


def read_bytes(path: Path) -> bytes:
    """Returns a file's bytes.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); check its permissions or take it out") from error


def open_image(blob: bytes, where: str, *, mode: str = "RGB") -> Image.Image:
    """Returns a decoded image: grey, palette, CMYK and 16-bit ones become ``RGB``; transparency is dropped.

    ``where`` it lies is for the error. Mode ``L`` keeps the numbers of a mask as they are, palette or not.

    Raises:
        DataError: it is damaged or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(blob)) as opened:
            opened.load()
            image: Image.Image = opened  # decoded: it outlives its file
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        said = "no format that is known" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{where} is not a readable image ({said}); replace it or take it out") from error
    if mode == "L":
        return image if image.mode in ("L", "P", "1") else Image.fromarray(np.asarray(image).astype(np.uint8))
    if image.mode.startswith(
        ("I", "F")
    ):  # convert() would cut 16 bits off at 255: almost everything turns white
        levels = np.asarray(image, dtype=np.float64)
        image = Image.fromarray(
            np.uint8((levels / 257 if levels.max() > 255 else levels).round().clip(0, 255))
        )
    if "transparency" in image.info and image.mode in ("P", "L", "1"):
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def cut(image: Image.Image, size: int | None) -> Image.Image:
    """Returns an image with the shorter side scaled to a size (bilinear) and the centre cut out; None: as it is."""
    from PIL import Image

    if size is None or image.size == (size, size):
        return image
    scale = size / min(image.size)
    wide, high = (max(size, round(side * scale)) for side in image.size)
    left, top = (wide - size) // 2, (high - size) // 2
    return image.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Returns uint8 ``[3, H, W]``."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def resized(x: Tensor, size: int | None) -> Tensor:
    """Returns ``[N, C, H, W]`` images, shorter side scaled to ``size`` and the centre cut out, dtype kept."""
    if size is None or x.ndim != 4 or x.shape[-2:] == (size, size):
        return x
    h, w = x.shape[-2:]
    scale = size / min(h, w)
    high, wide = max(size, round(h * scale)), max(size, round(w * scale))
    parts = []
    for part in torch.split(x, 4096):
        big = torch.nn.functional.interpolate(part.float(), (high, wide), mode="bilinear", antialias=True)
        top, left = (high - size) // 2, (wide - size) // 2
        parts.append(big[..., top : top + size, left : left + size])
    out = torch.cat(parts)
    return out.round().clamp(0, 255).to(torch.uint8) if x.dtype == torch.uint8 else out


def shift_for(side: int) -> int:
    """Returns the largest shift for a side: 4 of 32 pixels (CIFAR's), an eighth of smaller images."""
    return min(4, side // 8)
