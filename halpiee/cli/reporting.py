"""``halpiee report``: a run's numbers as a table, a page and Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from halpiee.cli.common import answer, examples, json_option, say, screen
from halpiee.errors import UsageError

__all__ = ["command"]


MISSED = 4


@click.command(
    "report",
    epilog=examples(
        "halpiee report runs/demo", "halpiee report runs/demo --layers", "halpiee report runs/demo --json"
    ),
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--layers", is_flag=True, help="Time every layer anew, and work out the curve of other budgets."
)
@json_option
def command(run: Path, layers: bool, as_json: bool) -> None:
    """Show RUN's table again and write its report.html and report.md anew from report.json.

    Exits 4 where the run missed its promise, as the run itself did.
    """
    from halpiee.cli.subjects import check_run

    path = run / "report.json"
    if not path.is_file():
        check_run(run)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        promise = report["promise"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no report of a run ({type(error).__name__}: {error}); "
            f"delete it, and `halpiee train --resume --out {run}` writes it again"
        ) from error
    if layers:
        report |= _measured_again(run)
    from halpiee.deploy.onnx import write_atomically
    from halpiee.report import render_html, render_markdown, table

    for name, text in (("report.html", render_html(report)), ("report.md", render_markdown(report))):
        write_atomically(run / name, text.encode(), overwrite=True)

    def show() -> None:
        screen().print(table(report))

    answer(report, as_json, show)
    say(f"{promise['text']}; the page is {run / 'report.html'}")
    if promise.get("met") is False:
        raise click.exceptions.Exit(MISSED)


def _measured_again(folder: Path) -> dict[str, Any]:
    """Times the layers of both networks, works out the curve, and keeps both in report.json."""
    from halpiee.cli.common import ScreenTalk
    from halpiee.training.checkpoint import save_json
    from halpiee.training.closing import layers
    from halpiee.training.curve import curve
    from halpiee.training.run import Run
    from halpiee.training.settings import Settings

    settings = Settings.from_dict(json.loads((folder / "settings.json").read_text()))
    run = Run(settings, folder, ScreenTalk())
    found = {"layers": layers(run), "pareto": curve(run)}
    save_json(folder / "report.json", json.loads((folder / "report.json").read_text()) | found)
    return found
