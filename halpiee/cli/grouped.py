"""A verb with many options shows them under headings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["GroupedCommand", "heading"]

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
