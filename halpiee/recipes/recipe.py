"""One recipe: options of ``halpiee train`` with their source, by the name of a file of this package or by a path."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from halpiee.errors import UsageError
from halpiee.training.options import OPTIONS, typed

__all__ = ["Recipe", "names", "read"]

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
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--recipe {name} cannot be read ({error}); give a YAML file") from error
    elif name in names():
        text = files("halpiee.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(
            f"--recipe {name} is neither a file nor a recipe; {hint}`halpiee methods --recipes` lists those there are"
        )
    return _parsed(name, text)


def _parsed(name: str, text: str) -> Recipe:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise UsageError(f"--recipe {name} is not YAML: {words}; write one `option: value` a line") from error
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
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0].replace('_', '-')!r}?" if close else "see `halpiee train --help`"
            raise UsageError(f"--recipe {name} holds {key!r}, which is no option of `halpiee train`; {hint}")
        options[option] = value
    notes = found.get("open") or ()
    return Recipe(
        name,
        typed(options, where=f"--recipe {name}"),
        about=str(found.get("about", "")),
        source=str(found.get("source", "")),
        open=(notes,) if isinstance(notes, str) else tuple(map(str, notes)),
    )
