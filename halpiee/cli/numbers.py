"""Options that are numbers: each has a range, and what lies beyond is refused before anything is imported for it."""

from __future__ import annotations

import re
from typing import Any

import click

from halpiee.errors import UsageError
from halpiee.ranges import annotated, inside, words

__all__ = ["Ranged", "ranged"]


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
