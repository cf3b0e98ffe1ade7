"""Public names: imported when they are first used, and told apart from what they were called with.

``import latency`` and ``import halpiee`` are light: a package's names stand in its ``__init__.pyi``, one line each:
``from MODULE import NAME as NAME``. A public function that fails within says which of its arguments is not of the type
that its annotation states: that is looked for once it has failed, so nothing is slower, and nothing refused that works.
"""

from __future__ import annotations

import builtins
import collections.abc
import functools
import inspect
import re
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import FunctionType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from latency.errors import UsageError, said


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
        found = import_module(f"{package}.{name}") if home == package else public(import_module(home), name)
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        """Returns the names of the package, those that are not imported yet, too."""
        return sorted({*vars(sys.modules[package]), *homes})

    return sorted(homes), get, names


def loaded(package: str, file: str) -> list[str]:
    """Imports the public names of a package one of whose modules is called as what it holds; returns ``__all__``."""
    names, get, _ = exports(package, file)
    for name in names:
        get(name)
    return names


def public(home: Any, name: str) -> Any:
    """Returns what a module has under a name; from then on its calls say which argument they failed with."""
    found = getattr(home, name)
    if isinstance(found, FunctionType):
        if any(one.default is one.empty for one in inspect.signature(found).parameters.values()):
            setattr(home, name, _told(found, name))
    elif isinstance(found, type) and not issubclass(found, Exception):
        for key, call in list(vars(found).items()):
            if isinstance(call, classmethod) and not key.startswith("_"):
                setattr(found, key, classmethod(_told(call.__func__, f"{name}.{key}")))
        made = found.__init__
        if isinstance(made, FunctionType) and made.__name__ == "__init__":  # a Protocol's is called otherwise
            setattr(found, "__init__", _told(made, name))  # noqa: B010
    return getattr(home, name)


FAULTS = (TypeError, AttributeError, LookupError, ValueError, RuntimeError, AssertionError, OSError)
"""What a wrong argument ends in, somewhere within."""


def _told(call: Any, name: str) -> Any:
    """Returns a callable that does the same, and where it fails says which argument does not fit its annotation."""
    if hasattr(call, "__wrapped__"):
        return call

    @functools.wraps(call)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except FAULTS as error:
            if (wrong := _wrong(call, args, kwargs, error)) is None:
                raise
            argument, value, wanted = wrong
            raise UsageError(
                f"{name} was called with {argument} of type {type(value).__name__} ({said(error, 100)}); give "
                f"{wanted}, as help({name}) says"
            ) from error

    return checked


def _wrong(call: Any, args: Any, kwargs: Any, error: Exception) -> tuple[str, Any, str] | None:
    """Returns the first argument that does not fit its annotation, or names a file that the system refused.

    These are its name, its value, and what would fit.
    """
    signature = inspect.signature(call)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:  # which names the argument itself
        return None
    names = _Names({**vars(builtins), **call.__globals__})
    for name, value in given.items():
        parameter = signature.parameters[name]
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        refused = isinstance(error, OSError) and str(error.filename) == str(value)
        if isinstance(value, str | Path) and (refused or "\0" in str(value)):
            return name, value, "the path of another file"
        text = parameter.annotation
        try:
            fits = _fits(value, eval(text, {}, names) if isinstance(text, str) else Any)
        except Exception:  # an annotation that only a type checker can read
            continue
        if not fits:
            return name, value, " ".join(text.split())
    return None


class _Names(dict[str, Any]):
    """The names that annotations may hold: those of the module, else of any module that has been imported."""

    def __missing__(self, name: str) -> Any:
        own = (vars(m) for key, m in list(sys.modules.items()) if key.startswith(("halpiee", "latency")))
        return next((found[name] for found in own if name in found), Any)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as far as that can be told from it and from the first of its items."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Annotated:
        return _fits(value, inner[0])
    if origin is Literal:
        return value in inner
    if hint in (float, int):
        number = hasattr(value, "__float__" if hint is float else "__index__")
        return number and not isinstance(value, bool) and getattr(value, "ndim", 0) == 0
    kind = type(None) if hint is None else origin or hint
    if kind is collections.abc.Callable:
        return callable(value)
    if not isinstance(kind, type) or kind is Any:
        return True
    if getattr(kind, "_is_protocol", False):
        wanted = {n for base in kind.__mro__ for n in (*vars(base), *getattr(base, "__annotations__", ()))}
        return all(hasattr(value, name) for name in wanted if not name.startswith("_"))
    if not isinstance(value, kind):
        return False
    if isinstance(value, collections.abc.Mapping) and len(inner) == 2:
        return all(_fits(one, inner[1]) for one in islice(value.values(), 100))
    if isinstance(value, collections.abc.Collection) and (len(inner) == 1 or inner[1:] == (...,)):
        return all(_fits(one, inner[0]) for one in islice(iter(value), 100))
    return True
