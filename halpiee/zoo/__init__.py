"""The networks of the papers, and what a MODEL string means."""

from latency._lazy import exports

__all__, __getattr__, __dir__ = exports(__name__, __file__)
