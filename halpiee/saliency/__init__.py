"""Scores of units: one short function per criterion."""

from latency._lazy import loaded

__all__ = loaded(__name__, __file__)
