"""Runtimes that ops and networks are timed on; each is imported only when it is used."""

from __future__ import annotations

from latency.backends.base import BACKENDS, Backend, Built, load, out_of_memory

__all__ = ["BACKENDS", "Backend", "Built", "load", "out_of_memory"]
