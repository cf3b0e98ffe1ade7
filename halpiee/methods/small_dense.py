"""Small-Dense: the same network, uniformly narrower, at equal parameters, MACs or latency. What pruning has to beat."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from halpiee.errors import BudgetError, UsageError
from halpiee.methods.registry import method
from halpiee.selection.cost import LatencyCost
from halpiee.selection.select import uniform, widest
from halpiee.sparsity.mask import chosen_names
from halpiee.structure.groups import Structure
from halpiee.structure.shrink import shrink
from halpiee.structure.size import macs as macs_of
from halpiee.structure.size import parameters

__all__ = ["keep_first", "small_dense", "uniform_counts"]


@method(
    "small-dense",
    paper="Zhu & Gupta 2017, arXiv 1710.01878",
    units=("channels",),
    budgets=("latency", "parameters", "MACs"),
    kind="narrow",
    summary="a dense network of uniformly smaller width: what pruning has to beat",
)
def small_dense(
    model: nn.Module,
    structure: Structure,
    *,
    params: float | None = None,
    macs: float | None = None,
    latency_us: float | None = None,
    cost: LatencyCost | None = None,
    protect: Collection[str] = (),
) -> nn.Module:
    """Returns the widest uniformly narrower network within one of three limits.

    Every group's width is rounded on its own: to the candidate widths of ``cost`` for a latency, else to whole units.
    The largest common ratio that fits is taken, then single steps while one fits (``selection.select.widest``).

    Its weights are the first units of the given ones, scaled by √(old fan-in / new fan-in): what an initialisation of
    variance 1/fan-in would have given the narrow network.

    Args:
        model: the network; left as it is.
        structure: of the model.
        params: share of its parameters.
        macs: share of its multiply-accumulates.
        latency_us: latency by ``cost``.
        cost: latency model.
        protect: groups to leave whole.

    Raises:
        UsageError: not exactly one limit.
        BudgetError: not even one unit a group fits; ``.minimum`` is what that takes.
    """
    counts = uniform_counts(
        structure, params=params, macs=macs, latency_us=latency_us, cost=cost, protect=protect
    )
    compact = shrink(model, structure, keep_first(structure, counts))
    assert isinstance(compact, nn.Module)
    with torch.no_grad():
        before = dict(model.named_parameters())
        for name, p in compact.named_parameters():
            if p.dim() > 1:
                p.mul_(math.sqrt(before[name][0].numel() / p[0].numel()))
    return compact


def keep_first(structure: Structure, counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns the masks that keep the first units of every group."""
    return {g.name: torch.arange(g.size) < counts[g.name] for g in structure.prunable if g.name in counts}


def uniform_counts(
    structure: Structure,
    *,
    params: float | None = None,
    macs: float | None = None,
    latency_us: float | None = None,
    cost: LatencyCost | None = None,
    protect: Collection[str] = (),
) -> dict[str, int]:
    """Returns the units of every group of the widest uniform network that fits; see ``small_dense``."""
    if sum(limit is not None for limit in (params, macs, latency_us)) != 1:
        raise UsageError(
            "a small dense network was asked; give exactly one of params=…, macs=… and latency_us=…"
        )
    for name, limit in (("params", params), ("macs", macs), ("latency_us", latency_us)):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, numbers.Real)):
            raise UsageError(f"a small dense network of {name}={limit!r} was asked; give a number")
    protect = chosen_names(protect, structure.by_name, "group")
    if latency_us is not None:
        if cost is None:
            raise UsageError("a small dense network of a latency was asked; pass cost=halpiee.LatencyCost(…)")
        return uniform(cost, latency_us, protect=protect)
    share = params if params is not None else macs
    assert share is not None
    if not 0 < share <= 1:
        raise UsageError(
            f"a small dense network of {share} times the size was asked; give a share above 0 and up to 1"
        )
    size: Callable[[Mapping[str, int]], int] = lambda counts: (  # noqa: E731
        parameters(structure, counts) if params is not None else sum(macs_of(structure, counts).values())
    )
    sizes = {g.name: g.size for g in structure.prunable}
    whole = size({})
    options = {name: range(n if name in protect else 1, n + 1) for name, n in sizes.items()}
    counts = widest(sizes, options, size, share * whole, rising=True)
    if counts is None:
        least = size({name: allowed[0] for name, allowed in options.items()}) / whole
        raise BudgetError(
            f"a network of {share:.3g} times the size was asked; the narrowest network takes {least:.3g} of it; "
            f"ask for at least {math.ceil(least * 1000) / 1000}",
            minimum=least,
        )
    return counts
