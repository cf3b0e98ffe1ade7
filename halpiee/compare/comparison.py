"""What is compared: one YAML file names the network, its data, the budgets, the seeds and the contestants.

::

    network: resnet20
    width: 2
    data: path/to/cifar10
    size: 16
    epochs: 4
    batch_size: 128
    budgets: [0.5, 0.3]
    seeds: [0, 1, 2]
    contestants: [dense, uniform, early]

Budgets are shares of the dense latency. Everything but budgets, seeds and contestants is the *setting*: rows of another
setting are never mixed with these, and further budgets, seeds and contestants may be added at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from halpiee import ranges
from halpiee.compare.contestants import contestant
from halpiee.errors import UsageError
from halpiee.options import described, fitted, option
from halpiee.recipes.yaml import options_in
from latency.outside import read_bytes

__all__ = ["Comparison", "read_comparison"]

MOST_BYTES = 2**18
"""Largest file that is read; a comparison has about twenty lines."""

VARIED = ("budgets", "seeds", "contestants")
"""What is no part of the setting."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared; the fields of a training mean what they mean for ``halpiee train``."""

    network: str = field(metadata=described("A zoo, torchvision or timm name, or package.module:function."))
    data: str = field(metadata=described("As for halpiee train."))
    budgets: tuple[ranges.Between, ...] = field(metadata=described("Shares of the dense latency."))
    seeds: tuple[ranges.Seed, ...] = option((0, 1, 2), "Seeds of the trainings.")
    contestants: tuple[str, ...] = option(("dense", "uniform", "early"), "What is compared.")
    width: ranges.Width | None = option(None, "Width multiplier of a zoo network.")
    size: ranges.Side | None = option(None, "Pixels of a side to bring the images to.")
    device: str = option("auto", "Device of the trainings.")
    backend: Literal["onnxruntime", "torch"] = option("onnxruntime", "Runtime that is timed.")
    profile: str | None = option(None, "A profile measured before.")
    batch: ranges.Images = option(1, "Images per inference.")
    threads: ranges.Threads = option(1, "Threads of the runtime.")
    epochs: ranges.Epochs = option(20, "Epochs of every training.")
    batch_size: ranges.Images = option(128, "Images per training step.")
    lr: ranges.Rate = option(0.1, "Peak learning rate from scratch.")
    tuning_lr: ranges.Rate = option(0.05, "Peak learning rate of a network that was trained before.")
    weight_decay: ranges.Decay = option(5e-4, "Weight decay.")
    distill: ranges.Between = option(
        0.5, "Weight of the dense network's answers in `…-distilled` contestants."
    )
    bf16: bool = option(False, "Train in bfloat16.")

    def __post_init__(self) -> None:
        ranges.check(self)
        for name in VARIED:
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise UsageError(f"{name}: {list(values)} was asked; give at least one, each once")
        for name in self.contestants:
            contestant(name)

    @property
    def setting(self) -> str:
        """A hash of all but budgets, seeds and contestants, and of where a profile lies."""
        shared = {key: value for key, value in asdict(self).items() if key not in (*VARIED, "profile")}
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        """The setting in words."""
        wide = "" if self.width is None else f" ×{self.width:g}"
        pixels = "" if self.size is None else f" at {self.size} px"
        name = Path(self.data).name or self.data
        return f"{self.network}{wide} on {name}{pixels}, {self.epochs} epochs"

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, where: str) -> Comparison:
        """Returns the comparison of values as YAML has them.

        Args:
            values: field → value.
            where: what they were read from, for messages.

        Raises:
            UsageError: a field that is not known or lacks, or a value of another type or range.
        """
        found = fitted(cls, values, where=where)
        missing = [name for name in ("network", "data", "budgets") if name not in found]
        if missing:
            raise UsageError(f"{where} names no {' and no '.join(missing)}; give a line `{missing[0]}: …`")
        return cls(**found)


def read_comparison(path: Path) -> Comparison:
    """Returns the comparison that a YAML file asks for.

    Raises:
        UsageError: there is no such file, it is no YAML, or it asks for what there is not; the message names the file.
    """
    if not path.is_file():
        raise UsageError(
            f"{path} was asked for, and there is no such file; write one as `halpiee compare --help` shows"
        )
    advice = "a comparison has a few lines of `option: value`"
    data = read_bytes(path, what=str(path), advice=advice, most_bytes=MOST_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} cannot be read ({error}); {advice}") from error
    values = options_in(text, what=str(path))
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds a {type(values).__name__}; write one `option: value` a line")
    try:
        return Comparison.from_values(values, where=str(path))
    except UsageError as error:
        raise error if str(path) in str(error) else UsageError(f"{path}: {error}") from error
