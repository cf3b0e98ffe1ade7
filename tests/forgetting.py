"""Parts that a test registers are forgotten afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from latency.registry import Registry

__all__ = ["forgetting"]


@contextmanager
def forgetting(*registries: Registry[Any]) -> Iterator[None]:
    """Inside, parts may be registered; afterwards the registries hold their earlier and their own parts."""
    with ExitStack() as stack:
        for registry in registries:
            stack.enter_context(_one(registry))
        yield


@contextmanager
def _one(registry: Registry[Any]) -> Iterator[None]:
    parts, origins = registry.loaded(), dict(registry._origins)
    try:
        yield
    finally:  # a module of the home is imported once only: what it registered inside stays
        for name, origin in registry._origins.items():
            if name not in parts and origin.startswith(f"{registry.home}."):
                parts[name], origins[name] = registry._parts[name], origin
        registry._parts, registry._origins = parts, origins
