"""The options of ``halpiee train``: one flat list for command line and recipe files, and where each belongs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from halpiee.training.cycle import Cycle
from halpiee.training.masks import Masks
from halpiee.training.settings import Settings
from halpiee.training.typed import fitted

__all__ = ["OPTIONS", "nested", "typed"]

# A name that stands in two places means the former: rounds are rounds of pruning.
PLACES: tuple[tuple[str | None, type], ...] = (("masks", Masks), ("cycle", Cycle), (None, Settings))


def _places() -> dict[str, tuple[str | None, type]]:
    found: dict[str, tuple[str | None, type]] = {}
    for place, kind in PLACES:
        for field in fields(kind):
            if field.name not in ("masks", "cycle"):
                found.setdefault(field.name, (place, kind))
    return found


OPTIONS = _places()
"""Option → the part of the settings that it belongs to (``None``: itself), and that part's class."""


def typed(options: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Returns the options with the types of their settings.

    Raises:
        UsageError: a value of another type, with ``where`` it was read from.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= fitted(OPTIONS[name][1], {name: value}, where=where)
    return found


def nested(options: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the options in the places that ``Settings.from_dict`` wants them.

    Args:
        options: option → value.
        over: such settings as they were before; what is given replaces it.
    """
    values = dict(over or {})
    for place in ("masks", "cycle"):
        values[place] = dict(values.get(place, {}))
    for name, value in options.items():
        part, _ = OPTIONS[name]
        target = values if part is None else values[part]
        target[name] = value
    return values
