"""Quantities read off a model or a history: FLOPs, overlap and survival, correlations, plasticity."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halpiee.analysis.flops import CostReference, FlopsMeter, forward_cost, forward_share, train_flops
    from halpiee.analysis.history import (
        History,
        densities,
        distance,
        distances,
        exploration,
        flops_over_time,
        overlaps,
        survival_rates,
    )
    from halpiee.analysis.measures import (
        Plasticity,
        collapsed_channels,
        correlations,
        neuron_collapse,
        pruning_plasticity,
    )

__all__ = [
    "CostReference",
    "FlopsMeter",
    "History",
    "Plasticity",
    "collapsed_channels",
    "correlations",
    "densities",
    "distance",
    "distances",
    "exploration",
    "flops_over_time",
    "forward_cost",
    "forward_share",
    "neuron_collapse",
    "overlaps",
    "pruning_plasticity",
    "survival_rates",
    "train_flops",
]

_HOME = {
    "CostReference": "flops",
    "FlopsMeter": "flops",
    "History": "history",
    "Plasticity": "measures",
    "collapsed_channels": "measures",
    "correlations": "measures",
    "densities": "history",
    "distance": "history",
    "distances": "history",
    "exploration": "history",
    "flops_over_time": "history",
    "forward_cost": "flops",
    "forward_share": "flops",
    "neuron_collapse": "measures",
    "overlaps": "history",
    "pruning_plasticity": "measures",
    "survival_rates": "history",
    "train_flops": "flops",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: FLOPs need no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'halpiee.analysis' has no attribute {name!r}")
    return getattr(import_module(f"halpiee.analysis.{_HOME[name]}"), name)
