"""What several seeds say: means with their 95 % intervals, and differences of pairs that share a seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from halpiee.compare.rows import Row

__all__ = ["Difference", "Standing", "difference", "interval", "standings"]

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t: the 97.5th percentile of 1, 2, … 30 degrees of freedom."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the half-width of its 95 % interval, ``t · s / √n``; NaN for a single value.

    Args:
        values: at least one, independent.
    """
    n = len(values)
    mean = statistics.fmean(values)
    if n < 2:
        return mean, math.nan
    t = T_975[n - 2] if n - 2 < len(T_975) else statistics.NormalDist().inv_cdf(0.975)
    return mean, t * statistics.stdev(values) / math.sqrt(n)


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
        accuracy, half = interval([r.accuracy for r in these])
        found.append(
            Standing(
                contestant=name,
                budget=budget,
                seeds=tuple(sorted(by_seed)),
                accuracy=accuracy,
                half=half,
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
    mean, half = interval(gains)
    return Difference(
        contestant=contestant,
        against=against,
        budget=budget,
        accuracy=mean,
        half=half,
        wins=sum(gain > 0 for gain in gains),
        pairs=len(seeds),
        share=statistics.fmean(one[s].share / other[s].share for s in seeds),
    )


def _mean(values: Iterable[float | None]) -> float:
    found = list(values)
    known = [v for v in found if v is not None]
    return statistics.fmean(known) if known and len(known) == len(found) else math.nan
