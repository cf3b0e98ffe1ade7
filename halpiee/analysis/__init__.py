"""Quantities read off a model or a history: FLOPs, survival, plasticity."""
