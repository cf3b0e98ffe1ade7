"""The values of a run's report, the JSON files that its stages leave for each other, and the figures of every epoch.

``report.json`` is one flat dict of numbers that every table, page and check reads. The stages' own JSON files are each
of one type, and are read through this module only.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Required, TypedDict, TypeVar

from msgspec import Meta

from halpiee.analysis.flops import CostReference, FlopsMeter
from halpiee.errors import MissingError
from halpiee.methods.phases import Event
from halpiee.selection.cost import LatencyCost
from halpiee.training.config import Settings
from latency.files import read_json, sound, write
from latency.predict import Calibration

SCHEMA = 1


def events(reports: Iterable[Event], *, latency: bool) -> list[dict[str, Any]]:
    """Returns the events of a latency budget, in µs, or of a budget of units, without latencies, as JSON values."""
    names = ("budget_us", "used_us", "omega_us", "gap", "slack_us", "next_step_us")
    own = () if latency else ("budget", "used", "omega")
    rest = (*own, "iou", "survival", "skipped", "counts")
    return [
        {"step": e.step, "event": e.event}
        | {name: getattr(e, name.removesuffix("_us")) if latency else None for name in names}
        | {name: getattr(e, name) for name in rest}
        for e in reports
    ]


def predicted(cost: LatencyCost, counts: Mapping[str, int]) -> dict[str, float]:
    """Returns a network's predicted latency, and where the tables tell, the range that holds 90 % of measurements."""
    within = cost.interval(counts)
    ends = {} if within is None else {"predicted_low_us": within.low_us, "predicted_high_us": within.high_us}
    return {"predicted_us": cost.total_us(counts), **ends}


def line_values(calibration: Calibration) -> dict[str, Any]:
    """Returns a calibration as JSON values, with its worst residual."""
    return {**asdict(calibration), "worst": calibration.worst}


def line_of(values: Mapping[str, Any]) -> Calibration:
    """Returns the calibration that some JSON values hold."""

    def pairs(found: Iterable[Sequence[float]]) -> Any:
        return tuple((x, y) for x, y in found)

    bend = values.get("bend")
    return Calibration(values["a_us"], values["b"], pairs(values["points"]), bend and pairs(bend))


def promise(
    measured_us: float, budget_us: float, next_step_us: float, *, least: float | None = None
) -> dict[str, Any]:
    """Returns whether a measured latency keeps the budget and uses it.

    Kept: ``measured ≤ 1.03 · budget``. Used: ``measured ≥ min(0.93, 1 − 1.5 · next_step/budget) · budget``; with
    everything active there is no next step and nothing more to use. ``least`` is the share to use instead.
    """
    step = 0.0 if math.isnan(next_step_us) else next_step_us / budget_us
    share = measured_us / budget_us
    if least is None:
        least = 0.0 if math.isnan(next_step_us) else min(0.93, 1 - 1.5 * step)
    met = least <= share <= 1.03
    text = f"measured {measured_us:.0f} µs is {share:.1%} of the budget of {budget_us:.0f} µs"
    if share > 1.03:
        text += ": over it (at most 103% is promised)"
    elif share < least:
        text += f": more than a step is left unused (at least {least:.1%} is promised)"
    return {"met": met, "text": text, "share": share, "least": least, "most": 1.03}


def promise_of_units(kept: int, asked: int, total: int) -> dict[str, Any]:
    """Returns whether exactly as many units are kept as were asked for."""
    share = kept / total
    text = f"kept {kept:,} of {total:,}, {1 - share:.2%} removed"
    if kept != asked:
        text += f"; {asked:,} were asked for"
    return {"met": kept == asked, "text": text, "share": kept / asked, "least": 1.0, "most": 1.0}


def effective_macs(macs: Mapping[str, int], density: Mapping[str, float]) -> int:
    """Returns the multiply-accumulates with a weight that is not zero.

    ``macs`` are those of each layer's dense forward, a second call of a layer is ``layer#2``; ``density`` is the active
    share of weights or layers, 1 where none is named.
    """
    share = {name.removesuffix(".weight"): d for name, d in density.items()}
    return round(sum(n * share.get(name.partition("#")[0], 1.0) for name, n in macs.items()))


