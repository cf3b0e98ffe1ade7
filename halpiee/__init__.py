"""Make a network meet a latency on a device, and keep as much accuracy as that latency allows."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halpiee import analysis, sparsity
    from halpiee.errors import BudgetError, HalpieeError
    from halpiee.methods.at_init import SNIP, AtInit, GraSP, SynFlow
    from halpiee.methods.dynamic import SET, SETITOP, SNFS, RigL, RigLITOP, Static
    from halpiee.methods.filters import FilterPruning
    from halpiee.methods.gradual import GMP, GraNet
    from halpiee.methods.halp import HALP
    from halpiee.methods.iee import IEE
    from halpiee.methods.once import prune_once
    from halpiee.methods.rewind import rewind
    from halpiee.methods.small_dense import small_dense
    from halpiee.reconstruction.repair import repair
    from halpiee.saliency.registry import criterion
    from halpiee.saliency.score import score
    from halpiee.selection.choose import Selection, select
    from halpiee.selection.cost import LatencyCost
    from halpiee.selection.problem import GridSolution, solve_grid
    from halpiee.sparsity.distribution import ERK, NM, Global, Latency, PerLayer, Uniform
    from halpiee.structure.groups import Structure
    from halpiee.structure.masked import masked
    from halpiee.structure.plan import Plan
    from halpiee.structure.shrink import shrink
    from halpiee.structure.trace import trace

__all__ = [
    "ERK",
    "GMP",
    "HALP",
    "IEE",
    "NM",
    "SET",
    "SETITOP",
    "SNFS",
    "SNIP",
    "AtInit",
    "BudgetError",
    "FilterPruning",
    "Global",
    "GraNet",
    "GraSP",
    "GridSolution",
    "HalpieeError",
    "Latency",
    "LatencyCost",
    "PerLayer",
    "Plan",
    "RigL",
    "RigLITOP",
    "Selection",
    "Static",
    "Structure",
    "SynFlow",
    "Uniform",
    "analysis",
    "criterion",
    "masked",
    "prune_once",
    "repair",
    "rewind",
    "score",
    "select",
    "shrink",
    "small_dense",
    "solve_grid",
    "sparsity",
    "trace",
]

__version__ = "0.1.0"

_HOME = {
    "ERK": "halpiee.sparsity.distribution",
    "GMP": "halpiee.methods.gradual",
    "HALP": "halpiee.methods.halp",
    "IEE": "halpiee.methods.iee",
    "NM": "halpiee.sparsity.distribution",
    "SET": "halpiee.methods.dynamic",
    "SETITOP": "halpiee.methods.dynamic",
    "SNFS": "halpiee.methods.dynamic",
    "SNIP": "halpiee.methods.at_init",
    "AtInit": "halpiee.methods.at_init",
    "BudgetError": "halpiee.errors",
    "FilterPruning": "halpiee.methods.filters",
    "Global": "halpiee.sparsity.distribution",
    "GraNet": "halpiee.methods.gradual",
    "GraSP": "halpiee.methods.at_init",
    "GridSolution": "halpiee.selection.problem",
    "HalpieeError": "halpiee.errors",
    "Latency": "halpiee.sparsity.distribution",
    "LatencyCost": "halpiee.selection.cost",
    "PerLayer": "halpiee.sparsity.distribution",
    "Plan": "halpiee.structure.plan",
    "RigL": "halpiee.methods.dynamic",
    "RigLITOP": "halpiee.methods.dynamic",
    "Selection": "halpiee.selection.choose",
    "Static": "halpiee.methods.dynamic",
    "Structure": "halpiee.structure.groups",
    "SynFlow": "halpiee.methods.at_init",
    "Uniform": "halpiee.sparsity.distribution",
    "criterion": "halpiee.saliency.registry",
    "masked": "halpiee.structure.masked",
    "prune_once": "halpiee.methods.once",
    "repair": "halpiee.reconstruction.repair",
    "rewind": "halpiee.methods.rewind",
    "score": "halpiee.saliency.score",
    "select": "halpiee.selection.choose",
    "shrink": "halpiee.structure.shrink",
    "solve_grid": "halpiee.selection.problem",
    "small_dense": "halpiee.methods.small_dense",
    "trace": "halpiee.structure.trace",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that ``import halpiee`` loads no torch."""
    if name in ("analysis", "sparsity"):
        return import_module(f"halpiee.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'halpiee' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
