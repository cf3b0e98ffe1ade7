"""A ``tensorrt`` made from a contract: every name, argument, property and enum member must be in it, and fit its type.

What the names do is modelled as far as this project uses it (``building.py``, ``running.py``).
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .building import Building
from .gpu import Gpu
from .running import Running
from .types_of_calls import PROPERTIES, TYPES

CONTRACTS = Path(__file__).parent / "contracts"
VERSIONS = {10: "10.3.0", 11: "11.0.0.114"}


@dataclass
class Behaviour:
    """What the stand-in is told to do.

    Attributes:
        gpu: where engines run.
        fails: complaints with which builds return None, one a build; None for a build that succeeds.
        unreadable: what the parser complains of.
        error: added to the outputs of engines made from ONNX.
        calls: every call that was made, by its name.
        levels: builder optimisation level of every build.
        us: what a plan takes; by default so much a layer.
        busy_seconds: for which an inference holds its context, so that two threads would meet there.
        computes: whether engines made from ONNX compute what ONNX Runtime computes.
    """

    gpu: Gpu
    fails: list[str | None] = field(default_factory=list)
    unreadable: str | None = None
    error: float = 0.0
    calls: set[str] = field(default_factory=set)
    flags: dict[str, bool] = field(default_factory=dict)
    caches: list[bytes] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    us: Callable[[dict[str, Any]], float] | None = None
    computes: bool = True
    busy_seconds: float = 0.0


class _Model(Building, Running):
    """What all the names do."""


class _Named(enum.Enum):
    """A pybind enum: a member is no number, but has one."""

    def __int__(self) -> int:
        return int(self.value)


class Strict:
    """An object with the attributes of its contract and no others."""

    _contract: dict[str, Any]
    _class: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if f"{self._class}.{name}" not in self._contract["props"]:
            raise AttributeError(f"{self._class} has no {name}")
        raise AttributeError(f"{self._class}.{name} is not modelled")

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or "_class" not in type(self).__dict__:  # private, or a user's subclass
            object.__setattr__(self, name, value)
            return
        key = f"{self._class}.{name}"
        if self._contract["props"].get(key) != "rw":
            raise AttributeError(f"{key} cannot be set")
        wanted = str if name == "name" else PROPERTIES.get(key)
        assert wanted is not None, f"{key} is set, but not modelled: name its type"
        _check(key, value, wanted, self._module)
        object.__setattr__(self, name, value)


def _check(where: str, value: Any, wanted: Any, module: ModuleType) -> None:
    wanted, numbers = wanted if isinstance(wanted, tuple) else (wanted, int)
    kind = getattr(module, wanted) if isinstance(wanted, str) else wanted
    right = isinstance(value, kind) and not (kind is int and isinstance(value, bool | np.generic))
    if kind is tuple and right:
        right = all(type(v) is numbers for v in value)
    if not right:
        raise TypeError(f"{where}: incompatible argument {value!r}, wanted {kind.__name__}")


def tensorrt(major: int, behaviour: Behaviour) -> ModuleType:
    """Returns the module of a major version."""
    contract = _read(major)
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)  # PyTorch looks for it
    module.__version__ = VERSIONS[major]  # type: ignore[attr-defined]
    enum_of: Any = _Named  # with names and members it makes an enum
    for name, members in contract["enums"].items():
        setattr(module, name, enum_of(name, members))
    spaces: dict[str, dict[str, Any]] = {}
    for key in (*contract["methods"], *contract["props"]):
        owner, name = key.split(".")
        facts = {"_contract": contract, "_class": owner, "_module": module, "_told": behaviour}
        space = spaces.setdefault(owner, facts)
        getter = getattr(_Model, key.replace(".", "_"), None)
        if key in contract["methods"]:
            space[name] = _method(key, contract["methods"][key], module, behaviour)
        elif getter is not None:
            space[name] = property(getter)
    for owner, space in spaces.items():
        setattr(module, owner, type(owner, (Strict,), space))
    return module


@cache
def _read(major: int) -> dict[str, Any]:
    contract: dict[str, Any] = json.loads((CONTRACTS / f"{major}.json").read_text())
    return contract


def _method(key: str, overloads: list[list[str]], module: ModuleType, told: Behaviour) -> Any:
    def call(self: Any, *given: Any, **named: Any) -> Any:
        # a layer's get_output is every layer's
        types = TYPES.get(key, (int,) if key.endswith("Layer.get_output") else None)
        assert types is not None, f"{key} is called, but not modelled: name its types"
        told.calls.add(key)
        for overload in overloads:
            names = [n.rstrip("?") for n in overload[1:]]
            optional = [n.rstrip("?") for n in overload[1:] if n.endswith("?")]
            bound = dict(zip(names, given, strict=False)) | named
            if (
                len(given) <= len(names)
                and set(bound) <= set(names)
                and set(names) - set(bound) <= set(optional)
            ):
                break
        else:
            raise TypeError(f"{key}: incompatible arguments {given} {named}")
        for name, wanted in zip(names, types, strict=False):
            if name in bound:
                _check(f"{key}({name})", bound[name], wanted, module)
        act = getattr(
            _Model, "Layer_get_output" if key.endswith("Layer.get_output") else key.replace(".", "_"), None
        )
        return act(self, *bound.values()) if act else None

    return call
