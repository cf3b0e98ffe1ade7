"""What can be removed: coupled units of a model, and their exact removal."""

from latency._lazy import loaded

__all__ = loaded(__name__, __file__)
