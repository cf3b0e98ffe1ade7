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
        for m in METHODS.values():
            click.echo(click.style(f"{m.name:<12}", bold=True) + m.summary)
            click.echo(f"    {m.reference}\n    units: {m.units}; budgets: {m.budgets}; halpiee.{m.python}")

    answer({"methods": [asdict(m) for m in METHODS.values()]}, as_json, show)
