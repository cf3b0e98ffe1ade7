"""Make a network meet a latency on a device, and keep as much accuracy as that latency allows.

The public names stand in ``__init__.pyi``, one line each. They are imported when they are first used, so that
``import halpiee`` loads no torch.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_HOME = {
    name: home
    for home, name in re.findall(
        r"^from (\S+) import (\w+) as \2$",
        Path(__file__).with_suffix(".pyi").read_text("utf-8"),
        re.MULTILINE,
    )
}
"""Public name → the module that defines it; of a package of halpiee ``halpiee``."""

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Imports a public name."""
    if name not in _HOME:
        raise AttributeError(f"module 'halpiee' has no attribute {name!r}")
    home = _HOME[name]
    value = import_module(f"halpiee.{name}") if home == "halpiee" else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Returns the public names, those that are not imported yet, too."""
    return sorted({*globals(), *__all__})
