"""``halpiee methods``: lists the methods with their papers, units and budgets; and the recipes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import click

from halpiee.cli.options import Answered, verb
from halpiee.cli.output import answer
from halpiee.methods.registry import METHODS
from halpiee.options import option
from halpiee.recipes import Recipe, names, read

COLUMN = 14


@dataclass(frozen=True, kw_only=True)
class Listing(Answered):
    """What is listed."""

    recipes: bool = option(False, "List the papers' settings that `halpiee train --recipe` takes.")


@verb("methods", Listing, examples=("halpiee methods", "halpiee methods --recipes", "halpiee methods --json"))
def command(given: Listing) -> None:
    """List the methods of `halpiee train --method`, or the recipes of `halpiee train --recipe`."""
    if given.recipes:
        found = [read(name) for name in names()]
        answer(
            {"recipes": [asdict(r) for r in found]},
            given.as_json,
            lambda: _list({r.name: _lines(r) for r in found}),
        )
        return
    entries = sorted(METHODS.values(), key=lambda m: (not m.latency, -len(m.budgets), m.name))
    listed = {
        m.name: [
            m.summary,
            m.paper,
            f"units: {', '.join(m.units)}; budgets: {', '.join(m.budgets)}",
            f"{m.module.partition('.')[0]}.{m.python}",
        ]
        for m in entries
    }
    answer({"methods": [m.as_dict() for m in entries]}, given.as_json, lambda: _list(listed))


def _lines(recipe: Recipe) -> list[str]:
    """Returns what a recipe is, its source, its options and what is open."""
    options = " ".join(_typed(key.replace("_", "-"), value) for key, value in recipe.options.items())
    return [recipe.about, recipe.source, options, *(f"open: {note}" for note in recipe.open)]


def _typed(option: str, value: Any) -> str:
    """Returns an option as it is typed."""
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    parts = value if isinstance(value, tuple) else (value,)
    return f"--{option} " + ",".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in parts)


def _list(entries: Mapping[str, list[str]]) -> None:
    """Prints names and what belongs to each, wrapped to the terminal."""
    indent = " " * COLUMN
    width = max(40, min(shutil.get_terminal_size().columns, 110))
    for name, lines in entries.items():
        head = name.ljust(COLUMN) if len(name) < COLUMN else f"{name}\n{indent}"
        for i, line in enumerate(lines):
            text = click.wrap_text(line, width, initial_indent=indent, subsequent_indent=indent)
            click.echo(click.style(head, bold=True) + text[COLUMN:] if i == 0 else text)
