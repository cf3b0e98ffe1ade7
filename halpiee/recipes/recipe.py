"""One recipe: options of ``halpiee train`` with their source, by the name of a file of this package or by a path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypedDict

from halpiee.errors import UsageError, unknown
from halpiee.options import fitted
from halpiee.recipes.yaml import options_in
from halpiee.training.config import OPTIONS
from latency.outside import read_bytes, sound

__all__ = ["Recipe", "names", "read"]

MOST_BYTES = 2**18
"""Largest recipe that is read; those of the package have about twenty lines."""


class Told(TypedDict, total=False):
    """What a recipe says of itself."""

    about: str
    source: str
    open: str | list[str]


ABOUT = ("about", "source", "open")


@dataclass(frozen=True)
class Recipe:
    """Options with their source.

    Attributes:
        name: of the file, or its path.
        options: option → value, as ``halpiee train`` takes them.
        about: what it is.
        source: paper, section and table.
        open: what the source leaves open, and what is different here.
    """

    name: str
    options: Mapping[str, Any]
    about: str = ""
    source: str = ""
    open: tuple[str, ...] = ()


def names() -> tuple[str, ...]:
    """Returns the names of the recipes that come with the package, sorted."""
    return tuple(
        sorted(
            f.name.removesuffix(".yaml")
            for f in files("halpiee.recipes").iterdir()
            if f.name.endswith(".yaml")
        )
    )


def read(recipe: str | Path) -> Recipe:
    """Returns a recipe by its name, or a file of one's own by its path.

    Raises:
        UsageError: no such recipe or file, one that is not YAML, an unknown option or a value of the wrong type: each
            with the file, the key and the nearest that is known.
    """
    name = str(recipe)
    path = Path(recipe)
    if path.is_file():
        what, advice = f"--recipe {name}", "give a YAML file"
        data = read_bytes(path, what=what, advice=advice, most_bytes=MOST_BYTES)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"--recipe {name} cannot be read ({error}); {advice}") from error
    elif name in names():
        text = files("halpiee.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        hint = f"{unknown(name, names())} ".lstrip()
        raise UsageError(
            f"--recipe {name} is neither a file nor a recipe; {hint}`halpiee methods --recipes` lists those there are"
        )
    return _parsed(name, text)


def _parsed(name: str, text: str) -> Recipe:
    what = f"--recipe {name}"
    found = options_in(text, what=what)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UsageError(
            f"--recipe {name} holds {type(found).__name__} where options were wanted; "
            "write one `option: value` a line, such as `epochs: 160`"
        )
    known = {*OPTIONS, *ABOUT}
    options = {}
    for key, value in found.items():
        option = key.replace("-", "_")
        if option in ABOUT:
            continue
        if option not in OPTIONS:
            hint = unknown(key, (name.replace("_", "-") for name in known), "see `halpiee train --help`")
            raise UsageError(
                f"--recipe {name} holds {key[:80]!r}, which is no option of `halpiee train`; {hint}"
            )
        options[option] = value
    told = {key: found[key] for key in ABOUT if found.get(key) is not None}
    sound(told, Told, what=what, advice="write text, and of `open` a list of texts")
    notes = found.get("open") or ()
    typed: dict[str, Any] = {}
    for option, value in options.items():
        typed |= fitted(OPTIONS[option].owner, {option: value}, where=what)
    return Recipe(
        name,
        typed,
        about=told.get("about", ""),
        source=told.get("source", ""),
        open=(notes,) if isinstance(notes, str) else tuple(notes),
    )
