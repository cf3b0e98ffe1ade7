"""Values from files and command lines brought to the types of a dataclass's fields, or refused by name."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from halpiee.errors import UsageError
from halpiee.ranges import annotated, words

__all__ = ["fitted"]


def fitted(kind: type, values: Mapping[str, Any], *, where: str = "settings") -> dict[str, Any]:
    """Returns the values with the types of the fields that they are named after.

    A whole number serves as a float, a list as a tuple, ``"80/160"`` as the share it is, and YAML's ``1e-4``,
    which has no point and so is text there, as a number.

    Args:
        kind: a dataclass.
        values: field → value.
        where: what they were read from, for messages.

    Raises:
        UsageError: a name that is no field, with the nearest that is one; a value of another type.
    """
    hints = _hints(kind)
    found = {}
    for name, value in values.items():
        if name not in hints:
            close = difflib.get_close_matches(name, hints, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(hints))}"
            raise UsageError(f"{where} hold {str(name)[:80]!r}, which is no option; {hint}")
        try:
            found[name] = _fit(hints[name], value)
        except (msgspec.ValidationError, OverflowError, RecursionError):
            shown = repr(value) if not isinstance(value, int) or value.bit_length() < 200 else "a huge number"
            raise UsageError(
                f"{where} hold {name!r}: {shown[:80]} ({type(value).__name__}); it takes {_words(hints[name])}"
            ) from None
    return found


@cache
def _hints(kind: type) -> dict[str, Any]:
    types_ = get_type_hints(kind, include_extras=True)
    return {field.name: types_[field.name] for field in fields(kind)}


def _fit(hint: Any, value: Any) -> Any:
    """Returns the value as the type; raises a ValidationError where it is another or out of its range."""
    return msgspec.convert(_meant(hint, value), hint)


def _meant(hint: Any, value: Any) -> Any:
    """Returns what a value means to a type: shares and YAML's ``1e-4`` are text, ``budget: 0.5`` is a number."""
    kinds = _kinds(hint)
    if isinstance(value, str) and float in kinds and str not in kinds:
        match = re.fullmatch(r"\s*([0-9.]{1,30}(?:e-?[0-9]{1,3})?)\s*(?:/\s*([0-9]{1,12}))?\s*", value)
        try:
            return float(match[1]) / int(match[2] or 1) if match else value
        except (ValueError, ZeroDivisionError):
            return value
    if isinstance(value, int | float) and not isinstance(value, bool) and str in kinds and float not in kinds:
        return str(value)
    if isinstance(value, list | tuple) and tuple in kinds:
        return [_meant(get_args(_tuple(hint))[0], item) for item in value]
    return value


def _kinds(hint: Any) -> set[Any]:
    """Returns the plain types that a hint allows."""
    if get_origin(hint) in (Union, types.UnionType):
        return set().union(*map(_kinds, get_args(hint)))
    if get_origin(hint) is Annotated:
        return _kinds(get_args(hint)[0])
    return {get_origin(hint) or hint}


def _tuple(hint: Any) -> Any:
    return next((part for part in get_args(hint) if get_origin(part) is tuple), hint)


def _words(hint: Any) -> str:
    """Returns what a type takes, in words."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_words(option) for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is Literal:
        return ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list, each {_words(get_args(hint)[0])}"
    if number := annotated(hint):
        return f"{_words(number[0])}, {words(*number).removesuffix(', a whole number')}"
    return {
        float: "a number or a share such as 80/160",
        int: "a whole number",
        bool: "true or false",
        str: "text",
    }[hint]
