"""The error tree, drawn and defined in ``latency.errors``, under the name users import."""

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
)

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
]
