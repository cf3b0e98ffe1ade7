"""The rows of a comparison, and what several seeds say: means with 95 % intervals, differences of paired seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from halpiee.errors import UsageError
from halpiee.sheet import Mean, Sheet

__all__ = ["Difference", "Row", "Standing", "difference", "read_rows", "sheet_of", "standings"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one cell has given.

    Attributes:
        key: of the cell: contestant, budget, seed and setting.
        contestant: by name.
        budget: share of the dense latency that was asked.
        seed: of the training.
        accuracy: top-1 on the test images, a share of 1.
        latency_us: measured, on the scale of ``dense_us``.
        dense_us: of the dense network, timed in turns with it.
        setting: hash of what all its contestants share; rows of others are not mixed with these.
        title: the setting in words.
        network: as it was asked.
        epochs: that it trained.
        macs: of one image.
        dense_macs: of one image, in the dense network.
        params: of the network.
        seconds: of training, its own.
        train_macs: multiply-accumulates of its own training.
        start_seconds: of training the dense network that it starts from.
        start_macs: likewise.
        counts: units per group.
        commit: of the code.
        machine: processor or accelerator.
        date: ISO 8601.
        versions: of what it ran on.
    """

    key: str
    contestant: str
    budget: float
    seed: int
    accuracy: float
    latency_us: float
    dense_us: float
    setting: str = ""
    title: str = ""
    network: str = ""
    epochs: float = 0.0
    macs: float | None = None
    dense_macs: float | None = None
    params: int | None = None
    seconds: float | None = None
    train_macs: float | None = None
    start_seconds: float = 0.0
    start_macs: float = 0.0
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    commit: str = ""
    machine: str = ""
    date: str = ""
    versions: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def share(self) -> float:
        """The measured latency over that of the dense network."""
        return self.latency_us / self.dense_us


def sheet_of(place: Path) -> Sheet[Row]:
    """Returns the rows of a comparison.

    Args:
        place: its folder, or the file of its rows.
    """
    return Sheet(place, Row, lambda row: row.key, "a comparison")


def read_rows(place: Path) -> list[Row]:
    """Returns the rows that are in a folder or a file.

    Raises:
        UsageError: there is none, or a line is no row.
    """
    sheet = sheet_of(place)
    if not sheet.path.is_file():
        raise UsageError(
            f"{sheet.path} was asked for, and there is no such file; `halpiee compare` writes one"
        )
    return sheet.rows()


@dataclass(frozen=True)
class Standing:
    """What the seeds of one contestant at one budget say together.

    Attributes:
        contestant: by name.
        budget: share that was asked; of the dense network 1.
        seeds: of its rows.
        accuracy: mean top-1, a share of 1.
        half: half-width of its 95 % interval.
        share: mean measured latency over that of the dense network.
        seconds: mean training time, its own; NaN where a row has none.
        start_seconds: mean training time of what it starts from.
        train_macs: mean multiply-accumulates of training, the start's among them; NaN where a row has none.
        macs: mean of one image.
        epochs: mean that it trained.
    """

    contestant: str
    budget: float
    seeds: tuple[int, ...]
    accuracy: float
    half: float
    share: float
    seconds: float
    start_seconds: float
    train_macs: float
    macs: float
    epochs: float


@dataclass(frozen=True)
class Difference:
    """A contestant against another at the same budget, by pairs of the same seed.

    Attributes:
        contestant: by name.
        against: likewise.
        budget: share that was asked of both.
        accuracy: mean difference of top-1, a share of 1.
        half: half-width of its 95 % interval; NaN for a single pair.
        wins: pairs that the contestant wins.
        pairs: of seeds that both have.
        share: mean of the ratios of their measured latencies.
    """

    contestant: str
    against: str
    budget: float
    accuracy: float
    half: float
    wins: int
    pairs: int
    share: float


def standings(rows: Iterable[Row]) -> list[Standing]:
    """Returns a standing for each contestant and budget, best first within a budget, large budgets first.

    Args:
        rows: of one setting; of rows with one key the last counts.
    """
    cells: dict[tuple[str, float], dict[int, Row]] = {}
    for row in rows:
        cells.setdefault((row.contestant, row.budget), {})[row.seed] = row
    found = []
    for (name, budget), by_seed in cells.items():
        these = [by_seed[seed] for seed in sorted(by_seed)]
        accuracy = Mean.of([r.accuracy for r in these])
        found.append(
            Standing(
                contestant=name,
                budget=budget,
                seeds=tuple(sorted(by_seed)),
                accuracy=accuracy.mean,
                half=accuracy.half,
                share=statistics.fmean(r.share for r in these),
                seconds=_mean(r.seconds for r in these),
                start_seconds=statistics.fmean(r.start_seconds for r in these),
                train_macs=_mean(
                    None if r.train_macs is None else r.train_macs + r.start_macs for r in these
                ),
                macs=_mean(r.macs for r in these),
                epochs=statistics.fmean(r.epochs for r in these),
            )
        )
    return sorted(found, key=lambda s: (-s.budget, -s.accuracy, s.contestant))


def difference(rows: Sequence[Row], contestant: str, against: str, budget: float) -> Difference | None:
    """Returns how two contestants differ at a budget; ``None`` where they share no seed.

    Args:
        rows: of one setting.
        contestant: whose gain it is.
        against: whom it is compared with.
        budget: of both.
    """
    one, other = (
        {r.seed: r for r in rows if r.contestant == name and r.budget == budget}
        for name in (contestant, against)
    )
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    gains = [one[s].accuracy - other[s].accuracy for s in seeds]
    gain = Mean.of(gains)
    return Difference(
        contestant=contestant,
        against=against,
        budget=budget,
        accuracy=gain.mean,
        half=gain.half,
        wins=sum(gain > 0 for gain in gains),
        pairs=len(seeds),
        share=statistics.fmean(one[s].share / other[s].share for s in seeds),
    )


def _mean(values: Iterable[float | None]) -> float:
    found = list(values)
    known = [v for v in found if v is not None]
    return statistics.fmean(known) if known and len(known) == len(found) else math.nan
