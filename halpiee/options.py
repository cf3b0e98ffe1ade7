"""Options are fields of frozen dataclasses: name, type, range, default and help text are written once.

    lr: ranges.Rate = option(0.1, "Peak learning rate.", "Schedule")

``options_of`` reads such classes. The command line (``halpiee.cli.options``), recipes and ``settings.json`` (``fitted``
and ``nested``) and the tables of ``docs/options.md`` are made of what it returns. A field that is itself such a class
is a *part*: its options are typed without its name. No torch is needed.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from halpiee.errors import UsageError, unknown
from halpiee.ranges import annotated, words

T = TypeVar("T")


@dataclass(frozen=True)
class Help:
    """The help of an option, in the field's metadata."""

    text: str  # one sentence
    heading: str = "Options"  # under which help and documentation list it
    unset: str = ""  # what happens where the value is None, shown as the default
    typed: str = ""  # how the option is typed where that is not the field's name with dashes
    bare: Any = None  # the value where the option is typed without one; None: it needs one
    argument: bool = False  # whether it is typed by position, without a name
    metavar: str | None = None  # what the usage line calls its value
    on_command_line: bool = True  # False: of recipes and Python alone


@dataclass(frozen=True)
class Option:
    """A field, as an option."""

    name: str
    owner: type  # the dataclass that it is a field of
    part: str | None  # the part of the settings that ``owner`` is; None: the settings themselves
    hint: Any  # its type, with the range
    default: Any  # its value where nothing is given; ``MISSING``: one must be
    help: Help

    @property
    def typed(self) -> str:
        """How it is typed: ``--batch-size``; an argument: ``MODEL``."""
        if self.help.argument:
            return self.help.metavar or self.name.upper()
        return self.help.typed or "--" + self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is MISSING

    @property
    def kinds(self) -> frozenset[Any]:
        """The plain types that it takes, ``None`` among them."""
        return frozenset(_kinds(self.hint))

    @property
    def items(self) -> Any:
        """The type of each item, where it takes several; None: it takes one value."""
        return get_args(_tuple(self.hint))[0] if tuple in self.kinds else None

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that it is one of; empty: it is no choice."""
        return tuple(_choices(self.hint))

    @property
    def shown_default(self) -> str:
        """Its default in words; empty: none is worth saying."""
        value = self.default
        if self.required or value is None or value == () or value is False:
            return self.help.unset
        return "yes" if value is True else f"{value:g}" if isinstance(value, float) else str(value)

    @property
    def takes(self) -> str:
        """What it takes, in words; empty: it is typed alone."""
        if bool in self.kinds:
            return ""
        number = annotated(self.hint)
        return words(*number) if number else ", ".join(self.choices) or in_words(self.hint)


def options_of(kind: type) -> Mapping[str, Option]:
    """Returns the options of a dataclass and its parts by name: its own fields first, then those it inherits.

    A name that stands in two places means the part's: rounds are rounds of pruning, not of the settings.
    """
    found: dict[str, Option] = {}
    for option in own_options(kind):
        part = _part(option.hint)
        if part is None:
            found.setdefault(option.name, option)
            continue
        for name, one in options_of(part).items():
            found[name] = replace(one, part=option.name)
    return found


def parts_of(kind: type) -> Mapping[str, type]:
    """Returns the parts of a dataclass by the names of their fields."""
    found = {option.name: _part(option.hint) for option in own_options(kind)}
    return {name: part for name, part in found.items() if part is not None}


def fitted(kind: type, values: Mapping[str, Any], *, where: str = "settings") -> dict[str, Any]:
    """Returns the values with the types of the fields that they are named after.

    A whole number serves as a float, a list as a tuple, ``"80/160"`` as the share it is, and YAML's ``1e-4``,
    which has no point and so is text there, as a number.

    ``where`` names the source of the values in messages.

    Raises:
        UsageError: a name that is no field, with the nearest that is one; a value of another type.
    """
    hints = {option.name: option.hint for option in own_options(kind)}
    found = {}
    for name, value in values.items():
        if name not in hints:
            hint = unknown(name, hints, f"known are {', '.join(sorted(hints))}")
            raise UsageError(f"{where} hold {str(name)[:80]!r}, which is no option; {hint}")
        try:
            found[name] = msgspec.convert(_meant(hints[name], value), hints[name])
        except (msgspec.ValidationError, OverflowError, RecursionError, UnicodeError):
            shown = repr(value) if not isinstance(value, int) or value.bit_length() < 200 else "a huge number"
            raise UsageError(
                f"{where} hold {name!r}: {shown[:80]} ({type(value).__name__}); it takes {in_words(hints[name])}"
            ) from None
    return found


def nested(kind: type, given: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns options in the places where the parts of a dataclass have them.

    They replace those ``over`` which they are given.
    """
    values = dict(over or {})
    options = options_of(kind)
    for part in parts_of(kind):
        values[part] = dict(values.get(part, {}))
    for name, value in given.items():
        place = options[name].part
        target = values if place is None else values[place]
        target[name] = value
    return values


def in_words(hint: Any) -> str:
    """Returns what a type takes, in words."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(in_words(option) for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is Literal:
        return ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list, each {in_words(get_args(hint)[0])}"
    if number := annotated(hint):
        return f"{in_words(number[0])}, {words(*number).removesuffix(', a whole number')}"
    return {
        float: "a number or a share such as 80/160",
        int: "a whole number",
        bool: "true or false",
        str: "text",
    }.get(hint, "a path")


def option(default: T, text: str, heading: str = "Options", **more: Any) -> T:
    """Returns a field with its default and its help; see ``Help``."""
    found: Any = field(default=default, metadata=described(text, heading, **more))
    return found  # type: ignore[no-any-return]


def described(text: str, heading: str = "Options", **more: Any) -> dict[str, Help]:
    """Returns the metadata of a field without a default: ``field(metadata=described("Folder of the run."))``."""
    return {"help": Help(text, heading, **more)}


@cache
def own_options(kind: Any) -> tuple[Option, ...]:
    """Returns the fields of a dataclass, those it declares itself before inherited ones; parts are not opened."""
    hints = get_type_hints(kind, include_extras=True)
    known = {field.name: field for field in fields(kind)}
    order = dict.fromkeys(name for owner in kind.__mro__ for name in vars(owner).get("__annotations__", ()))
    hidden = Help("", on_command_line=False)
    return tuple(
        Option(name, kind, None, hints[name], known[name].default, known[name].metadata.get("help", hidden))
        for name in order
        if name in known
    )


def _part(hint: Any) -> type | None:
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def _kinds(hint: Any) -> set[Any]:
    """Returns the plain types that a hint allows."""
    if get_origin(hint) in (Union, types.UnionType):
        return set().union(*map(_kinds, get_args(hint)))
    if get_origin(hint) is Annotated:
        return _kinds(get_args(hint)[0])
    return {get_origin(hint) or hint}


def _choices(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(choice for part in get_args(hint) for choice in _choices(part))
    return get_args(hint) if get_origin(hint) is Literal else ()


def _meant(hint: Any, value: Any) -> Any:
    """Returns a value as a type reads it: shares and YAML's ``1e-4`` as text, ``budget: 0.5`` as a number."""
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


def _tuple(hint: Any) -> Any:
    return next((part for part in get_args(hint) if get_origin(part) is tuple), hint)
