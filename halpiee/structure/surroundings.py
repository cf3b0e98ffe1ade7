"""Restores what a copy of a model shares with the model, and a trace must not change: caches, random states.

``deepcopy`` copies what hangs on a model's modules. Functions and classes it shares, and with them the globals,
closures, class attributes, context variables and ``lru_cache`` tables that a forward or a hook may write tensors into.
A tensor without values left there would be read by the next forward of the user's own model.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import random
import sys
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from types import (
    BuiltinMethodType,
    CodeType,
    FrameType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from halpiee.errors import StructureError

FOREIGN = sys.stdlib_module_names | {"torch", "numpy", "functorch", "triton", "halpiee"}
"""Packages whose functions keep no tensor of a forward."""

MOST = 10_000
"""Items of a container that are visited."""

FIXED = (bool, type, FunctionType, MethodType, ModuleType)
"""A name that now holds one of these is not restored: a flag may say that something was registered, for good."""

LINKS: dict[Any, tuple[str, ...]] = {
    functools._lru_cache_wrapper: ("__wrapped__",),
    MethodType: ("__func__", "__self__"),
    BuiltinMethodType: ("__self__",),
    functools.partial: ("func", "args", "keywords"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset"),
}
"""Kind of callable → the attributes that lead on from it."""

ABSENT = object()


@contextmanager
def random_states(devices: list[int] | None = None) -> Iterator[None]:
    """Restores, at the end, the random states of torch (on GPUs of these indices; by default all), NumPy and Python."""
    python, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)


@contextmanager
def own_context() -> Iterator[None]:
    """Gives back, at the end, what context variables hold; only by leaving its context does one become unset again."""
    context = ctypes.py_object(copy_context())
    ctypes.pythonapi.PyContext_Enter(context)
    try:
        yield
    finally:
        ctypes.pythonapi.PyContext_Exit(context)


class Surroundings:
    """The present state that a model's code reaches outside its modules."""

    def __init__(self, model: nn.Module) -> None:
        self._seen: dict[int, Any] = {}
        self._undo: list[Callable[[], object]] = []
        self._bound: set[tuple[int, str]] = set()
        self._tables: list[Any] = []
        self._modes: list[weakref.ref[FakeTensorMode]] = []
        self._devices = sorted(
            {x.device.index for x in [*model.parameters(), *model.buffers()] if x.device.type == "cuda"}
        )
        self._queue: list[Any] = [model, *model.modules()]
        while self._queue:
            self._visit(self._queue.pop())

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Context that restores all changed state at its end, random states too, so that every forward begins alike."""
        for table in self._tables:
            table.cache_clear()
        try:
            with random_states(self._devices), own_context():
                yield
        finally:
            for table in self._tables:
                table.cache_clear()
            for undo in self._undo:
                undo()

    def watch(self, mode: FakeTensorMode | None) -> None:
        """Notes a mode none of whose tensors may outlive the trace."""
        if mode is not None:
            self._modes.append(weakref.ref(mode))

    def clear(self) -> None:
        """Drops the tensors without values that are left anywhere; a StructureError names a place it cannot clear."""
        for _ in range(3):
            found = self._survivors()
            if not found:
                return
            dropped(found)
            del found
        holders = {type(holder).__name__ for holder in gc.get_referrers(*self._survivors())} - {"list"}
        raise StructureError(
            "the forward keeps tensors in a place that outlives it and that a trace cannot clear "
            f"({', '.join(sorted(holders)) or 'an extension'}); they have no values now: begin a new process, and keep "
            "what the forward caches in attributes of its modules"
        )

    def _survivors(self) -> list[Tensor]:
        if all(mode() is None for mode in self._modes):
            return []
        gc.collect()
        modes = {id(mode()) for mode in self._modes if mode() is not None}
        if not modes:
            return []
        return [x for x in gc.get_objects() if type(x) is FakeTensor and id(x.fake_mode) in modes]

    def _visit(self, value: Any) -> None:
        """Notes the state of a value that a forward can change, and queues the values that it reaches."""
        if id(value) in self._seen or isinstance(value, Tensor | str | bytes | int | float | np.ndarray):
            return
        self._seen[id(value)] = value
        if isinstance(value, functools._lru_cache_wrapper):
            self._tables.append(value)
        if isinstance(value, tuple(LINKS)):
            names = next(names for kind, names in LINKS.items() if isinstance(value, kind))
            self._queue += [getattr(value, name) for name in names]
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, ContextVar):
            self._queue.append(value.get(None))
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, random.Random):
            self._undo.append(functools.partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self._undo.append(functools.partial(setattr, bits, "state", bits.state))
        elif isinstance(value, np.random.RandomState | torch.Generator):
            state: Any = value.get_state()
            self._undo.append(functools.partial(value.set_state, state))
        elif isinstance(value, MutableMapping | list | set | deque):
            self._container(value)
        elif isinstance(value, tuple | frozenset):
            self._queue += list(value)[:MOST]
        elif not isinstance(value, ModuleType):
            self._object(value)

    def _function(self, function: FunctionType) -> None:
        if foreign(function.__module__):
            return
        for cell in function.__closure__ or ():
            self._cell(cell)
        self._queue += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        self._queue.append(vars(function))
        names = names_in(function.__code__)
        read = [m for m in map(function.__globals__.get, names) if isinstance(m, ModuleType)]
        for place in [function.__globals__, *(vars(m) for m in read if not foreign(m.__name__))]:
            for name in names:
                was = place.get(name, ABSENT)
                if was is not ABSENT:
                    self._queue.append(was)
                if not isinstance(was, FIXED) and (id(place), name) not in self._bound:
                    self._bound.add((id(place), name))
                    self._undo.append(functools.partial(rebound, place, name, was))

    def _cell(self, cell: Any) -> None:
        try:
            was = cell.cell_contents
        except ValueError:
            return

        def undo() -> None:
            if cell.cell_contents is not was:
                cell.cell_contents = was

        self._queue.append(was)
        self._undo.append(undo)

    def _class(self, kind: type) -> None:
        for base in kind.__mro__:
            if foreign(base.__module__) or id(vars(base)) in self._seen:
                continue
            self._queue += vars(base).values()
            was = dict(vars(base))

            def undo(base: type = base, was: dict[str, Any] = was) -> None:
                for name, now in dict(vars(base)).items():
                    before = was.get(name, ABSENT)
                    if now is before or isinstance(now, FIXED):
                        continue
                    if before is ABSENT:
                        delattr(base, name)
                    else:
                        setattr(base, name, before)

            self._undo.append(undo)

    def _container(self, value: Any) -> None:
        if isinstance(value, dict):
            # with dict's own methods: those of a subclass may make the values, or take other arguments
            kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict
            table: Any = dict
            was: Any = {k: table.__getitem__(value, k) for k in kind.__iter__(value)}
            self._queue += list(was.values())[:MOST]

            def undo() -> None:
                if table.__len__(value) != len(was) or any(
                    table.get(value, k, ABSENT) is not v for k, v in was.items()
                ):
                    kind.clear(value)
                    for k, v in was.items():
                        kind.__setitem__(value, k, v)
        elif isinstance(value, MutableMapping):
            self._mapping(value)
            return
        else:
            was = list(value)
            self._queue += was[:MOST]

            def undo() -> None:
                if len(value) != len(was) or any(a is not b for a, b in zip(value, was, strict=False)):
                    value.clear()
                    (value.update if isinstance(value, set) else value.extend)(was)

        self._undo.append(undo)

    def _mapping(self, value: MutableMapping[Any, Any]) -> None:
        """A mapping that is no dict: its state is restored through its attributes, or item by item."""
        try:
            was = dict(value)
        except Exception:  # a mapping of the user's that cannot be listed
            return
        self._queue += list(was.values())[:MOST]

        def undo() -> None:
            if len(value) != len(was) or any(k not in value or value[k] is not v for k, v in was.items()):
                value.clear()
                value.update(was)

        self._undo.append(undo)

    def _object(self, value: Any) -> None:
        kind = type(value)
        self._queue.append(kind)
        if foreign(kind.__module__) and not isinstance(value, nn.Module | SimpleNamespace | threading.local):
            return
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self._queue.append(attributes)
        slots = (vars(base).get("__slots__", ()) for base in kind.__mro__)
        for name in {n for names in slots for n in ((names,) if isinstance(names, str) else names)}:
            was = getattr(value, name, ABSENT)
            if was is not ABSENT and name not in ("__dict__", "__weakref__"):
                self._queue.append(was)
                self._undo.append(functools.partial(slot_restored, value, name, was))


def foreign(module: str | None) -> bool:
    """Returns whether a module belongs to a package that keeps no tensor of a forward."""
    return (module or "").partition(".")[0] in FOREIGN


def slot_restored(value: Any, name: str, was: Any) -> None:
    """Restores an attribute in a slot."""
    if getattr(value, name, ABSENT) is not was:
        setattr(value, name, was)


@functools.cache
def names_in(code: CodeType) -> frozenset[str]:
    """Returns the names of globals and attributes in a function's code and its inner functions'."""
    inner = (names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return frozenset(code.co_names).union(*inner)


def rebound(place: dict[str, Any], name: str, was: Any) -> None:
    """Restores a name in a module."""
    now = place.get(name, ABSENT)
    if now is was or isinstance(now, FIXED):
        return
    if was is ABSENT:
        del place[name]
    else:
        place[name] = was


def dropped(values: list[Any], depth: int = 4) -> None:
    """Drops values, or their holders, from the containers, classes and caches that hold them."""
    seen = {id(values)}
    for _ in range(depth):
        above = []
        for holder in gc.get_referrers(*values):
            if id(holder) in seen or isinstance(holder, FrameType):
                continue
            seen.add(id(holder))
            if not forgets(holder, {id(value) for value in values}):
                above.append(holder)
        if not above:
            return
        values = above
        seen.add(id(values))


def forgets(holder: Any, values: set[int]) -> bool:
    """Makes a holder forget values, where it can; returns whether it could."""
    if isinstance(holder, functools._lru_cache_wrapper):
        holder.cache_clear()
    elif isinstance(holder, dict):
        kinds = [k for k in gc.get_referrers(holder) if isinstance(k, type)]
        for key in [k for k, v in holder.items() if id(v) in values]:
            kind = next((k for k in kinds if vars(k).get(key) is holder[key]), None)
            if kind is None:
                del holder[key]
            else:  # a class caches its attributes
                delattr(kind, key)
    elif isinstance(holder, list):
        holder[:] = [x for x in holder if id(x) not in values]
    else:
        return False
    return True
