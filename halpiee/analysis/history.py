"""The masks of one training, packed, and quantities of them: overlap, survival, exploration, distance.

A method never computes metrics: a history listens to it and keeps (step, event, masks), eight units a byte. Overlap and
survival are those of the IEE paper (Fig. 5): intersection over union of consecutive masks, and the share of grown units
that the next prune leaves. The exploration rate R_s is ITOP's (Liu et al. 2021, Sec. 3): the share of all units that
were ever active.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from halpiee.errors import UsageError, said
from halpiee.sparsity.mask import Mask
from latency.files import write

if TYPE_CHECKING:
    from halpiee.methods.sparse import Sparse


@dataclass(frozen=True, eq=False)
class Entry:
    """The active units after one event."""

    step: int  # optimizer steps done before it
    event: str  # ``init``, ``prune``, ``drop``, ``grow``; ``dense`` before anything was removed
    packed: Mapping[str, NDArray[np.uint8]]  # unit name → bits of the flattened mask, most significant first


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
    def of(cls, method: Sparse) -> History:
        """Returns a history that listens to a method from now on; it begins with the units active now."""
        history = cls()
        history.add(method.step, "init" if method.alive.density < 1 else "dense", method.alive)
        method.ledger.listeners.append(lambda event, alive: history.add(event.step, event.event, alive))
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
        """Reads a history that was saved.

        Raises:
            UsageError: it cannot be read, or is none.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as arrays:
                about = json.loads(arrays["about"].tobytes())
                sizes = {name: tuple(shape) for name, shape in about["sizes"].items()}
                entries = [
                    Entry(step, event, {name: arrays[f"{i}/{name}"] for name in sizes})
                    for i, (step, event) in enumerate(about["entries"])
                ]
        except (OSError, ValueError, LookupError, AttributeError, EOFError, BadZipFile) as error:
            raise UsageError(
                f"{path} cannot be read as a history ({said(error)}); give a file that History.save wrote"
            ) from error
        return cls(sizes, entries)


def overlaps(history: History, event: str = "grow") -> list[tuple[int, float]]:
    """Returns (step, IoU with the mask after the previous event of that name)."""
    found: list[tuple[int, float]] = []
    before: Mask | None = None
    for step, mask in history.after(event):
        if before is not None:
            found.append((step, before.iou(mask)))
        before = mask
    return found


def survival_rates(history: History, *, regrown: bool = True) -> list[tuple[int, float]]:
    """Returns (step of a grow, share of the grown units that the next prune or drop keeps).

    A grow that nothing was pruned after, or that grew nothing, is left out.

    Args:
        history: of one training.
        regrown: whether units that the prune before had removed count as grown.
    """
    found: list[tuple[int, float]] = []
    entries = history.entries
    for i, entry in enumerate(entries):
        if entry.event != "grow" or i == 0:
            continue
        later = next((j for j in range(i + 1, len(entries)) if entries[j].event in ("prune", "drop")), None)
        if later is None:
            continue
        grown = history.mask(i) & ~history.mask(i - 1)
        if not regrown and i >= 2:
            grown = grown & ~history.mask(i - 2)
        total = sum(grown.counts.values())
        if total:
            found.append((entry.step, sum((grown & history.mask(later)).counts.values()) / total))
    return found


def exploration(history: History) -> float:
    """Returns R_s: the share of all units that were active after some event."""
    ever = history.mask(0)
    for index in range(1, len(history)):
        ever = ever | history.mask(index)
    return ever.density


def densities(mask: Mask) -> dict[str, float]:
    """Returns layer → share of its units that is active."""
    return {name: float(units.float().mean()) for name, units in mask.items()}


def distance(first: Mask, second: Mask) -> float:
    """Returns the normalised Hamming distance of two masks: the share of units that only one of them has."""
    total = sum(mask.numel() for mask in first.values())
    either, both = (first | second).counts, (first & second).counts
    return (sum(either.values()) - sum(both.values())) / max(total, 1)


def distances(history: History, steps: Sequence[int]) -> list[tuple[int, float]]:
    """Returns (step, distance to the mask at the step before) over given steps: the ends of epochs, say."""
    at = [_active(history, step) for step in steps]
    return [(steps[i], distance(at[i - 1], at[i])) for i in range(1, len(steps))]


def _active(history: History, step: int) -> Mask:
    """Returns the units that were active once ``step`` optimizer steps were done."""
    return history.mask(max((i for i, entry in enumerate(history.entries) if entry.step <= step), default=0))
