"""``halpiee methods``: what can be trained with, from which paper, on which units and budgets."""

from __future__ import annotations

from dataclasses import asdict

import click

from halpiee.cli.common import answer, examples, json_option
from halpiee.methods.catalogue import METHODS

__all__ = ["command"]


@click.command("methods", epilog=examples("halpiee methods", "halpiee methods --json"))
@json_option
def command(as_json: bool) -> None:
    """List the methods of `halpiee train --method`."""

    def show() -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(show_lines=False, pad_edge=False, box=None)
        for name in ("Method", "What it does", "Reference", "Units", "Budgets", "In Python"):
            table.add_column(name)
        for m in METHODS.values():
            table.add_row(m.name, m.summary, m.reference, m.units, m.budgets, f"halpiee.{m.python}")
        Console().print(table)

    answer({"methods": [asdict(m) for m in METHODS.values()]}, as_json, show)
