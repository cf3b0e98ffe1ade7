"""Masks, budgets and schedules: what is active, how much, when."""

from halpiee.sparsity.distribution import ERK, NM, Budget, Global, Latency, PerLayer, Uniform, erk
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.granularity import Channels, Units, Weights
from halpiee.sparsity.mask import Mask
from halpiee.sparsity.schedule import Constant, Cosine, Cubic, Curve, Exponential

__all__ = [
    "ERK",
    "NM",
    "Budget",
    "Channels",
    "Constant",
    "Cosine",
    "Cubic",
    "Curve",
    "Exponential",
    "Filters",
    "Global",
    "Latency",
    "Mask",
    "PerLayer",
    "Uniform",
    "Units",
    "Weights",
    "erk",
]
