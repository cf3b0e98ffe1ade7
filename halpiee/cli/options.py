"""Makes the options of a verb from the fields of an options class; and what a network reads, as it is typed.

``verb`` makes a command of a function that takes one such class: each field is an option with the field's type, range,
default and help text (``halpiee.options``). What lies beyond a range is refused before anything is imported for it.
A network reads one image of a size, or every input by the name of forward's argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

from halpiee import ranges
from halpiee.errors import UsageError
from halpiee.inputs import INPUTS, Shape, parse_inputs
from halpiee.options import Option, described, fitted, option, options_of
from halpiee.ranges import annotated, inside, words
from halpiee.shared_options import NETWORK, Scaled
from latency.files import check_place

SIZES = "224, 192x256 (height x width) or 1x28x28 (channels too)"
"""How an image size is written."""

MOST_PIXELS = 8192
"""Of a side; an image of so many by so many takes 0.8 GB."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """How a verb prints its answer."""

    as_json: bool = option(False, "One JSON object on stdout; notes go to stderr.", typed="--json")


@dataclass(frozen=True, kw_only=True)
class Built(Scaled):
    """How a MODEL is built."""

    classes: ranges.Classes | None = option(
        None, "Classes of the network.", NETWORK, unset="the network's own"
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """The options that were given, by the argument names of ``networks.from_model``."""
        return {"width": self.width, "classes": self.classes}


@dataclass(frozen=True, kw_only=True)
class Imaged(Built):
    """How a MODEL is built, and the images it takes."""

    model: str = field(
        metadata=described("A zoo, torchvision or timm name, or package.module:function.", argument=True)
    )
    size: str = option("224", f"Image size: {SIZES}.", NETWORK)
    inputs: tuple[str, ...] = option((), INPUTS, NETWORK, typed="--input")

    @property
    def shape(self) -> Shape:
        """(channels, height, width) of the images, or the inputs by name."""
        return parse_inputs(self.inputs) or input_size(self.size)


def verb(
    name: str,
    takes: type[T],
    *,
    examples: Sequence[str],
    over: type | None = None,
    only: Sequence[str] | None = None,
) -> Callable[[Callable[..., None]], click.Command]:
    """Returns a decorator that makes a command of a function that takes an options class.

    Of a class ``over``, or ``only`` some of its options, none is needed; those that are typed are the function's second
    argument, by name.
    """

    def command(function: Callable[..., None]) -> click.Command:
        own = options_of(takes)

        def callback(**values: Any) -> None:
            asked = takes(**{key: values.pop(key) for key in own})
            given = {key: value for key, value in values.items() if value is not None}
            function(asked, given) if over is not None else function(asked)

        further = [] if over is None else [one for key, one in options_of(over).items() if key not in own]
        further = [one for one in further if only is None or one.name in only]
        found = [*parameters(list(own.values())), *parameters(further, needed=False)]
        return _Verb(
            name,
            callback=callback,
            help=function.__doc__,
            params=sorted(found, key=lambda parameter: parameter.name == "as_json"),
            epilog="\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples),
        )

    return command


def parameters(options: Sequence[Option], *, needed: bool = True) -> list[click.Parameter]:
    """Returns the parameters of a command for options; unless ``needed``, what is not typed is None."""
    found: list[click.Parameter] = []
    for one in options:
        if one.help.argument:
            found.append(
                click.Argument(
                    [one.name],
                    type=_type(one),
                    nargs=1 if one.items is None else -1,
                    required=needed and one.required,
                    metavar=one.help.metavar,
                )
            )
        elif one.help.on_command_line:
            found.append(Typed(one, needed=needed))
    return found


class Typed(click.Option):
    """A field of an options class, as an option that is typed."""

    def __init__(self, option: Option, *, needed: bool = True) -> None:
        self.option = option
        settings: dict[str, Any] = {"help": option.help.text}
        if not (needed and option.required):  # to click 8.3 a default of None is a value that was given
            settings["default"] = option.default if needed else None
        names = option.typed
        if bool in option.kinds:
            if option.default is not False:
                names += f"/--no-{names.removeprefix('--')}"
            else:
                settings["is_flag"] = True
        else:
            settings["type"] = _type(option)
            settings["multiple"] = option.items is str
            settings["metavar"] = option.help.metavar
            if option.help.bare is not None:
                settings |= {"is_flag": False, "flag_value": option.help.bare}
        if settings.get("multiple") and needed:
            settings["default"] = ()
        super().__init__([names, option.name], required=needed and option.required, **settings)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Returns the option as it is typed, and its help with the default."""
        found = super().get_help_record(ctx)
        if found is None or not self.option.shown_default:
            return found
        return found[0], f"{found[1]}  [default: {self.option.shown_default}]"


class _Verb(click.Command):
    """A command whose help lists its options under their headings, in the order of the fields."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the sections, the one without a heading of its own last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = None if isinstance(parameter, click.Argument) else parameter.get_help_record(ctx)
            if record is not None:
                title = parameter.option.help.heading if isinstance(parameter, Typed) else "Options"
                sections.setdefault(title, []).append(record)
        for title in sorted(sections, key=lambda title: title == "Options"):
            with formatter.section(title):
                formatter.write_dl(sections[title])


class Ranged(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number in a range of ``halpiee.ranges``, or of a field's annotation."""

    def __init__(self, hint: Any) -> None:
        found = annotated(hint)
        assert found is not None, f"{hint} is no range"
        self.kind, self.meta = found
        self.name = "integer" if self.kind is int else "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns the number that a text spells; refuses one beyond the range, naming the option and the range."""
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


class _Listed(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Numbers or shares with commas between: ``0.5,0.75`` or ``80/160,120/160``."""

    name = "text"

    def __init__(self, option: Option) -> None:
        self.option = option

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """Returns the numbers."""
        if not isinstance(value, str):
            return tuple(value)
        name, parts = self.option.name, [part for part in value.split(",") if part]
        return tuple(fitted(self.option.owner, {name: parts}, where=f"{self.option.typed} {value}")[name])


def _type(option: Option) -> click.ParamType[Any] | type:
    """Returns what click makes of an option's text, or of each of several."""
    if option.choices:
        return click.Choice(option.choices)
    if Path in (option.items, *option.kinds):
        return click.Path(path_type=Path)
    if option.items is not None and option.items is not str:
        return _Listed(option)
    return Ranged(option.hint) if annotated(option.hint) is not None else str


def input_size(text: str) -> tuple[int, ...]:
    """Returns (channels, height, width) of ``224``, ``192x256`` (height × width) or ``1x28x28``."""
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


def check_picture(path: Path) -> None:
    """Refuses a file that exists or is no picture, before anything is computed."""
    if path.suffix not in (".svg", ".png"):
        raise click.BadParameter(f"--plot {path} is no picture; end the name in .svg or .png")
    check_place(path)
