"""How long does it take? Ops, backends, profiles and measurements.

The public names stand in ``__init__.pyi``, one line each. They are imported when they are first used, so that
``import latency`` loads no torch.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

_HOME = {
    name: home
    for home, name in re.findall(
        r"^from (\S+) import (\w+) as \2$",
        Path(__file__).with_suffix(".pyi").read_text("utf-8"),
        re.MULTILINE,
    )
}
"""Public name → the module that defines it."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'latency' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
