"""Prints progress and notes on stderr, and answers on stdout."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halpiee.errors import PromiseError

if TYPE_CHECKING:
    from rich.console import Console


MISSED = PromiseError.exit_code


LONGEST = 300
"""Characters of a word, such as a path, that is shown whole."""


def say(text: str) -> None:
    """Prints a line on stderr."""
    with suppress(OSError):  # the terminal was closed: the work goes on without it
        click.echo(printable(text), err=True)


def printable(text: str) -> str:
    """Returns a text on one line, without what would move a terminal's cursor, long words cut in their middle."""
    plain = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
    half = LONGEST // 2
    return re.sub(rf"\S{{{LONGEST + 1},}}", lambda word: f"{word[0][:half]} … {word[0][-half:]}", plain)


def answer(value: Mapping[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    """Prints the answer: as one JSON object, or as ``show`` does."""
    if as_json:
        click.echo(json.dumps(value, default=str))
    else:
        show()


class Interrupted(KeyboardInterrupt):
    """An interruption whose message says what was kept and how to continue."""


@contextmanager
def kept_in(file: Path, how: str) -> Iterator[None]:
    """Says how to continue interrupted work, if the file to continue from exists."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if file.is_file():
            raise Interrupted(how) from stop
        raise


def screen(*, stderr: bool = False, width: int | None = None) -> Console:
    """Returns a console that prints names as they are: no markup, no ``:two:`` that becomes a picture."""
    from rich.console import Console

    file: Any = _Stderr() if stderr else None
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def wide_screen() -> Console:
    """Returns a console for a table: as wide as the terminal; 200 columns for a file or a pipe."""
    console = screen()
    return console if console.is_terminal else screen(width=200)


class _Stderr:
    """The current standard error; drops what cannot be written because the terminal was closed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now, name)

    @property
    def _now(self) -> Any:
        return getattr(
            sys.stderr, "rich_proxied_file", sys.stderr
        )  # rich puts itself there while a bar moves

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._now.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._now.flush()


class ScreenTalk:
    """Prints stages, notes and progress bars on stderr; plain lines where stderr is no terminal."""

    def __init__(self) -> None:
        self.console = screen(stderr=True)
        self._bar: Any = None
        self._task: Any = None
        self._label = self._training = self._result = ""
        self._said = 0.0

    def stage(self, text: str) -> None:
        """Begins a stage."""
        self._close()
        self.console.print(text, style="bold")

    def note(self, text: str) -> None:
        """Prints a note."""
        if self._bar is not None:
            self._bar.console.print(f"  {text}")
        else:
            self.console.print(f"  {text}")

    def sweeping(self, done: int, total: int) -> None:
        """Moves the sweep's bar."""
        self._move("measuring cells", done, total)

    def training(
        self, label: str, step: int, total: int, entry: dict[str, Any] | None, pace: str = ""
    ) -> None:
        """Moves the training's bar, which says how fast it goes; says an epoch's result where there is no bar."""
        if label != self._training:
            self._training, self._result = label, ""
        if entry is not None:
            us, spent = entry.get("latency_us"), entry.get("train_flops")
            figure = entry.get("figure", "accuracy")
            self._result = f"loss {entry['loss']:.3f}  {figure} {entry['accuracy']:.1%}" + (
                f"  {us:.0f} µs" if us else ""
            )
            if spent is not None:
                self._result += f"  FLOPs {spent['paper']:.2f} of dense (strictly {spent['strict']:.2f})"
        extra = "  ".join(part for part in (self._result, pace) if part)
        self._move(f"training {label}", step, total, extra)

    def _move(self, label: str, done: int, total: int, extra: str = "") -> None:
        if not self.console.is_terminal:
            now = time.monotonic()
            if done >= total or now - self._said > 15 or label != self._label:
                self._said, self._label = now, label
                self.console.print(f"  {label}: {done}/{total} {extra}".rstrip())
            return
        if self._bar is None or self._label != label:
            self._close()
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("  {task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[extra]}", markup=False),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(label, total=total, extra="")
            self._label = label
        fields = {"extra": extra} if extra else {}
        self._bar.update(self._task, completed=done, total=total, **fields)
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __del__(self) -> None:
        self._close()


def free_folder(base: Path) -> Path:
    """Returns ``base``, or ``base-2``, ``base-3`` … : the first that does not exist."""
    folder, n = base, 2
    while folder.exists():
        folder, n = base.with_name(f"{base.name}-{n}"), n + 1
    return folder
