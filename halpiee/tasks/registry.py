"""Tasks by name: a task is one class, in one file, that registers itself.

::

    @halpiee.task("regression")
    class Regression(halpiee.Task): ...
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from halpiee.errors import UsageError
from halpiee.tasks.task import Task
from latency.registry import Registry, not_known

__all__ = ["REGISTRY", "named", "task"]

T = TypeVar("T", bound=type[Task])

REGISTRY: Registry[type[Task]] = Registry("task", group="halpiee.tasks", home="halpiee.tasks")


def task(name: str) -> Callable[[T], T]:
    """Registers a task under the name that ``--task`` takes; refuses a name that another task has."""

    def register(kind: T) -> T:
        REGISTRY.add(name, kind, kind)
        return kind

    return register


def named(name: str) -> Task:
    """Returns a task by its name, or by ``package.module:Class``, which is imported from the working directory too.

    Raises:
        UsageError: there is no such task.
    """
    if ":" not in name:
        if name not in REGISTRY:
            raise not_known("task", name, REGISTRY.names(), more=", or package.module:Task")
        return REGISTRY[name]()
    module, _, kind = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), kind)
    except Exception as error:  # whatever the module does while it is imported
        said = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--task {name} was asked, and it cannot be imported ({type(error).__name__}: {said}); run from the folder "
            "that it lies in, or install it"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UsageError(
            f"--task {name} was asked, and {kind} is no class of halpiee.Task; derive it from that"
        )
    return found()
