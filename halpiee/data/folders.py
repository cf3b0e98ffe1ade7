"""Folders with one folder of images per class: ImageNet, TinyImageNet as its archive unpacks, or one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from halpiee.data.images import image_files
from halpiee.data.source import ImageSource, Splits
from halpiee.data.split import FileSplit
from halpiee.errors import DataError

__all__ = ["TEST_NAMES", "FolderSource", "split_folders"]

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


def split_folders(path: Path, what: str, *, prefer: str = "test") -> tuple[Path, Path]:
    """Returns the folders ``train`` and ``test`` (or ``val`` …) of a data set.

    Args:
        path: of the data set.
        what: each of them holds, for the message.
        prefer: which name is looked for first.

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
