"""Export and the proof that what is exported is what was trained."""

from latency._lazy import loaded

__all__ = loaded(__name__, __file__)
