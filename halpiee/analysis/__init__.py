"""Quantities read off a model or a history: FLOPs, survival, plasticity."""

from halpiee.analysis.flops import FlopsMeter, forward_share, train_flops

__all__ = ["FlopsMeter", "forward_share", "train_flops"]
