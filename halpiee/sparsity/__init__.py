"""Masks, budgets and schedules: which units are active, how many, and when."""

from latency._lazy import exports

__all__, __getattr__, __dir__ = exports(__name__, __file__)
