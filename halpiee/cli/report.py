"""``halpiee report``: the figures of runs as a table, a page, Markdown, or a site of several runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from halpiee.cli.options import Answered, verb
from halpiee.cli.output import MISSED, answer, say, wide_screen
from halpiee.errors import OutputInUseError, UsageError
from halpiee.options import described, option


@dataclass(frozen=True, kw_only=True)
class Report(Answered):
    """The runs that are reported, and what is measured again."""

    runs: tuple[Path, ...] = field(
        metadata=described("Folders of finished runs.", argument=True, metavar="RUN...")
    )
    out: Path | None = option(None, "Write a static site of the runs into this new folder.")
    layers: bool = option(False, "Time every layer of one RUN again, and compute the curve of other budgets.")
    trust_run: bool = option(False, "With --layers: let a run from elsewhere name functions.")


@verb(
    "report",
    Report,
    examples=(
        "halpiee report runs/demo",
        "halpiee report runs/demo --layers",
        "halpiee report runs/iee runs/halp runs/small",
        "halpiee report runs/iee runs/halp runs/small --out site",
        "halpiee report runs/compare",
    ),
)
def command(given: Report) -> None:
    """Print RUN's table and write its report.html and report.md again; print one table that compares several runs.

    With --out, write a site: a page for each run and an index.html that compares them. Of a comparison (`halpiee
    compare`, or a file of its rows) it writes comparison.html and comparison.md. Exits 4 if a run missed its
    promise, as the run itself did.
    """
    from halpiee.cli.networks import check_run
    from halpiee.report import read_report

    first = given.runs[0]
    if len(given.runs) == 1 and (first.suffix == ".jsonl" or (first / "rows.jsonl").is_file()):
        from halpiee.cli.study import show_rows

        return show_rows(first, given.as_json)
    for run in given.runs:
        if not (run / "report.json").is_file():
            check_run(run)
    if given.layers and len(given.runs) > 1:
        raise UsageError(f"--layers was asked of {len(given.runs)} runs; it times the layers of one RUN")
    if given.out is not None and given.out.exists():
        raise OutputInUseError(f"--out {given.out} exists already; name a new folder for the site")
    reports = {name: read_report(run) for name, run in _named(given.runs).items()}
    if len(reports) == 1:
        _one(given, next(iter(reports.values())))
    else:
        _several(given, reports)
    if any(report["promise"].get("met") is False for report in reports.values()):
        raise click.exceptions.Exit(MISSED)


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """Returns a file name for each folder: its own name, with a number where two have the same."""
    found: dict[str, Path] = {}
    for run in runs:
        base = re.sub(r"[^\w.-]", "-", run.resolve().name) or "run"
        names = (base if n == 1 else f"{base}-{n}" for n in itertools.count(1))
        found[next(name for name in names if name not in found and name != "index")] = run
    return found


def _one(given: Report, report: dict[str, Any]) -> None:
    """Writes the page of one run again, and prints its table."""
    from halpiee.report import render_html, render_markdown, table
    from latency.files import write

    run = given.runs[0]
    if given.layers:
        report |= _measured_again(run, given.trust_run)
    for name, text in (("report.html", render_html(report)), ("report.md", render_markdown(report))):
        write(run / name, text, overwrite=True)
    if given.out is not None:
        write_site(given.out, {next(iter(_named(given.runs))): report})
    answer(report, given.as_json, lambda: wide_screen().print(table(report)))
    say(f"{report['promise'].get('text', '')}; the page is {run / 'report.html'}")


def _several(given: Report, reports: dict[str, dict[str, Any]]) -> None:
    """Prints a table of several runs, and writes their site."""
    from halpiee.report import runs_table

    if given.out is not None:
        write_site(given.out, reports)
    found = {"runs": [{"name": name, **report} for name, report in reports.items()]}
    answer(found, given.as_json, lambda: wide_screen().print(runs_table(reports)))


def write_site(out: Path, reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes a page for each run and one that compares them into a new folder, and says where."""
    from halpiee.report import render_site
    from latency.files import write

    for name, text in render_site(reports).items():
        write(out / name, text)
    say(f"the site is {out / 'index.html'}")


def _measured_again(folder: Path, trust: bool) -> dict[str, Any]:
    """Times the layers of both networks, computes the curve, and stores both in report.json."""
    from halpiee.cli.output import ScreenTalk
    from halpiee.report.values import read_report
    from halpiee.training.checkpoint import read_settings, save_json
    from halpiee.training.job import Run
    from halpiee.training.results import curve, layers

    run = Run(read_settings(folder, trust=trust), folder, ScreenTalk())
    found = {"layers": layers(run), "pareto": curve(run)}
    save_json(folder / "report.json", read_report(folder) | found)
    return found
