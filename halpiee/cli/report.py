"""``halpiee report``: a run's numbers as a table, a page and Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from halpiee.cli.options import Answered, verb
from halpiee.cli.output import answer, say, screen
from halpiee.options import option, told

__all__ = ["command"]


MISSED = 4


@dataclass(frozen=True, kw_only=True)
class Report(Answered):
    """The run that is reported, and what is measured again."""

    run: Path = field(metadata=told("Folder of a finished run.", argument=True))
    layers: bool = option(False, "Time every layer anew, and work out the curve of other budgets.")
    trust_run: bool = option(False, "With --layers: let a run from elsewhere name functions.")


@verb(
    "report",
    Report,
    examples=(
        "halpiee report runs/demo",
        "halpiee report runs/demo --layers",
        "halpiee report runs/demo --json",
    ),
)
def command(asked: Report) -> None:
    """Show RUN's table again and write its report.html and report.md anew from report.json.

    Exits 4 where the run missed its promise, as the run itself did.
    """
    from halpiee.cli.networks import check_run

    run = asked.run
    if not (run / "report.json").is_file():
        check_run(run)
    from halpiee.report.values import read_report

    report = read_report(run)
    promise = report["promise"]
    if asked.layers:
        report |= _measured_again(run, asked.trust_run)
    from halpiee.report import render_html, render_markdown, table
    from latency._files import write

    for name, text in (("report.html", render_html(report)), ("report.md", render_markdown(report))):
        write(run / name, text, overwrite=True)

    def show() -> None:
        screen().print(table(report))

    answer(report, asked.as_json, show)
    say(f"{promise.get('text', '')}; the page is {run / 'report.html'}")
    if promise.get("met") is False:
        raise click.exceptions.Exit(MISSED)


def _measured_again(folder: Path, trust: bool) -> dict[str, Any]:
    """Times the layers of both networks, works out the curve, and keeps both in report.json."""
    from halpiee.cli.output import ScreenTalk
    from halpiee.report.values import read_report
    from halpiee.training.checkpoint import save_json
    from halpiee.training.job import Run
    from halpiee.training.results import curve, layers
    from halpiee.training.stored import read_settings

    run = Run(read_settings(folder, trust=trust), folder, ScreenTalk())
    found = {"layers": layers(run), "pareto": curve(run)}
    save_json(folder / "report.json", read_report(folder) | found)
    return found
