"""The page of a study: what it is, its table, its figure, its cells, and the command that repeats it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from halpiee.studies.figure import draw
from halpiee.studies.sheet import Row
from halpiee.studies.study import Study
from halpiee.studies.summary import table_csv, table_markdown, table_rows
from latency._files import write

__all__ = ["show"]

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
figure { margin: 1rem 0; background: #fff; border-radius: 6px; } figure svg { width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .6rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } code { word-break: break-word; } small { opacity: .7; }
"""


def show(study: Study, rows: Sequence[Row], folder: Path, command: str) -> list[Path]:
    """Writes table, figure and page, and returns the files.

    Args:
        study: what was done.
        rows: of all cells.
        folder: of the study.
        command: that repeats it.
    """
    figures = draw(study, rows, folder)
    files = [folder / name for name in ("table.md", "table.csv", "index.html")]
    told = study.file
    notes = "".join(f"- {note}\n" for note in told.open)
    heading = f"# {told.about}\n\n{told.source}\n\n"
    shown = f"\n![{told.about}]({figures[0].name})\n\n`{command}`\n"
    different = f"\nDifferent here:\n\n{notes}" if notes else ""
    write(files[0], f"{heading}{table_markdown(study, rows)}{shown}{different}", overwrite=True)
    write(files[1], table_csv(study, rows), overwrite=True)
    write(files[2], _page(study, rows, figures[0], command), overwrite=True)
    return [*files, *figures]


def _page(study: Study, rows: Sequence[Row], figure: Path, command: str) -> str:
    told = study.file
    svg = figure.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    head, *body = table_rows(study, rows)
    seeds = len({row.seed for row in rows})
    spent = sum(row.seconds for row in rows)
    cells = "".join(
        f"<tr><td>{escape(', '.join(row.labels.values()))}</td><td>{row.seed}</td><td>{row.seconds:.0f} s</td>"
        f"<td>{escape(row.date)}</td></tr>"
        for row in rows
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in told.open)
    hollow = "In brackets, and hollow in the figure: what the paper prints."
    printed = f"<p><small>{hollow}</small></p>" if told.paper else ""
    line = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in body)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(told.about)}</title><style>{STYLE}</style></head><body>
<h1>{escape(told.about)}</h1><p>{escape(told.source)}</p>
<div class="wide"><table><tr>{line}</tr>{lines}</table></div>{printed}
<figure>{svg}</figure>
<p>Mean ± standard deviation over {seeds} seed{"s" if seeds != 1 else ""}; {len(rows)} trainings,
{spent / 3600:.2f} hours.
<code>table.csv</code> has the 95 % intervals, <code>rows.jsonl</code> one line a training.</p>
<p><code>{escape(command)}</code></p>
{f"<h2>Different here</h2><ul>{notes}</ul>" if notes else ""}
<details><summary>Trainings</summary><div class="wide"><table>{cells}</table></div></details>
</body></html>
"""
