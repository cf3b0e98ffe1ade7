"""Runtimes that ops and networks are timed on: one folder each, imported when its name is asked."""

from __future__ import annotations

from latency.backends.base import BACKENDS, Backend, Built, Runner, Way, adopted, backend, load, out_of_memory

__all__ = ["BACKENDS", "Backend", "Built", "Runner", "Way", "adopted", "backend", "load", "out_of_memory"]
