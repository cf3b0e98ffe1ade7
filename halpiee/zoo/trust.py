"""What a file may name: networks of the zoo, torchvision and timm, and nothing else that would be imported or called.

A ``package.module:function`` is code of the user's choice, so the user names it: on the command line, or by saying
that the file is trusted. See docs/decisions/0021-files-name-no-code.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halpiee.errors import UsageError

__all__ = ["check_arguments", "check_named", "names_code"]

LOADING = ("weights", "pretrained", "checkpoint", "scriptable", "exportable", "cache_dir", "features_only")
"""What arguments start with that load something, or return something else than the network."""

MOST = 1e5
"""Largest number that a builder is given from a file; ImageNet-21k has 21,843 classes."""


def names_code(name: str) -> bool:
    """Whether a name stands for a function of any module rather than a known network or data set."""
    return ":" in name


def check_named(name: str, *, where: str, instead: str) -> None:
    """Refuses a function that only a file names.

    Args:
        name: MODEL or data source, as the file has it.
        where: the file and what it says, such as ``the plan half.json names the network``.
        instead: what to type if the name is the user's own.

    Raises:
        UsageError: it is a function; it was neither imported nor called.
    """
    if names_code(name):
        raise UsageError(
            f"{where} {name[:80]!r}, which is code to import and call; files may name networks of the zoo, "
            f"torchvision and timm only: if you know the file, {instead}"
        )


def check_arguments(name: str, arguments: Mapping[str, Any], *, where: str, instead: str) -> None:
    """Refuses arguments from a file that would make the builder of a known network load something.

    Args:
        name: of the network.
        arguments: for its builder, as the file has them.
        where: the file, such as ``the plan half.json``.
        instead: what to type if the file is the user's own.

    Raises:
        UsageError: one loads something, or is neither a moderate number, a boolean, null nor a list of these.
    """
    for key, value in arguments.items():
        if key.startswith(LOADING) or not _plain(value):
            raise UsageError(
                f"{where} builds {name[:80]!r} with {key[:40]!r}: {str(value)[:60]!r}; from a file a network "
                f"takes numbers up to {MOST:,.0f}, true and false, and nothing that loads "
                f"something: if you know the file, {instead}"
            )


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 64 and all(_plain(item) and not isinstance(item, list | tuple) for item in value)
    if value is None or isinstance(value, bool):
        return True
    return isinstance(value, int | float) and -MOST <= value <= MOST  # NaN is not
