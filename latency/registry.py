"""Parts that register themselves by name: backends here, criteria and methods in halpiee, all in other packages too.

A part is one file or folder: a decorator in it registers the part. The files of a home package are imported when a name
is looked up for the first time; a home of folders names its parts by its folders, and imports one when it is asked.
Other packages name theirs as entry points of a group (``latency.backends``, ``halpiee.criteria`` …), each under the
name that its decorator registers; an entry point is loaded when its name is asked.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from latency.errors import UsageError, unknown

T = TypeVar("T")


def plain(name: str) -> str:
    """Returns a name as it is registered: ``_`` may stand for ``-``."""
    return name.replace("_", "-")


def not_known(noun: str, name: str, known: Iterable[str], *, more: str = "") -> UsageError:
    """Returns the error of a name that nothing has, cut, with the closest name, or all others and ``more``."""
    known = sorted(known)
    hint = unknown(plain(name), known, f"known are {', '.join(known)}{more}")
    return UsageError(f"the {noun} {name[:200]!r} was asked; {hint}")


class Registry(Mapping[str, T], Generic[T]):
    """Name → part; a mapping that imports its home package, or one folder of it for each name, when it is read."""

    def __init__(self, noun: str, *, group: str, home: str, folders: bool = False) -> None:
        self.noun, self.group, self.home, self._folders = noun, group, home, folders
        self.elsewhere = f"; one of your own comes as an entry point of {group!r}"
        self._parts: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._searched = False

    def add(self, name: str, part: T, origin: object) -> None:
        """Registers a part, its name in lower case with ``-``; the same origin may do so again, as a notebook does.

        Raises:
            UsageError: an odd name, or one that another part has.
        """
        if not name or name != plain(name).lower() or not name.replace("-", "").isalnum():
            raise UsageError(
                f"the {self.noun} name {name!r} was registered; give lower case letters, digits and '-'"
            )
        where = f"{getattr(origin, '__module__', '')}.{getattr(origin, '__qualname__', origin)}"
        if self._origins.get(name, where) != where:
            raise UsageError(
                f"the {self.noun} {name!r} was registered by {where}, and {self._origins[name]} has that name; "
                "give another one"
            )
        self._parts[name], self._origins[name] = part, where

    def names(self) -> list[str]:
        """Returns every name, sorted; entry points are named without being loaded."""
        self._search()
        return sorted({*self._parts, *self._homes(), *self._points()})

    def __getitem__(self, name: str) -> T:
        """Returns the part of a name.

        Raises:
            UsageError: nothing has the name, or the package that offers it does not register it.
        """
        name = plain(name)
        self._search()
        if name not in self._parts and name in self._homes():
            importlib.import_module(self._homes()[name])
        if name not in self._parts:
            point = self._points().get(name)
            if point is None:
                raise not_known(self.noun, name, self.names(), more=self.elsewhere)
            self._load(name, point)
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        self._search()
        here = {*self._parts, *self._homes()}  # to ask other packages for theirs takes ms
        return isinstance(name, str) and (plain(name) in here or plain(name) in self._points())

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def loaded(self) -> dict[str, T]:
        """Returns the parts that need nothing of other packages, and those of other packages asked for so far."""
        self._search()
        return dict(self._parts)

    def origin(self, name: str) -> str:
        """Returns the module and the name of what registered a part."""
        self[name]
        return self._origins[plain(name)]

    def _homes(self) -> dict[str, str]:
        """Returns name → folder of the home's parts that are folders."""
        if not self._folders:
            return {}
        found = pkgutil.iter_modules(importlib.import_module(self.home).__path__)
        return {plain(one.name): f"{self.home}.{one.name}" for one in found if one.ispkg}

    def _search(self) -> None:
        if not self._searched and not self._folders:
            self._searched = True
            for found in pkgutil.iter_modules(importlib.import_module(self.home).__path__):
                importlib.import_module(f"{self.home}.{found.name}")

    def _points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {plain(point.name): point for point in importlib.metadata.entry_points(group=self.group)}

    def _load(self, name: str, point: importlib.metadata.EntryPoint) -> None:
        try:
            found = point.load()
        except Exception as error:  # code of another package: any error is a fact about that package
            raise UsageError(
                f"the {self.noun} {name!r} is offered by the entry point {point.value!r}, which does not load "
                f"({type(error).__name__}: {error}); mend or uninstall its package"
            ) from error
        if name not in self._parts:
            what = found.__name__ if inspect.isroutine(found) or inspect.isclass(found) else point.value
            raise UsageError(
                f"the {self.noun} {name!r} is offered by the entry point {point.value!r}, and {what} registers no such "
                f"{self.noun}; decorate it with @{self.group.split('.')[0]}.{self.noun}({name!r}, …)"
            )
