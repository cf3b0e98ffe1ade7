"""How examples are loaded and changed at random: the options of ``halpiee train`` that concern its data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from halpiee import ranges
from halpiee.errors import UsageError, unknown
from halpiee.options import option

DATA = "Data"
"""Heading."""

AUGMENTATIONS = ("flip", "shift", "crop", "jitter", "randaugment", "mixup", "cutmix", "none")
"""What ``augment`` may list."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How examples are read, changed at random and handed on."""

    augment: str | None = option(
        None,
        "Random changes of training images, with commas: flip, shift, crop (resized), jitter (colours), randaugment, "
        "mixup, cutmix; or none.",
        DATA,
        unset="flip,shift in memory; flip,crop from files; digits none but shift",
    )
    keep: Literal["auto", "memory", "files"] = option(
        "auto", "Where decoded images stay: on the device of the training, or read anew every epoch.", DATA
    )
    workers: Annotated[int, Meta(ge=0, le=256)] | None = option(
        None, "Processes that read and change images.", DATA, unset="a process for each core, at most 8"
    )
    prefetch: Annotated[int, Meta(ge=1, le=64)] = option(
        2, "Batches that each worker loads ahead.", DATA, on_command_line=False
    )
    bad_images: ranges.StepsOrNone = option(
        10, "Unreadable images that are named and left out; one more ends the training.", DATA
    )
    normalise: Literal["data", "imagenet"] | None = option(
        None,
        "Mean and deviation that images are brought to: of the training images, or of ImageNet.",
        DATA,
        unset="data in memory, imagenet from files",
    )

    def __post_init__(self) -> None:
        ranges.check(self)
        for name in self.changes or ():
            if name not in AUGMENTATIONS:
                hint = unknown(name, AUGMENTATIONS, f"known are {', '.join(AUGMENTATIONS)}")
                raise UsageError(
                    f"--augment {str(self.augment)[:80]} was asked, and {name[:40]!r} is none; {hint}"
                )
        if self.changes is not None and "none" in self.changes and len(self.changes) > 1:
            raise UsageError(f"--augment {self.augment} was asked; none stands alone")
        if self.keep == "memory" and set(self.changes or ()) - {"flip", "shift", "mixup", "cutmix", "none"}:
            raise UsageError(
                f"--augment {self.augment} and --keep memory were asked; in memory there are flip, shift, mixup and "
                "cutmix: leave --keep out, or ask for those"
            )

    @property
    def changes(self) -> tuple[str, ...] | None:
        """The random changes that ``augment`` lists; None: the default ones."""
        return None if self.augment is None else tuple(re.split(r"\s*,\s*", self.augment.strip()))
