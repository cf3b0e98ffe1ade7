"""Quantities read off a model or a history: FLOPs, overlap and survival, correlations, plasticity."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halpiee.analysis.collapse import collapsed_channels, neuron_collapse
    from halpiee.analysis.correlation import correlations
    from halpiee.analysis.flops import FlopsMeter, forward_cost, forward_share, train_flops
    from halpiee.analysis.history import History
    from halpiee.analysis.plasticity import Plasticity, pruning_plasticity
    from halpiee.analysis.survival import (
        densities,
        distance,
        distances,
        exploration,
        overlaps,
        survival_rates,
    )

__all__ = [
    "FlopsMeter",
    "History",
    "Plasticity",
    "collapsed_channels",
    "correlations",
    "densities",
    "distance",
    "distances",
    "exploration",
    "forward_cost",
    "forward_share",
    "neuron_collapse",
    "overlaps",
    "pruning_plasticity",
    "survival_rates",
    "train_flops",
]

_HOME = {
    "FlopsMeter": "flops",
    "History": "history",
    "Plasticity": "plasticity",
    "collapsed_channels": "collapse",
    "correlations": "correlation",
    "densities": "survival",
    "distance": "survival",
    "distances": "survival",
    "exploration": "survival",
    "forward_cost": "flops",
    "forward_share": "flops",
    "neuron_collapse": "collapse",
    "overlaps": "survival",
    "pruning_plasticity": "plasticity",
    "survival_rates": "survival",
    "train_flops": "flops",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: FLOPs need no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'halpiee.analysis' has no attribute {name!r}")
    return getattr(import_module(f"halpiee.analysis.{_HOME[name]}"), name)
