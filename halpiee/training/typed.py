"""Values from files and command lines brought to the types of a dataclass's fields, or refused by name."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from halpiee.errors import UsageError

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
            raise UsageError(f"{where} hold {name!r}, which is no option; {hint}")
        try:
            found[name] = _fit(hints[name], value)
        except TypeError:
            raise UsageError(
                f"{where} hold {name!r}: {value!r} ({type(value).__name__}); it takes {_words(hints[name])}"
            ) from None
    return found


@cache
def _hints(kind: type) -> dict[str, Any]:
    types_ = get_type_hints(kind)
    return {field.name: types_[field.name] for field in fields(kind)}


def _fit(hint: Any, value: Any) -> Any:
    """Returns the value as the type; raises TypeError where it is another."""
    if get_origin(hint) in (Union, types.UnionType):
        for option in get_args(hint):
            try:
                return _fit(option, value)
            except TypeError:
                continue
        raise TypeError
    if get_origin(hint) is Literal:
        if value not in get_args(hint) or isinstance(value, bool):
            raise TypeError
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(_fit(get_args(hint)[0], item) for item in value)
    if hint is float and isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(?:/\s*([0-9]+))?\s*", value)
        try:
            return float(match[1]) / int(match[2] or 1) if match else _refuse()
        except (ValueError, ZeroDivisionError):
            return _refuse()
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # budget: 0.5
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) and hint is not bool:
        raise TypeError
    if hint is type(None) and value is None:
        return None
    if not isinstance(value, hint):
        raise TypeError
    return value


def _refuse() -> float:
    raise TypeError


def _words(hint: Any) -> str:
    """Returns what a type takes, in words."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_words(option) for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is Literal:
        return ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list, each {_words(get_args(hint)[0])}"
    return {
        float: "a number or a share such as 80/160",
        int: "a whole number",
        bool: "true or false",
        str: "text",
    }[hint]
