"""The settings of a run's folder: written sealed, and read so that no code is named but by the user.

Where settings name a ``package.module:function``, the user typed it when the run began; a seal
(``latency.backends.tensorrt.files``) shows that this happened here. Settings without it come from elsewhere, and
their functions are neither imported nor called unless they are typed again or the run is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from halpiee.errors import UsageError
from halpiee.training.checkpoint import save_json
from halpiee.training.config import Settings
from halpiee.zoo.registry import check_named, names_code
from latency.backends.tensorrt.files import seal, sealed
from latency.outside import read_json

__all__ = ["FILE", "check_names", "read_settings", "read_values", "save_settings", "settings_of"]

FILE = "settings.json"
NAMES = ("model", "data", "task")
"""Settings that may name code."""


def save_settings(folder: Path, settings: Settings) -> None:
    """Writes the settings of a run, with a seal where they name code."""
    values = settings.as_dict()
    if any(names_code(values[key]) for key in NAMES):
        with suppress(OSError):  # no home to keep a key in: the names are typed again on --resume
            values["seal"] = seal(_facts(values))
    save_json(folder / FILE, values)


def read_values(folder: Path) -> dict[str, Any]:
    """Returns the settings of a run as they are in its folder, seal and all.

    Raises:
        UsageError: the file cannot be read, or holds no settings.
    """
    path = folder / FILE
    return read_json(path, dict[str, Any], what=str(path), advice="name the folder of another run")


def read_settings(folder: Path, *, trust: bool = False) -> Settings:
    """Returns the settings of a run, fit to build its network and load its data.

    Args:
        folder: of the run.
        trust: whether they may name any function.

    Raises:
        UsageError: the file is no settings, or it names code and was not written by this user here.
    """
    values = read_values(folder)
    if not trust:
        check_names(folder, values, instead="type --trust-run")
    return settings_of(folder, values)


def settings_of(folder: Path, values: Mapping[str, Any]) -> Settings:
    """Returns the settings of values that ``read_values`` read.

    Raises:
        UsageError: they are none, or do not go together; the message names the file.
    """
    path = folder / FILE
    try:
        return Settings.from_dict(values, where=str(path))
    except UsageError as error:
        if str(path) in str(error):
            raise
        raise UsageError(f"{path} holds settings of no run: {error}") from error


def check_names(
    folder: Path, values: Mapping[str, Any], *, instead: str, typed: Mapping[str, Any] | None = None
) -> None:
    """Refuses settings that name code and were not written by this user here.

    Args:
        folder: of the run.
        values: its settings, as ``read_values`` returns them.
        instead: what to type if the run is trusted.
        typed: settings that the user has typed, and that replace these.

    Raises:
        UsageError: names what would be called.
    """
    if sealed(_facts(values), values.get("seal")):
        return
    for key in NAMES:
        if key not in (typed or {}) and isinstance(values.get(key), str):
            check_named(values[key], where=f"{folder / FILE} names the {key}", instead=instead)


def _facts(values: Mapping[str, Any]) -> dict[str, Any]:
    named = {key: values.get(key) for key in NAMES}
    if not names_code(str(named["task"])):
        named.pop("task")  # runs that are older than tasks stay sealed
    return {"purpose": "run", **named}
