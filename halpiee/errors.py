"""The error tree, drawn and defined in ``latency.errors``, under the name users import, and the two warnings."""

import difflib
from collections.abc import Iterable

from latency.errors import (
    BudgetError,
    DataError,
    HalpieeError,
    MeasurementError,
    MismatchError,
    MissingError,
    OutputInUseError,
    ProfileError,
    PromiseError,
    StructureError,
    UnsupportedOpError,
    UsageError,
    WriteError,
)
from latency.errors import (
    HoldoutWarning as HoldoutWarning,
)


def unknown(
    name: object, choices: Iterable[str], otherwise: str = "", *, before: str = "", most: int = 1
) -> str:
    """Returns what to say of a name that is none of the known ones.

    Args:
        name: that was asked.
        choices: the known ones.
        otherwise: what is said where none of them is close.
        before: stands before what is said, if anything is.
        most: names that are offered.
    """
    close = difflib.get_close_matches(str(name), list(choices), n=most)
    said = f"did you mean {' or '.join(map(repr, close))}?" if close else otherwise
    return before + said if said else ""


class ScoreWarning(UserWarning):
    """A score that cannot tell units apart was used: they are ranked by index."""


__all__ = [
    "BudgetError",
    "DataError",
    "HalpieeError",
    "MeasurementError",
    "MismatchError",
    "MissingError",
    "OutputInUseError",
    "ProfileError",
    "PromiseError",
    "StructureError",
    "UnsupportedOpError",
    "UsageError",
    "WriteError",
]
