"""How long does it take? Ops, backends, profiles and measurements; imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latency.backends import Backend, Built, Runner, Way, backend
    from latency.device import environment
    from latency.errors import (
        HalpieeError,
        MeasurementError,
        MissingError,
        OutputInUseError,
        ProfileError,
        UnsupportedOpError,
        UsageError,
    )
    from latency.op import Op
    from latency.predict import Calibration, fit
    from latency.profiles import Profile
    from latency.sweeping import Estimate, sweep
    from latency.table import Table
    from latency.timing.benchmark import Comparison, Measurement, compare, measure

__all__ = [
    "Backend",
    "Built",
    "Calibration",
    "Comparison",
    "Estimate",
    "HalpieeError",
    "Measurement",
    "MeasurementError",
    "MissingError",
    "Op",
    "OutputInUseError",
    "Profile",
    "ProfileError",
    "Runner",
    "Table",
    "UnsupportedOpError",
    "UsageError",
    "Way",
    "backend",
    "compare",
    "environment",
    "fit",
    "measure",
    "sweep",
]

_HOME = {
    "latency.timing.benchmark": ("Comparison", "Measurement", "compare", "measure"),
    "latency.backends": ("Backend", "Built", "Runner", "Way", "backend"),
    "latency.device": ("environment",),
    "latency.errors": (
        "HalpieeError",
        "MeasurementError",
        "MissingError",
        "OutputInUseError",
        "ProfileError",
        "UnsupportedOpError",
        "UsageError",
    ),
    "latency.op": ("Op",),
    "latency.predict": ("Calibration", "fit"),
    "latency.profiles": ("Profile",),
    "latency.sweeping": ("Estimate", "sweep"),
    "latency.table": ("Table",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _MODULE:
        raise AttributeError(f"module 'latency' has no attribute {name!r}")
    value = getattr(import_module(_MODULE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
