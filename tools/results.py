"""Appends rows of benchmarks to benchmarks/history/*.jsonl, and writes the tables of docs/results.md from them.

    python -m tools.results            writes the tables again (make results)
    python -m tools.results --check    writes nothing; exit code 1 where the page is behind the rows

A benchmark calls ``append(name, rows)``: one JSON line a row, with the commit, the machine, the date and its columns.
In the page a table stands between ``<!-- table NAME key=COLUMN,… [machine=TEXT] [columns=COLUMN,…] -->`` and
``<!-- end -->``. Of rows that agree in the key columns the newest counts; ``machine`` takes only the machines whose
name holds that text. Rows of ``halpiee compare`` stand between ``<!-- comparison NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from halpiee.compare.results import read_rows, render_markdown
from halpiee.sheet import commit
from latency.device import cpu_facts
from latency.files import write

ROOT = Path(__file__).resolve().parent.parent
HISTORY = ROOT / "benchmarks" / "history"
PAGE = ROOT / "docs" / "results.md"
STAMP = ("commit", "machine", "date")

COMPARED = re.compile(r"<!-- comparison (\S+) -->\n.*?<!-- end -->", re.DOTALL)
MARKED = re.compile(r"( *)<!-- table (\S+)([^>]*?) -->\n.*?<!-- end -->", re.DOTALL)


def recorded(parser: argparse.ArgumentParser) -> None:
    """Adds the option of every benchmark that keeps its rows."""
    parser.add_argument("--no-record", action="store_true", help="keep no row in benchmarks/history")


def append(name: str, rows: Iterable[Mapping[str, Any]], *, folder: Path = HISTORY) -> None:
    """Adds rows (column → number or text) to a file of the history."""
    stamp = dict(
        zip(STAMP, (commit() or "unknown", cpu_facts()["model"], f"{datetime.date.today()}"), strict=True)
    )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(stamp | dict(row), ensure_ascii=False) + "\n" for row in rows)


def newest(
    rows: Iterable[Mapping[str, Any]], key: Sequence[str], machine: str = ""
) -> list[Mapping[str, Any]]:
    """Returns the last row of every key, of machines whose name holds a text; keys in order of appearance."""
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in rows:
        if machine in str(row.get("machine", row.get("device", ""))):
            found[tuple(row.get(name) for name in key)] = row
    return list(found.values())


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Returns a Markdown table; without ``columns`` those of the rows, the stamp left out."""
    columns = list(columns) or [n for n in dict.fromkeys(n for row in rows for n in row) if n not in STAMP]
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        lines.append([_cell(row.get(column)) for column in columns])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(text: str, *, folder: Path = HISTORY) -> str:
    """Returns a page with every marked table written again from its file."""

    def table(found: re.Match[str]) -> str:
        indent, name, words = found.groups()
        options = {k: quoted or plain for k, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|(\S+))', words)}
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = newest(map(json.loads, lines), options.get("key", "").split(","), options.get("machine", ""))
        columns = options["columns"].split(",") if "columns" in options else ()
        body = markdown(rows, columns)
        inner = "\n".join(indent + line if line else "" for line in f"\n{body}\n".split("\n"))
        return f"{indent}<!-- table {name}{words} -->\n{inner}\n{indent}<!-- end -->"

    def comparison(found: re.Match[str]) -> str:
        body = render_markdown(read_rows(folder / f"{found[1]}.jsonl"))
        return f"<!-- comparison {found[1]} -->\n\n{body}\n<!-- end -->"

    return COMPARED.sub(comparison, MARKED.sub(table, text))


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks the page; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(arguments)
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if given.check:
        return int(new != old)
    write(PAGE, new, overwrite=True)
    return 0


def _cell(value: object) -> str:
    """Returns a cell: whole numbers with commas, others with four digits, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main())
