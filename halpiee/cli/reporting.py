"""``halpiee report``: a run's numbers as a table, a page and Markdown."""

from __future__ import annotations

import json
from pathlib import Path

import click

from halpiee.cli.common import answer, examples, json_option, say
from halpiee.errors import UsageError

__all__ = ["command"]


@click.command("report", epilog=examples("halpiee report runs/demo", "halpiee report runs/demo --json"))
@click.argument("run", type=click.Path(path_type=Path))
@json_option
def command(run: Path, as_json: bool) -> None:
    """Show RUN's table again and write its report.html and report.md anew from report.json."""
    path = run / "report.json"
    if not path.is_file():
        raise UsageError(f"{run} holds no finished run; finish it with `halpiee train --resume --out {run}`")
    report = json.loads(path.read_text())
    from halpiee.report import render_html, render_markdown, table

    (run / "report.html").write_text(render_html(report))
    (run / "report.md").write_text(render_markdown(report))

    def show() -> None:
        from rich.console import Console

        Console().print(table(report))

    answer(report, as_json, show)
    say(f"{report['promise']['text']}; the page is {run / 'report.html'}")
