"""The program ``halpiee``: its verbs, and how an error becomes one sentence and an exit code."""

from __future__ import annotations

import itertools
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
    methods,
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


for verb in (
    demo,
    train,
    methods,
    profiling,
    planning,
    explain,
    export,
    bench,
    reporting,
    inspection,
    doctor,
):
    program.add_command(verb.command)
for command in (inspection.pack, inspection.merge):
    program.add_command(command)


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
        code = _failed(error.format_message(), "UsageError", error.exit_code, arguments)
    except HalpieeError as error:
        click.echo(f"halpiee: {error}", err=True)
        code = _failed(str(error), type(error).__name__, error.exit_code, arguments)
    except (KeyboardInterrupt, click.Abort):
        text = f"interrupted; {_how_to_continue(arguments)}"
        click.echo(f"halpiee: {text}", err=True)
        code = _failed(text, "Interrupted", 130, arguments)
    sys.exit(code if isinstance(code, int) else 0)


def _failed(text: str, kind: str, code: int, arguments: Sequence[str]) -> int:
    """Answers a failure under ``--json`` with one object, and returns the exit code."""
    if "--json" in arguments:
        click.echo(json.dumps({"error": text, "kind": kind, "exit_code": code}))
    return code


def _how_to_continue(arguments: Sequence[str]) -> str:
    """Returns what an interrupted verb leaves and what to type next."""
    verb = next((a for a in arguments if not a.startswith("-")), "")
    out = next((b for a, b in itertools.pairwise(arguments) if a == "--out"), None)
    if verb in ("train", "demo"):
        return f"the run is saved; `halpiee train --resume --out {out or 'FOLDER'}` continues it"
    if verb == "profile":
        return "what was measured is saved; the same command continues it"
    return "nothing was written"
