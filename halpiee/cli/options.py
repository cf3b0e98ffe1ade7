"""The options of the verbs: numbers with their ranges, image sizes, and headings in the help."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from halpiee.errors import UsageError
from halpiee.ranges import annotated, inside, words

__all__ = ["SIZES", "GroupedCommand", "Ranged", "examples", "heading", "input_size", "json_option", "ranged"]

SIZES = "224, 192x256 (height x width) or 1x28x28 (channels too)"
"""How an image size is written."""

MOST_PIXELS = 8192
"""Of a side; an image of so many by so many takes 0.8 GB."""

F = TypeVar("F", bound=Callable[..., Any])


class _Option(click.Option):
    """An option under a heading."""

    heading = "Options"


class GroupedCommand(click.Command):
    """A command whose help lists its options under their headings, in the order they were declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "heading", "Options"), []).append(record)
        for title in sorted(sections, key=lambda title: title == "Options"):
            with formatter.section(title):
                formatter.write_dl(sections[title])


def heading(title: str) -> Callable[..., Callable[[F], F]]:
    """Returns a ``click.option`` whose options stand under a heading."""
    kind = type("_Option", (_Option,), {"heading": title})

    def option(*names: str, **settings: Any) -> Callable[[F], F]:
        return click.option(*names, cls=kind, **settings)

    return option


def json_option(function: F) -> F:
    """Adds ``--json``: one object on stdout, talk on stderr."""
    return click.option(
        "--json", "as_json", is_flag=True, help="One JSON object on stdout; talk goes to stderr."
    )(function)


def examples(*lines: str) -> str:
    """Returns an epilog of runnable examples."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def input_size(text: str) -> tuple[int, ...]:
    """Returns (channels, height, width) of ``224``, ``192x256`` (height × width) or ``1x28x28``.

    Raises:
        click.BadParameter: the text is none of these.
    """
    try:
        numbers = tuple(int(n) for n in text.lower().split("x"))
    except ValueError:
        numbers = ()
    if len(numbers) == 1:
        numbers = (3, numbers[0], numbers[0])
    if len(numbers) == 2:
        numbers = (3, *numbers)
    if len(numbers) != 3 or min(numbers) < 1 or max(numbers) > MOST_PIXELS:
        raise click.BadParameter(
            f"{text[:40]!r} is no image size; give {SIZES}, each at most {MOST_PIXELS:,}"
        )
    return numbers


class Ranged(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number in a range.

    Args:
        hint: one of ``halpiee.ranges``, or a field's annotation that holds one.
    """

    def __init__(self, hint: Any) -> None:
        found = annotated(hint)
        assert found is not None, f"{hint} is no range"
        self.kind, self.meta = found
        self.name = "integer" if self.kind is int else "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns the number that a text spells.

        Raises:
            UsageError: it spells none, or one beyond the range; the message names the option and the range.
        """
        number: float | None = None
        text = str(value).strip()
        if re.fullmatch(
            r"[-+]?[0-9][0-9_]*" if self.kind is int else r"[-+0-9._eE]+|[-+]?(nan|inf)\w*", text, re.I
        ):
            try:
                number = self.kind(text)
            except (ValueError, OverflowError):
                number = None
        if number is None or not inside(self.meta, number):
            name = max(param.opts, key=len) if param is not None else "a number"
            shown = text if len(text) <= 40 else text[:37] + " …"
            raise UsageError(f"{name} {shown} was asked; give {words(self.kind, self.meta)}")
        return number


def ranged(owner: type, name: str) -> Ranged:
    """Returns the option type of a dataclass's field."""
    from typing import get_type_hints

    return Ranged(get_type_hints(owner, include_extras=True)[name])