Trained = Sequence[tuple[int, str, Mapping[str, int]]]
"""What was trained: steps, kind of training (``halpiee.methods.phases.Train.kind``), active units per name."""


def train_flops(
    log: Trained,
    macs: Callable[[Mapping[str, int]], float],
    dense_steps: int,
    *,
    compact_macs: float | None = None,
    paper_charges_gradient: bool = True,
) -> dict[str, float]:
    """Returns the training FLOPs as a multiple of the dense network's, by both accountings.

    Args:
        log: of the pruned training.
        macs: active units → multiply-accumulates of one forward; none named: dense.
        dense_steps: steps of the dense training it is compared with; what the log lacks of them was trained compact.
        compact_macs: of the compact network's forward.
        paper_charges_gradient: whether the paper charges dense weight gradients that growing reads.
    """
    meter, dense = FlopsMeter(), macs({})
    for steps, kind, counts in log:
        active = macs(counts)
        if kind == "explore":
            meter.explore(steps, active, dense)
        elif kind == "explore_all":
            meter.add(steps, dense, dense, dense)
        elif kind == "gradient":
            meter.add(
                steps, active, active, dense, paper_macs=None if paper_charges_gradient else 3.0 * active
            )
        else:
            meter.train(steps, active)
    rest = dense_steps - sum(steps for steps, _, _ in log)
    if rest > 0:
        meter.train(rest, dense if compact_macs is None else compact_macs)
    return meter.ratio(dense, dense_steps)


def train_cost(s: Settings, ratio: Mapping[str, float]) -> dict[str, float] | None:
    """Returns the training cost in dense trainings of ``--cost-reference``, by both accountings; None: not asked."""
    if s.cost_reference is None:
        return None
    reference = CostReference.parse(s.cost_reference, s.pretraining)
    return {accounting: reference.cost(r, s.epochs) for accounting, r in ratio.items()}


T = TypeVar("T")

Number = Annotated[float, Meta(ge=-1e15, le=1e15)]
Natural = Annotated[int, Meta(ge=0, le=2**50)]
Log = list[tuple[Natural, str, dict[str, Natural]]]


class Result(TypedDict, total=False):
    """What training a network left: of the dense one, or of a pruned one."""

    accuracy: Required[Number]
    top5: Required[Number | None]
    params: Required[Natural]
    seconds: Required[Number]
    history: Required[list[dict[str, Any]]]
    dense_us: Number | None
    predicted_us: Number | None
    predicted_low_us: Number
    predicted_high_us: Number
    next_step_us: Number | None
    sparsity: dict[str, Any] | None
    effective_macs: Natural | None


class Pruned(Result):
    """What the pruned network's training leaves beside."""

    counts: Required[dict[str, Natural]]
    events: Required[list[dict[str, Any]]]
    train_flops_ratio: Required[dict[str, Number]]


class Line(TypedDict, total=False):
    """A calibration: a line and, where it bends, the two ends of the rest of it."""

    a_us: Required[Number]
    b: Required[Annotated[float, Meta(gt=0, le=1e6)]]
    points: Required[list[tuple[Number, Number]]]
    bend: tuple[tuple[Number, Number], tuple[Number, Number]] | None


class Round(TypedDict):
    """What one round of pruning and training leaves."""

    log: Log


def read_result(path: Path, *, pruned: bool = False) -> dict[str, Any]:
    """Returns ``dense.json``, or ``pruned.json`` as that of the pruned network."""
    kind: Any = Pruned if pruned else Result
    return _checked(path, kind)


def read_seconds(path: Path) -> dict[str, float]:
    """Returns the wall times of the stages, in seconds."""
    return _read(path, dict[str, Annotated[float, Meta(ge=0, le=1e15)]])


def read_threads(path: Path) -> int:
    """Returns the number of threads that a run trains with."""
    return _read(path, Annotated[int, Meta(ge=1, le=4096)])  # type: ignore[arg-type]


