"""The papers' own settings as YAML files, and how YAML files are read: plain values, without anchors, tags or depth.

A recipe holds options of ``halpiee train``, as they are typed there without the dashes, one a line. Shares may be
written as they are printed (``drops: [80/160, 120/160]``): they scale with ``--epochs``. Beside them ``about`` says
what it is, ``source`` where it is printed, and ``open`` lists what that leaves open and what is different here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypedDict

import yaml

from halpiee.errors import UsageError, said, unknown
from halpiee.options import fitted
from halpiee.training.config import OPTIONS
from latency.files import read_bytes, sound

GOALS = {"budget", "sparsity", "mask"}
"""What is to be met: one of them that is typed replaces that of a recipe."""

STEPS = ("interval", "h", "j", "q", "at", "rewind")
"""Options in steps, which a scale shortens with the epochs."""

SHARES = ("warmup", "drops", "end", "first", "last", "cut_at")
"""Options that are shares of the training."""

MOST_ALIASES, MOST_DEPTH, MOST_EVENTS = 16, 16, 10_000
"""Aliases to anchors, which a reader multiplies out (ten levels of ten are 10 billion values), nesting, and parts."""

MOST_BYTES = 2**18
"""Largest file that is read; those of the package have about twenty lines."""

AGAIN = "write one `option: value` a line"


class _Once(yaml.SafeLoader):
    """Refuses a name that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns a mapping whose names all differ."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                said = f"{key.value[:80]!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def options_in(text: str, *, what: str) -> Any:
    """Returns the value of a YAML text; ``what`` names the file in messages.

    Raises:
        UsageError: it is no YAML, has tags of Python objects, or is nested or multiplied out of all bounds.
    """
    try:
        _check(text, what)
        return yaml.load(text, _Once)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, AttributeError, TypeError) as error:
        raise UsageError(f"{what} is not YAML: {said(error)}; {AGAIN}") from error


def values_in(path: Path, *, what: str) -> Any:
    """Returns the value of a YAML file; arguments and errors as for ``options_in``."""
    advice = "give a YAML file"
    data = read_bytes(path, what=what, advice=advice, most_bytes=MOST_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} cannot be read ({error}); {advice}") from error
    return options_in(text, what=what)


@cache
def names_in(package: str) -> tuple[str, ...]:
    """Returns the names of the YAML files that come with a package, sorted."""
    return tuple(
        sorted(f.name.removesuffix(".yaml") for f in files(package).iterdir() if f.name.endswith(".yaml"))
    )


def find(given: str | Path, package: str, *, what: str, kind: str, listing: str) -> Any:
    """Returns the value of the user's YAML file, or of a package's file of that name.

    ``what`` names the file and ``kind`` what the package has, in words; the command ``listing`` lists the names.

    Raises:
        UsageError: there is no such file or name, or it is no YAML.
    """
    if Path(given).is_file():
        return values_in(Path(given), what=what)
    known = names_in(package)
    if str(given) not in known:
        hint = f"{unknown(given, known)} ".lstrip()
        raise UsageError(f"{what} is neither a file nor a {kind}; {hint}`{listing}` lists those there are")
    text = files(package).joinpath(f"{given}.yaml").read_text(encoding="utf-8")
    return options_in(text, what=what)


def _check(text: str, what: str) -> None:
    """Counts what would be multiplied out, before anything is."""
    depth = aliases = 0
    for events, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        if isinstance(event, yaml.ScalarEvent):
            event.value.encode("utf-8")  # half of a pair is no text
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if aliases > MOST_ALIASES or depth > MOST_DEPTH or events > MOST_EVENTS:
            raise UsageError(
                f"{what} is nested more than {MOST_DEPTH} deep, has more than {MOST_ALIASES} aliases or more than "
                f"{MOST_EVENTS:,} parts, which no recipe has; {AGAIN}"
            )


class About(TypedDict, total=False):
    """What a recipe says of itself."""

    about: str
    source: str
    open: str | list[str]


ABOUT = tuple(About.__annotations__)


@dataclass(frozen=True)
class Recipe:
    """Options with their source."""

    name: str  # of the file, or its path
    options: Mapping[str, Any]  # option → value, as ``halpiee train`` takes them
    about: str = ""  # what it is
    source: str = ""  # paper, section and table
    open: tuple[str, ...] = ()  # what the source leaves open, and what is different here


def names() -> tuple[str, ...]:
    """Returns the names of the recipes that come with the package, sorted."""
    return names_in("halpiee.recipes")


def read(recipe: str | Path) -> Recipe:
    """Returns a recipe by its name, or one of the user's by the path of its file.

    Raises:
        UsageError: no such recipe or file, one that is not YAML, an unknown option or a value of the wrong type: each
            with the file, the key and the nearest that is known.
    """
    name = str(recipe)
    what = f"--recipe {name}"
    found = find(recipe, "halpiee.recipes", what=what, kind="recipe", listing="halpiee methods --recipes")
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UsageError(
            f"--recipe {name} holds {type(found).__name__} where options were wanted; "
            "write one `option: value` a line, such as `epochs: 160`"
        )
    typed: dict[str, Any] = {}
    for key, value in found.items():
        option = key.replace("-", "_")
        if option in ABOUT:
            continue
        if option not in OPTIONS:
            known = (name.replace("_", "-") for name in (*OPTIONS, *ABOUT))
            hint = unknown(key, known, "see `halpiee train --help`")
            raise UsageError(
                f"--recipe {name} holds {key[:80]!r}, which is no option of `halpiee train`; {hint}"
            )
        typed |= fitted(OPTIONS[option].owner, {option: value}, where=what)
    about = {key: found[key] for key in ABOUT if found.get(key) is not None}
    sound(about, About, what=what, advice="write text, and of `open` a list of texts")
    notes = about.pop("open", ())
    return Recipe(name, typed, **about, open=(notes,) if isinstance(notes, str) else tuple(notes))


def under(options: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a recipe that hold beside typed ones.

    A goal that is typed takes the recipe's goal away and, unless it is a latency, what a latency leaves whole.
    """
    goal = GOALS & typed.keys()
    gone = (GOALS if "budget" in goal else GOALS | {"protect_first"}) if goal else set()
    return {key: value for key, value in options.items() if key not in gone}


def shortened(options: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Returns the options of a training of ``scale`` as many epochs, rounded up, with as many events in it.

    Lengths in steps shorten as the epochs do, to one step at least. Shares of the training stay as they are, and so do
    the numbers of cycles and of rounds: each cycle and round is shorter.
    """
    epochs = _epochs(options)
    fewer = max(1, math.ceil(round(scale * epochs, 6)))  # 0.07 · 100 is a little more than 7
    steps = {name: max(1, round(fewer / epochs * options[name])) for name in STEPS if options.get(name)}
    return {**options, "epochs": fewer, **steps}


def told(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Returns what ``shortened`` made of options, in words; shares are said in epochs."""
    words = [f"epochs {_epochs(before)} → {_epochs(after)}"]
    words += [f"{n} {before[n]:,} → {after[n]:,} steps" for n in STEPS if before.get(n) is not None]
    for name in SHARES:
        shares = before.get(name) or ()
        listed = shares if isinstance(shares, tuple) else (shares,)
        was, now = (",".join(f"{one * _epochs(of):.4g}" for one in listed) for of in (before, after))
        words += [f"{name} {was} → {now} epochs"] if listed else []
    return "; ".join(words)


def _epochs(options: Mapping[str, Any]) -> int:
    return int(options.get("epochs", OPTIONS["epochs"].default))
