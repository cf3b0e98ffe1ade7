"""The door of ``report.json``: what a page draws has the shape it draws; everything else is a dash at worst."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Required, TypedDict

from latency.outside import read_json, sound

__all__ = ["read_report"]


class Promise(TypedDict, total=False):
    """Whether the run kept what it promised, and the sentence that says so."""

    met: bool | None
    text: Required[str]


class Pareto(TypedDict, total=False):
    """The curve of other budgets, or why there is none."""

    skipped: str | None
    points: list[dict[str, Any]] | None
    run: dict[str, Any] | None


class History(TypedDict, total=False):
    """One entry per epoch, of each side."""

    dense: list[dict[str, Any]] | None
    pruned: list[dict[str, Any]] | None


class Report(TypedDict, total=False):
    """What is read of a report by more than its number."""

    promise: Required[Promise]
    widths: dict[str, Any] | None
    widths_dense: dict[str, Any] | None
    layers: list[dict[str, Any]] | None
    events: list[dict[str, Any]] | None
    closed_loop: list[dict[str, Any]] | None
    history: History | None
    pareto: Pareto | None
    seconds_by_stage: dict[str, Any] | None
    files: dict[str, Any] | None
    environment: dict[str, Any] | None


def read_report(folder: Path) -> dict[str, Any]:
    """Returns the report of a finished run.

    Args:
        folder: of the run.

    Raises:
        UsageError: it is no report of a run; the message names the field.
    """
    path = folder / "report.json"
    advice = f"delete it, and `halpiee train --resume --out {folder}` writes it again"
    what = f"{path} is no report of a run: it"
    report = read_json(path, dict[str, Any], what=what, advice=advice)
    sound(report, Report, what=what, advice=advice)
    return report
