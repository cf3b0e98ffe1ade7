"""The program ``halpiee``: its verbs, and how an error becomes one sentence and an exit code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import click

from halpiee.cli import (
    bench,
    demo,
    doctor,
    explain,
    export,
    inspection,
    planning,
    profiling,
    reporting,
    train,
)
from halpiee.errors import HalpieeError

__all__ = ["main", "program"]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with `halpiee demo`; `halpiee VERB --help` shows each verb's options and examples.",
)
@click.version_option(package_name="halpiee", prog_name="halpiee")
def program() -> None:
    """Make a neural network meet a latency on a device, and keep as much accuracy as that latency allows."""


for verb in (demo, train, profiling, planning, explain, export, bench, reporting, inspection, doctor):
    program.add_command(verb.command)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program and exits with the code of its outcome."""
    # Spinning worker threads make torch up to thirty times slower on a shared machine; read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = program.main(arguments, prog_name="halpiee", standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except HalpieeError as error:
        click.echo(f"halpiee: {error}", err=True)
        if "--json" in arguments:
            click.echo(
                json.dumps({"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code})
            )
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(
            "halpiee: interrupted; what was done is saved. Continue a run with `halpiee train --resume --out DIR`",
            err=True,
        )
        code = 130
    sys.exit(code if isinstance(code, int) else 0)
