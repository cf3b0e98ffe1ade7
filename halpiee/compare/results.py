"""The rows of a comparison, and what several seeds say, as one page.

Means with 95 % intervals, differences of paired seeds, accuracy over latency, and what training cost.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from halpiee.compare.comparison import DENSE
from halpiee.errors import UsageError
from halpiee.report.page import templates
from halpiee.report.plots import Series, chart
from halpiee.report.values import DASH
from halpiee.sheet import Mean, Sheet


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one cell.

    Attributes:
        key: contestant, budget, seed and setting of the cell.
        budget: share of the dense latency that was asked for.
        accuracy: top-1 on the test images, a share of 1.
        latency_us: measured, on the scale of ``dense_us``, which is timed in turns with it.
        setting: hash of what all its contestants share; rows of other settings are not mixed with these.
        title: the setting in words.
        macs, dense_macs: multiply-accumulates of one image.
        seconds, train_macs: of its own training.
        start_seconds, start_macs: of training the dense network that it starts from.
        counts: units per group.
        commit: of the code.
        machine: processor or accelerator.
        date: ISO 8601.
        versions: of the packages that it ran on.
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
    """Returns the rows of a comparison, whose folder or file of rows is given."""
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
    """The means of one contestant at one budget over seeds; NaN where a row lacks the figure."""

    contestant: str
    budget: float  # share that was asked for; of the dense network 1
    seeds: tuple[int, ...]
    accuracy: float  # top-1, a share of 1
    half: float  # half-width of its 95 % interval
    share: float  # measured latency over that of the dense network
    seconds: float  # time of its own training
    start_seconds: float  # time of training the network that it starts from
    train_macs: float  # multiply-accumulates of training, the start's among them
    macs: float  # multiply-accumulates of one image
    epochs: float


@dataclass(frozen=True)
class Difference:
    """A contestant against another at the same budget, by pairs of the same seed."""

    accuracy: float  # mean difference of top-1, a share of 1
    half: float  # half-width of its 95 % interval; NaN for a single pair
    wins: int  # pairs that the contestant wins
    pairs: int  # of seeds that both have
    share: float  # mean of the ratios of their measured latencies


def standings(rows: Iterable[Row]) -> list[Standing]:
    """Returns a standing for each contestant and budget, best first within a budget, large budgets first.

    The rows are of one setting; of rows with one key the last counts.
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
    """Returns the gain of a contestant over another one at a budget; ``None`` where they share no seed."""
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


REFERENCE = "uniform"
"""The contestant that all others are compared with."""

COLOURS = ("pruned", "limit", "predicted", "grow", "prune", "init", "target", "other")

HEAD = (
    "Contestant",
    "Budget",
    "Seeds",
    "Top-1 %",
    "Gain over uniform, points",
    "Of dense latency",
    "Training, s",
    "Training GMACs",
)


def settings_in(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Returns setting → its rows, in the order of their first rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.setting, []).append(row)
    return found


def lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Returns the cells of a table of one setting, under ``HEAD``: a line a contestant and budget."""
    return [
        (
            s.contestant,
            f"{s.budget:g}",
            ", ".join(map(str, s.seeds)),
            f"{100 * s.accuracy:.1f}{_half(s.half)}",
            DASH if s.contestant == REFERENCE else _gain(rows, s),
            f"{s.share:.3f}",
            _spent(s),
            DASH if math.isnan(s.train_macs) else f"{s.train_macs / 1e9:,.0f}",
        )
        for s in standings(rows)
    ]


def render_markdown(rows: Sequence[Row]) -> str:
    """Returns the tables of all settings as GitHub-flavoured Markdown."""
    parts = []
    for setting, these in settings_in(rows).items():
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines(these))
        parts.append(
            f"**{_title(setting, these)}**\n\n| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}\n{body}\n\n{_origin(these)}"
        )
    return "\n\n".join(parts) + "\n"


def render_html(rows: Sequence[Row]) -> str:
    """Returns the page: no network, no scripts."""
    settings = [
        {"title": _title(name, of), "origin": _origin(of), "chart": _chart(of), "lines": lines(of)}
        for name, of in settings_in(rows).items()
    ]
    return templates().get_template("comparison.html").render(settings=settings, head=HEAD)


def _chart(rows: Sequence[Row]) -> str:
    """Returns the curve of each contestant: mean accuracy over mean measured latency."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for s in standings(rows):
        curves.setdefault(s.contestant, []).append((s.share, 100 * s.accuracy))
    own = {DENSE: "dense", REFERENCE: "uniform"}
    others = [name for name in sorted(curves) if name not in own]
    own |= {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(others)}
    series = [Series(name, sorted(curves[name]), own[name], marker="dot") for name in sorted(curves)]
    return chart(
        series,
        x_label="measured latency over that of the dense network",
        y_label="Top-1 accuracy, %",
        x_form=lambda x: f"{x:.2f}",
    )


def _title(setting: str, rows: Sequence[Row]) -> str:
    return next((row.title for row in rows if row.title), "") or f"setting {setting or DASH}"


def _origin(rows: Sequence[Row]) -> str:
    """Returns where rows are from: machine, dates, commits, versions."""
    machines, commits = _listed(row.machine for row in rows), _listed(row.commit for row in rows)
    torch = _listed(row.versions.get("torch", "") for row in rows)
    dates = sorted({row.date for row in rows if row.date})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else DASH
    return f"{len(rows)} trainings; machine {machines}; {when}; commits {commits}; torch {torch}."


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(sorted({*texts} - {""})) or DASH


def _half(half: float) -> str:
    return "" if math.isnan(half) else f" ± {100 * half:.1f}"


def _gain(rows: Sequence[Row], s: Standing) -> str:
    found = difference(rows, s.contestant, REFERENCE, s.budget)
    if found is None:
        return DASH
    return f"{100 * found.accuracy:+.1f}{_half(found.half)} ({found.wins} of {found.pairs})"


def _spent(s: Standing) -> str:
    own = DASH if math.isnan(s.seconds) else f"{s.seconds:,.0f}"
    return f"{s.start_seconds:,.0f} + {own}" if s.start_seconds else own
