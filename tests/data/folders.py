"""Small data sets on disk, image i of class c filled with a value that tells it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["class_folder", "encoded", "tar_folder"]


def encoded(value: int, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    """Returns an image file of one grey value."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (value,) * 3).save(buffer, kind)
    return buffer.getvalue()


def class_folder(path: Path, *, train: int = 12, test: int = 4, classes: int = 2, side: int = 8) -> Path:
    """Image i of a split has the value i and the class i mod ``classes``; files sort by class, then number."""
    for split, n in (("train", train), ("val", test)):
        for i in range(n):
            folder = path / split / f"class{i % classes}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:04}.png").write_bytes(encoded(i, (side, side)))
    return path


def tar_folder(path: Path, *, values: tuple[int, ...] = (3, 4, 5), compress: bool = False) -> Path:
    """One training and one test tar of images and ``.cls`` files; the class is the value mod 2."""
    path.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        with tarfile.open(path / f"{split}-000.tar", "w:gz" if compress else "w") as tar:
            for value in values:
                for name, blob in (
                    (f"{value}.png", encoded(value)),
                    (f"{value}.cls", str(value % 2).encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(blob)
                    tar.addfile(member, io.BytesIO(blob))
    return path


def sixteen_bit(path: Path, value: int) -> None:
    """Writes a 16-bit grey PNG of one value."""
    Image.fromarray(np.full((8, 8), value, dtype=np.uint16)).save(path)
