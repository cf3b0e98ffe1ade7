"""The error tree of ``latency.errors`` under the names that users import, and two warnings."""

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
from latency.errors import (
    unknown as unknown,
)


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
