"""Hugging Face data sets: a folder that ``save_to_disk`` wrote, or ``hf:NAME``, through the extra ``datasets``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halpiee.data.folders import TEST_NAMES
from halpiee.data.source import ImageSource, Splits
from halpiee.data.split import HubSplit
from halpiee.errors import DataError, MissingError

__all__ = ["HubSource"]


@dataclass(frozen=True)
class HubSource(ImageSource):
    """A data set whose rows are mapped into memory and decoded when they are asked for.

    Attributes:
        name: ``hf:NAME`` or ``hf:NAME@CONFIGURATION``, or a folder.
        size: as of ``Source``.
    """

    name: str
    size: int | None = None

    def splits(self) -> Splits:
        """Opens the data set; class names are those of its features."""
        found = self._opened()
        test = next((name for name in TEST_NAMES if name in found), None)
        if "train" not in found or test is None:
            raise DataError(
                f"--data {self.name} has the splits {', '.join(found)}; it needs train and test (or validation): save "
                "it with splits of these names"
            )
        features = found["train"].features
        kinds = {name: type(feature).__name__ for name, feature in features.items()}
        image = next((name for name, kind in kinds.items() if kind == "Image"), None)
        label = next((name for name, kind in kinds.items() if kind == "ClassLabel"), None)
        if label is None and "label" in kinds:
            label = "label"
        if image is None or label is None:
            raise DataError(
                f"--data {self.name} has the columns {', '.join(kinds)}; it needs one of type Image and one of type "
                "ClassLabel: cast them"
            )
        made = []
        for split in ("train", test):
            labels = np.asarray(found[split].with_format("numpy")[label][:])
            if labels.dtype.kind not in "iu" or (len(labels) and labels.min() < 0):
                raise DataError(
                    f"--data {self.name}: its column {label} holds {labels.dtype}; labels are whole numbers from 0"
                )
            made.append(HubSplit(found[split], self.name, image, labels.astype(np.int64)))
        names = getattr(features[label], "names", None)
        classes = tuple(names) if names else tuple(str(i) for i in range(int(made[0].labels.max()) + 1))
        return Splits(self.name, made[0], made[1], classes)

    def _opened(self) -> Any:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise MissingError(
                f"--data {self.name} is read by the package datasets, which is not installed; type pip install "
                "'halpiee[datasets]'"
            ) from error
        name, _, configuration = self.name.removeprefix("hf:").partition("@")
        try:
            if not self.name.startswith("hf:"):
                return datasets.load_from_disk(str(Path(self.name)))
            return datasets.load_dataset(name, configuration or None)
        except Exception as error:  # of files, of the network, of the hub
            said = " ".join(str(error).split())[:300]
            raise DataError(
                f"--data {self.name} cannot be opened ({type(error).__name__}: {said}); check the name, or fetch it "
                "first and give its folder"
            ) from error