def read_log(path: Path) -> Log:
    """Returns (steps, kind, active units) of a round of pruning."""
    return _read(path, Round)["log"]


def read_calibration(path: Path) -> Calibration:
    """Returns the calibration of a run."""
    return line_of(_checked(path, Line))


def _checked(path: Path, kind: Any) -> dict[str, Any]:
    """Returns the whole object once the fields that the type names fit it."""
    found: dict[str, Any] = _read(path, dict[str, Any])
    sound(found, kind, what=str(path), advice=_advice(path))
    return found


def _read(path: Path, kind: type[T]) -> T:
    return read_json(path, kind, what=str(path), advice=_advice(path))


def _advice(path: Path) -> str:
    return f"delete it, and `halpiee train --resume --out {path.parent}` does that stage again"


LINES, TABLE = "metrics.jsonl", "metrics.csv"

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Trackers, and the package that each needs."""

FIRST = (
    "training", "epoch", "step", "phase", "loss", "test_loss", "accuracy", "lr", "seconds", "images_per_s",
    "latency_us", "budget_us", "density",
)  # fmt: skip
"""The columns that come first."""


class Metrics:
    """The figures of every epoch of a run, in ``metrics.jsonl``, ``metrics.csv`` and the tracker that was asked for.

    Both files hold one line an epoch, of the dense and the pruned training alike, and are written whole: after a resume
    they say what the run came to, without the epochs that were trained twice. Nothing is sent anywhere unless a tracker
    that does so was asked for.

    The tracker is ``auto`` (TensorBoard where it is installed), ``none``, or a name in ``PACKAGES``.

    Raises:
        MissingError: a tracker that is not installed.
    """

    def __init__(self, folder: Path, tracker: str = "auto") -> None:
        self._folder = folder
        if tracker == "auto":
            tracker = "tensorboard" if find_spec("tensorboard") else "none"
        elif tracker != "none" and not find_spec(PACKAGES[tracker]):
            raise MissingError(f"--track {tracker} was asked; install it: pip install {PACKAGES[tracker]}")
        self._name = tracker
        self._tracker: Any = None

    def write(self, training: str, history: Sequence[Mapping[str, Any]]) -> None:
        """Writes what a training has come to; of other trainings what was written before stays."""
        lines = [line for line in self._lines() if line["training"] != training]
        lines += [{"training": training, **flat(entry)} for entry in history]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write(self._folder / LINES, text, overwrite=True)
        names = dict.fromkeys([*FIRST, *(name for line in lines for name in line)])
        columns = [name for name in names if any(name in line for line in lines)]
        table = io.StringIO()
        rows = csv.DictWriter(table, columns, restval="", lineterminator="\n")
        rows.writeheader()
        rows.writerows(lines)
        write(self._folder / TABLE, table.getvalue(), overwrite=True)
        self._track(training, history[-1])

    def _lines(self) -> list[dict[str, Any]]:
        """Returns the lines that are there; what is none is left out, as the files only repeat what the run knows."""
        path = self._folder / LINES
        found = []
        for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("training"), str):
                found.append(line)
        return found

    def _track(self, training: str, entry: Mapping[str, Any]) -> None:
        """Hands numbers to the tracker, by accelerate's own classes."""
        if self._name == "none":
            return
        if self._tracker is None:
            from accelerate.tracking import LOGGER_TYPE_TO_CLASS

            kind = LOGGER_TYPE_TO_CLASS[self._name]
            place = {"logging_dir": str(self._folder)} if kind.requires_logging_directory else {}
            self._tracker = kind(self._folder.name, **place)
        numbers = {name: value for name, value in flat(entry).items() if isinstance(value, int | float)}
        self._tracker.log(
            {f"{training}/{name}": value for name, value in numbers.items()}, step=entry["step"]
        )


def flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an entry without what is unknown, and with the names of nested values joined by ``_``."""
    found: dict[str, Any] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            found |= {f"{name}_{inner}": item for inner, item in flat(value).items()}
        elif value is not None:
            found[name] = value
    return found
