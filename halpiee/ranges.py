"""The ranges of numbers, and budgets as text: one range per kind, for options, recipes, settings and Python arguments.

A range is an ``Annotated`` type: ``fitted`` hands it to msgspec for what comes from files, a ``Ranged`` makes an option
of it, and ``check`` looks at a dataclass that was made in Python. No torch is needed to say that a number is none.
"""

from __future__ import annotations

import re
import types
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from msgspec import Meta

from halpiee.errors import UsageError

Seed = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""OR-Tools and NumPy's older generators take no larger one."""
Side = Annotated[int, Meta(ge=1, le=8192)]
"""Pixels of an image's side."""
Classes = Annotated[int, Meta(ge=1, le=10**6)]
Images = Annotated[int, Meta(ge=1, le=2**16)]
"""Per call or per training step."""
Solved = Annotated[int, Meta(ge=5, le=2**16)]
"""Images that layers are solved from; a fifth of them judges the ridge."""
Threads = Annotated[int, Meta(ge=1, le=1024)]
Rounds = Annotated[int, Meta(ge=1, le=10**5)]
Steps = Annotated[int, Meta(ge=1, le=10**9)]
StepsOrNone = Annotated[int, Meta(ge=0, le=10**9)]
Epochs = Annotated[int, Meta(ge=1, le=10**6)]
Width = Annotated[float, Meta(ge=0.001, le=64)]
"""Multiplier of a zoo network; the widest of the papers is 4."""
Rate = Annotated[float, Meta(gt=0, le=1000)]
Clip = Annotated[float, Meta(ge=0, le=10**6)]
"""Of the norm of all gradients."""
Decay = Annotated[float, Meta(ge=0, le=100)]
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=1)]
"""A share that is not nothing."""
Below = Annotated[float, Meta(ge=0, lt=1)]
"""A share that is not everything."""
Between = Annotated[float, Meta(gt=0, lt=1)]
Level = Annotated[int, Meta(ge=0, le=5)]
"""Of optimisation, TensorRT's builder."""
Fewest = Annotated[float, Meta(ge=0, le=10**6)]
"""Units of a group: a number, or below 1 a share of them."""
Seconds = Annotated[float, Meta(gt=0, le=10**7)]


def annotated(hint: Any) -> tuple[type, Meta] | None:
    """Returns the type and the range of a number's annotation, ignoring ``None | …``; None for any other annotation."""
    if get_origin(hint) in (Union, types.UnionType):
        return next((found for part in get_args(hint) if (found := annotated(part))), None)
    if get_origin(hint) is Annotated:
        kind, first = get_args(hint)[:2]
        return (kind, first) if kind in (int, float) and isinstance(first, Meta) else annotated(kind)
    return None


def inside(meta: Meta, value: Any) -> bool:
    """Whether a number lies in a range; NaN lies in none."""
    return (
        (meta.ge is None or value >= meta.ge)
        and (meta.gt is None or value > meta.gt)
        and (meta.le is None or value <= meta.le)
        and (meta.lt is None or value < meta.lt)
    )


def words(kind: type, meta: Meta) -> str:
    """Returns a range in words: ``at least 1 and at most 1,024, a whole number``."""
    low = f"at least {_shown(meta.ge)}" if meta.ge is not None else f"more than {_shown(meta.gt)}"
    high = f"at most {_shown(meta.le)}" if meta.le is not None else f"less than {_shown(meta.lt)}"
    return f"{low} and {high}" + (", a whole number" if kind is int else "")


def check(settings: Any) -> None:
    """Refuses a dataclass that holds a number outside its range.

    Raises:
        UsageError: names the option, its value and the range.
    """
    made_of: Any = type(settings)
    for name, (kind, meta) in _ranges(made_of).items():
        value = getattr(settings, name)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not inside(meta, value) or (kind is int and value != int(value)):
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} {str(value)[:40]} was asked; give {words(kind, meta)}")


def ensure(owner: str, name: str, value: Any, hint: Any) -> None:
    """Refuses a number, given in Python, outside the range of its annotation; without a range all are taken."""
    kind, meta = annotated(hint) or (None, Meta())
    if kind is None:
        return
    number = hasattr(value, "__index__") or (kind is float and isinstance(value, float))
    if isinstance(value, bool) or not number or not inside(meta, value):
        raise UsageError(f"{owner} was asked for {name}={str(value)[:40]}; give {words(kind, meta)}")


@cache
def _ranges(kind: Any) -> dict[str, tuple[type, Meta]]:
    hints = get_type_hints(kind, include_extras=True)
    found = {field.name: annotated(hints[field.name]) for field in fields(kind)}
    return {name: one for name, one in found.items() if one is not None}


def _shown(number: float | None) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,g}"


def parse_budget(text: str) -> tuple[float | None, float | None]:
    """Returns (µs, fraction) of a budget such as ``0.5``, ``50%``, ``12.5ms`` or ``800us``; one of them is None.

    Raises:
        UsageError: the text is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(us|µs|ms|s|%)?\s*", text, re.IGNORECASE)
    if not match or not 0 < float(match[1]) <= 1e12:
        raise UsageError(
            f"the budget {text[:80]!r} was asked; give a share of the dense latency such as 0.5 or 50%, "
            "or a time such as 12.5ms or 800us"
        )
    number, unit = float(match[1]), (match[2] or "").lower()
    if unit in ("", "%"):
        fraction = number / 100 if unit == "%" else number
        if fraction > 1:
            raise UsageError(
                f"the budget {text!r} is {fraction:g} times the dense latency; "
                f"give a share up to 1, or a time with its unit such as {number:g}us or {number:g}ms"
            )
        return None, fraction
    return number * {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}[unit], None
