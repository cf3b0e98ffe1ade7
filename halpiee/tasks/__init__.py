"""What a network learns: which data it is given, its loss, and the figures that say how well it does."""

from latency._lazy import loaded

__all__ = loaded(__name__, __file__)
