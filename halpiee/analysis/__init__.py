"""Quantities read off a model or a history: FLOPs, overlap and survival, correlations, plasticity."""

from latency._lazy import exports

__all__, __getattr__, __dir__ = exports(__name__, __file__)
