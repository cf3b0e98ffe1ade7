"""The door of what a run's stages leave for each other: JSON files in its folder, each of one type."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Required, TypedDict, TypeVar

from msgspec import Meta

from halpiee.training.record import line_of
from latency.outside import read_json, sound
from latency.predict import Calibration

__all__ = ["Result", "read_calibration", "read_log", "read_result", "read_seconds", "read_threads"]

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
