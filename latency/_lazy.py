"""Public names that are imported when they are first used, so that ``import latency`` and ``import halpiee`` are light.

A package's names stand in its ``__init__.pyi``, one line each: ``from MODULE import NAME as NAME``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def exports(package: str, file: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Returns ``__all__``, ``__getattr__`` and ``__dir__`` of a package, from its ``__name__`` and ``__file__``."""
    stub = Path(file).with_suffix(".pyi").read_text("utf-8")
    lines = re.findall(r"^from (\S+) import (\w+) as \2$", stub, re.MULTILINE)
    homes = {name: home for home, name in lines}

    def get(name: str) -> Any:
        """Imports a public name."""
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        found = import_module(f"{package}.{name}") if home == package else getattr(import_module(home), name)
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        """Returns the names of the package, those that are not imported yet, too."""
        return sorted({*vars(sys.modules[package]), *homes})

    return sorted(homes), get, names
