"""The masks of one training, packed, from which every measure of it is read afterwards.

A method never computes metrics: a history listens to it and keeps (step, event, masks), eight units a byte.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from halpiee.errors import UsageError
from halpiee.sparsity.mask import Mask
from latency._files import write

__all__ = ["Entry", "History"]


class Happening(Protocol):
    """What a history reads of a method's event."""

    @property
    def step(self) -> int:
        """Optimizer steps done before it."""
        ...

    @property
    def event(self) -> str:
        """Its name."""
        ...


class Followed(Protocol):
    """What a history reads of a method."""

    @property
    def ledger(self) -> object:
        """Has ``listeners``, called with (event, mask)."""
        ...

    @property
    def alive(self) -> Mask:
        """The active units."""
        ...

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        ...


@dataclass(frozen=True, eq=False)
class Entry:
    """The active units after one event.

    Attributes:
        step: optimizer steps done before it.
        event: ``init``, ``prune``, ``drop``, ``grow``; ``dense`` before anything was removed.
        packed: unit name → bits of the flattened mask, most significant first.
    """

    step: int
    event: str
    packed: Mapping[str, NDArray[np.uint8]]


@dataclass(eq=False)
class History:
    """Masks over a training.

    Attributes:
        sizes: unit name → shape.
        entries: in the order they came.
    """

    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def of(cls, method: Followed) -> History:
        """Returns a history that listens to a method from now on; it begins with the units active now."""
        history = cls()
        history.add(method.step, "init" if method.alive.density < 1 else "dense", method.alive)
        listeners = method.ledger.listeners  # type: ignore[attr-defined]
        listeners.append(lambda event, alive: history.add(event.step, event.event, alive))
        return history

    def add(self, step: int, event: str, alive: Mask) -> None:
        """Appends the active units after an event.

        Raises:
            UsageError: masks of other units than before.
        """
        sizes = {name: tuple(mask.shape) for name, mask in alive.items()}
        if self.entries and sizes != self.sizes:
            raise UsageError(
                f"a mask of {len(sizes)} groups was added to a history of {len(self.sizes)} of other names or sizes; "
                "one history holds one training"
            )
        self.sizes = sizes
        self.entries.append(
            Entry(step, event, {n: np.packbits(m.cpu().numpy().reshape(-1)) for n, m in alive.items()})
        )

    def __len__(self) -> int:
        return len(self.entries)

    def mask(self, index: int) -> Mask:
        """Returns the active units after an entry."""
        packed = self.entries[index].packed
        found = {}
        for name, shape in self.sizes.items():
            bits = np.unpackbits(packed[name], count=int(np.prod(shape)))
            found[name] = torch.from_numpy(bits.astype(bool)).reshape(shape)
        return Mask(found)

    def after(self, event: str) -> Iterator[tuple[int, Mask]]:
        """Yields (step, active units) after every event of one name."""
        for index, entry in enumerate(self.entries):
            if entry.event == event:
                yield entry.step, self.mask(index)

    def save(self, path: str | Path) -> None:
        """Writes the history as one ``.npz`` file without objects in it.

        Raises:
            OutputInUseError: the file exists.
        """
        about = {
            "sizes": {name: list(shape) for name, shape in self.sizes.items()},
            "entries": [[e.step, e.event] for e in self.entries],
        }
        text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        arrays = {f"{i}/{name}": bits for i, e in enumerate(self.entries) for name, bits in e.packed.items()}
        content = io.BytesIO()
        np.savez_compressed(content, about=text, **arrays)  # type: ignore[arg-type]
        write(Path(path), content.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Reads a history that was saved."""
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            sizes = {name: tuple(shape) for name, shape in about["sizes"].items()}
            entries = [
                Entry(step, event, {name: arrays[f"{i}/{name}"] for name in sizes})
                for i, (step, event) in enumerate(about["entries"])
            ]
        return cls(sizes, entries)
