"""Image files and bytes to uint8 arrays of one size."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halpiee.errors import DataError

__all__ = [
    "decode",
    "decode_all",
    "decode_file",
    "fits_memory",
    "image_files",
    "one_size",
    "resized",
    "shift_for",
]


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


def image_files(folder: Path) -> Iterator[Path]:
    """Yields every image file below a folder, in order of its name."""
    if folder.is_dir():
        for root, folders, files in os.walk(folder):
            folders.sort()
            yield from (Path(root) / f for f in sorted(files) if f.lower().endswith(IMAGE_SUFFIXES))


def decode_file(path: Path, size: int | None) -> NDArray[np.uint8]:
    """Returns the image in a file as ``decode`` does."""
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); check its permissions or take it out") from error
    return decode(blob, str(path), size)


def decode(blob: bytes, where: str, size: int | None) -> NDArray[np.uint8]:
    """Returns uint8 ``[3, H, W]``; with a size, the shorter side scaled to it and the centre cut out."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(blob)) as opened:
            image: Image.Image = opened if opened.mode == "RGB" else opened.convert("RGB")
            if size is not None and image.size != (size, size):
                scale = size / min(image.size)
                wide, high = (max(size, round(side * scale)) for side in image.size)
                left, top = (wide - size) // 2, (high - size) // 2
                image = image.resize((wide, high), Image.Resampling.BILINEAR)
                image = image.crop((left, top, left + size, top + size))
            array: NDArray[np.uint8] = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where} is not a readable image ({error}); replace it or take it out") from error
    return array


def decode_all(items: Sequence[tuple[bytes | Path, str]], size: int | None, name: str) -> Tensor:
    """Decodes images of one size, in order.

    Args:
        items: bytes or a file, and where they come from.
        size: as for ``decode``.
        name: the source, for the error text.

    Returns:
        uint8 ``[N, 3, H, W]``.

    Raises:
        DataError: one is unreadable (which), or sizes differ.
    """

    def one(item: tuple[bytes | Path, str]) -> NDArray[np.uint8]:
        return decode_file(item[0], size) if isinstance(item[0], Path) else decode(item[0], item[1], size)

    # A decoder gives the interpreter lock back, but a thumbnail is done before another thread has taken it:
    # 60,000 CIFAR images take 7 s on one thread and 17 s on eight.
    blobs = [item[0] for item in items]
    small = sum(len(b) for b in blobs[:64] if isinstance(b, bytes)) < 64 * 16_384
    if small and not any(isinstance(b, Path) for b in blobs[:1]):
        arrays = [one(item) for item in items]
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            arrays = list(pool.map(one, items))
    one_size([array.shape for array in arrays], name)
    return torch.from_numpy(np.stack(arrays))


def one_size(shapes: Sequence[tuple[int, ...]], name: str) -> tuple[int, int, int]:
    """Returns the one shape (channels, height, width) that all images have, or refuses."""
    found = sorted(set(shapes))
    if len(found) > 1:
        sizes = ", ".join(f"{h}×{w}" for _, h, w in found[:3])
        raise DataError(
            f"--data {name!r}: images differ in size ({sizes} …); give --size to bring them to one"
        )
    c, h, w = found[0]
    return c, h, w


def fits_memory(size_bytes: int, name: str) -> None:
    """Refuses what would not fit into this machine's memory once decoded."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size_bytes > 0.8 * memory_bytes:
        raise DataError(
            f"--data {name!r} needs {size_bytes / 1e9:.1f} GB decoded, this machine has "
            f"{memory_bytes / 1e9:.1f} GB of memory; give a smaller --size"
        )


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
