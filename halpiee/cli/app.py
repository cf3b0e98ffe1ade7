"""The program ``halpiee``: its verbs, and how an error becomes one sentence and an exit code."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import click

from halpiee.cli import bench, doctor, explain, export, methods, plan, profile, report, study, train
from halpiee.cli.output import Interrupted, printable, say
from halpiee.errors import HalpieeError, HoldoutWarning, ScoreWarning, ending_signals


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with `halpiee demo`; `halpiee VERB --help` shows each verb's options and examples.",
)
@click.version_option(package_name="halpiee", prog_name="halpiee")
def program() -> None:
    """Make a neural network meet a latency on a device, and keep as much accuracy as that latency allows."""


VERBS = (train, study, methods, profile, plan, explain, export, bench, report, doctor)
MORE = (train.demo, train.prune, study.compare, profile.inspect, profile.pack, profile.merge, export.verify)
for command in (*(verb.command for verb in VERBS), *MORE):
    program.add_command(command)


ENVIRONMENT = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)
"""Errors of the system that are not this program's fault."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program and exits with the code of its outcome."""
    # Spinning worker threads make torch up to thirty times slower on a shared machine; read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a locale without µ, a name that is no text: no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with _terminable(), _warnings_said():
            code = program.main(arguments, prog_name="halpiee", standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        vars(error)["message"] = printable(error.message)
        error.show()
        code = _failed(error.format_message(), "UsageError", error.exit_code, arguments)
    except HalpieeError as error:
        say(f"halpiee: {error}")
        code = _failed(str(error), type(error).__name__, error.exit_code, arguments)
    except ModuleNotFoundError as error:
        from halpiee.errors import missing

        absent = missing(error)
        if absent is None:
            raise
        say(f"halpiee: {absent}")
        code = _failed(str(absent), "MissingError", absent.exit_code, arguments)
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        named = f", {error.filename}" if error.filename else ""
        text = (
            f"the system refused a file{named}: {error.strerror}; mend that and type the same command again"
        )
        say(f"halpiee: {text}")
        code = _failed(text, "WriteError", 2, arguments)
    except (KeyboardInterrupt, click.Abort) as stop:
        why = stop.__cause__ if isinstance(stop, click.Abort) else stop
        left = str(why) if isinstance(why, Interrupted) else "nothing was saved; type the same command again"
        text = f"interrupted; {left}"
        say(f"halpiee: {text}")
        code = _failed(text, "Interrupted", 130, arguments)
    sys.exit(code if isinstance(code, int) else 0)


def _failed(text: str, kind: str, code: int, arguments: Sequence[str]) -> int:
    """Answers a failure under ``--json`` with one object, and returns the exit code."""
    if "--json" in arguments:
        click.echo(json.dumps({"error": text, "kind": kind, "exit_code": code}))
    return code


@contextmanager
def _warnings_said() -> Iterator[None]:
    """Prints this project's warnings as one plain line each, without the file and the line of code."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, ScoreWarning | HoldoutWarning):
                say(f"note: {message}")
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP the interrupt that Ctrl-C is; training, which saves its state first, has its own."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, interrupt) for number in ending_signals()}
    except ValueError:  # signals belong to the main thread; elsewhere the caller's handling stays
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
