"""Methods of channels alone: HALP trains them away, a cut takes them off, Small-Dense never had them.

HALP prunes a pretrained network to a latency in a few dozen steps and trains on (arXiv 2110.10811). Taylor scores on
batch norms are collected over the steps between two prunes; each prune solves a knapsack within the next target of a
geometric curve from the dense latency to Ψ, ``Ψ_k = Ψ_0 · (Ψ/Ψ_0)^(k/K)`` (FORCE's schedule). Removed channels never
return. The knapsack is HALP's own (``linear``: every layer priced with its input width frozen), solved exactly; with
``solver="joint"`` both sides of every layer are priced.

Small-Dense is the same network, uniformly narrower, at equal parameters, MACs or latency: what pruning has to beat.
The method ``repair`` cuts a trained network to a latency and solves its layers again, without training; its algorithm
is ``halpiee.reconstruction``, and a run carries it out in ``halpiee.training``. The method ``early`` does the same
early in a training, and trains on.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import BudgetError, UsageError
from halpiee.methods.allocator import LatencyPool, Pool, bind
from halpiee.methods.method import Method, Request, Setup
from halpiee.methods.phases import Design, Recipe, Resize, Train, at_density
from halpiee.methods.registry import method
from halpiee.options import option
from halpiee.reconstruction.repair import RepairedLayer, Settings, repair
from halpiee.reconstruction.rounds import measured_values
from halpiee.saliency.criterion import Criterion
from halpiee.saliency.registry import criterion_of
from halpiee.saliency.score import pairs_of, scores_of
from halpiee.selection.choose import scaled, uniform, widest
from halpiee.selection.cost import LatencyCost
from halpiee.selection.grid import FloatArray
from halpiee.shared_options import LATE
from halpiee.sparsity.distribution import Budget, Latency
from halpiee.sparsity.granularity import Channels, Units
from halpiee.sparsity.mask import chosen_names
from halpiee.sparsity.schedule import Exponential
from halpiee.structure.groups import Structure, parameters
from halpiee.structure.groups import macs as macs_of
from halpiee.structure.shrink import keep_first, shrink


def recipe(*, dense: float, prunes: int, interval: int) -> Recipe:
    """Returns HALP as phases: ``prunes`` from ``dense``, the dense cost over Ψ, to 1, ``interval`` steps each."""
    levels = [*(Exponential(dense, 1.0, prunes)(k) for k in range(1, prunes)), 1.0]
    return tuple(phase for level in levels for phase in (Train(interval, collect=True), Resize(level=level)))


@dataclass(frozen=True)
class Options:
    """The options of HALP."""

    criterion: Criterion | str = option("taylor", "A criterion or its name.")
    prunes: int = option(30, "K, the number of prunes.")
    interval: int = option(40, "Training steps before each prune.")
    solver: Literal["linear", "joint", "cpsat"] = option(
        "linear",
        "The paper's knapsack is linear; a last prune that it leaves over the budget, because its prices "
        "are not the true ones, is solved once more jointly.",
    )
    gap: float = option(0.001, "Relative gap that the solver certifies.")
    value: Literal["scores", "measured"] = option(
        "scores",
        "What a width is worth: the sum of its units' scores, or the loss of forward passes on the batches, "
        "measured once.",
    )


@method(
    "halp",
    paper="Shen et al. 2022, arXiv 2110.10811",
    units=("channels",),
    budgets=("latency",),
    options=Options,
    pretrained=True,
    summary="a pretrained network pruned to a latency by Taylor scores in a few dozen steps",
)
class HALP(Method):
    """HALP attached to a pretrained model and its optimizer.

    Args: see ``Method``, and ``Options`` for its own. The budget is a ``Latency``, or a density of channels; all prunes
    must fit into ``total_steps``. Units are by default the structure's channels, whatever the budget.

    Raises:
        UsageError: the prunes do not fit into the training.
        BudgetError: a budget below what the smallest network needs.
    """

    def design(self, given: Setup, options: Options) -> Design:
        """Returns the prunes along the geometric curve."""
        prunes, interval = options.prunes, options.interval
        if min(prunes, interval) < 1 or prunes * interval > given.total_steps:
            raise UsageError(
                f"{prunes} prunes every {interval} steps were asked of {given.total_steps} steps; "
                f"ask for at least one each, and for prunes · interval up to {given.total_steps}"
            )
        if given.asked_units is None:  # HALP prunes channels, whatever is limited
            given = replace(given, asked_units=given.structure)
        values = _measured(given) if options.value == "measured" else None
        pool = bind(
            given.limit, given.units, given.cost, solver=options.solver, gap=options.gap, values=values
        )
        dense = _dense(pool, given.units, given.limit)
        phases = recipe(dense=dense, prunes=prunes, interval=interval)
        return given.design(phases, criterion_of(options.criterion, given.seed), pool=pool)

    @classmethod
    def arguments(cls, request: Request) -> dict[str, Any]:
        """Returns the prunes of a run: ``rounds`` of them, which end where IEE's cycles end."""
        o = request.options
        prunes = o.get("rounds", Options.prunes)
        room = int((request.cycle.get("end") or LATE) * request.total_steps) // prunes
        interval = o.get("interval") or max(1, min(Options.interval, room))
        given = {"criterion": o["criterion"]} if "criterion" in o else {}
        if o.get("value") == "measured":
            given |= {"value": "measured", "batches": request.examples()}
        if request.cycle.get("solver") is not None:
            given["solver"] = request.cycle["solver"]
        return {**given, "prunes": min(prunes, request.total_steps), "interval": interval}


def _measured(given: Setup) -> dict[str, FloatArray]:
    """Returns the value of every width, measured on the batches; refuses a setup without batches or channels."""
    if given.batches is None or not isinstance(given.units, Channels):
        raise UsageError(
            "value='measured' was asked, which runs the network on images and cuts channels; pass "
            "batches=[(inputs, targets), …] and structure=halpiee.trace(…)"
        )
    batches, structure = list(pairs_of(given.batches)), given.units.structure
    taylor = criterion_of("taylor")
    scores = scores_of(given.model, batches, taylor, units=structure, loss_fn=given.loss_fn)
    images = torch.cat([x for x, _ in batches])
    return measured_values(given.model, structure, scores, images, protect=frozenset(given.units.left_out))


def _dense(pool: Pool, units: Units, budget: Budget) -> float:
    """Returns the dense network's cost over the budget."""
    if isinstance(pool, LatencyPool):
        return max(1.0, pool.cost.dense_us / pool.total)
    if isinstance(budget, Latency):
        raise UsageError("a latency budget was bound to units without a latency; pass cost=…")
    at_density(budget, 1.0)
    return max(1.0, sum(math.prod(shape) for shape in units.sizes.values()) / pool.total)


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
    """Returns the widest uniformly narrower network within one of three limits; see ``uniform_counts``.

    Its weights are the first units of the given ones, scaled by √(old fan-in / new fan-in): what an initialisation of
    variance 1/fan-in would have given the narrow network.

    The share of the parameters, the share of the multiply-accumulates, or the latency by ``cost`` is limited; the
    groups to ``protect`` stay whole. The model is left as it is.

    Raises:
        UsageError: not exactly one limit.
        BudgetError: not even one unit a group fits; ``.minimum`` is what that takes.
    """
    limits: dict[str, Any] = {"params": params, "macs": macs, "latency_us": latency_us}
    return narrowed(model, structure, uniform_counts(structure, **limits, cost=cost, protect=protect))


@method(
    "scaled",
    paper="after Tan & Le 2019, arXiv 1905.11946",
    units=("channels",),
    budgets=("latency",),
    kind="narrow",
    summary="a dense network with fewer blocks and fewer channels alike, from scratch, measured in the closed loop",
)
def scaled_dense(
    model: nn.Module,
    structure: Structure,
    *,
    latency_us: float,
    cost: LatencyCost,
    protect: Collection[str] = (),
) -> nn.Module:
    """Returns the network within a latency whose depth and width are scaled down alike.

    Counts are those of ``selection.choose.scaled``, weights are made as in ``small_dense``, whose arguments these are.
    The structure is traced with ``vanish=True``; the model is left as it is.

    Raises:
        BudgetError: not even the smallest of these networks fits; ``.minimum`` is what that takes.
    """
    return narrowed(model, structure, scaled(cost, latency_us, protect=protect))


def narrowed(model: nn.Module, structure: Structure, counts: Mapping[str, int]) -> nn.Module:
    """Returns the first units of every group, weights scaled to what the narrow network would have been drawn with."""
    compact = shrink(model, structure, keep_first(structure, counts))
    assert isinstance(compact, nn.Module)
    with torch.no_grad():
        before = dict(model.named_parameters())
        for name, p in compact.named_parameters():
            if p.dim() > 1 and p.numel():
                p.mul_(math.sqrt(before[name][0].numel() / p[0].numel()))
    return compact


def uniform_counts(
    structure: Structure,
    *,
    params: float | None = None,
    macs: float | None = None,
    latency_us: float | None = None,
    cost: LatencyCost | None = None,
    protect: Collection[str] = (),
) -> dict[str, int]:
    """Returns the units of every group of the widest uniform network that fits; see ``small_dense``.

    Every group's width is rounded on its own: to the candidate widths of ``cost`` for a latency, else to whole units.
    The largest common ratio that fits is taken, then single steps while one fits (``selection.choose.widest``).
    """
    limits = {"params": params, "macs": macs, "latency_us": latency_us}
    if len(given := {name: limit for name, limit in limits.items() if limit is not None}) != 1:
        raise UsageError(
            "a small dense network was asked; give exactly one of params=…, macs=… and latency_us=…"
        )
    for name, limit in given.items():
        if isinstance(limit, bool) or not isinstance(limit, numbers.Real):
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


method(
    "repair",
    paper="after He et al. 2017, arXiv 1707.06168",
    units=("channels",),
    budgets=("latency",),
    kind="cut",
    pretrained=True,
    summary="a pretrained network cut to a latency, its layers solved again: no training (`halpiee prune`)",
)(repair)


@method(
    "early",
    paper="after You et al. 2020, arXiv 1909.11957, and He et al. 2017, arXiv 1707.06168",
    units=("channels",),
    budgets=("latency",),
    kind="cut",
    summary="the whole network for a quarter of the training, cut once, its layers solved again, compact from then on",
)
def early(
    model: nn.Module,
    optimizer: Optimizer,
    structure: Structure,
    keep: Mapping[str, Tensor],
    batches: Iterable[Any],
    *,
    settings: Settings | None = None,
    report: Callable[[RepairedLayer], None] = lambda layer: None,
) -> tuple[nn.Module, Optimizer]:
    """Returns a network in training cut, its layers solved again, and its optimizer cut alike: train on with these.

    Train on with these. The model, trained for a while, is left as it is; ``keep`` is as ``halpiee.select`` chooses;
    the ``batches`` are inputs of training images without labels, as for ``halpiee.repair``; ``settings`` say how layers
    are solved; ``report`` is called with each layer.
    """
    compact, slim = shrink(model, structure, keep, optimizer)
    solved = repair(model, structure, keep, batches, settings=settings, report=report)
    compact.load_state_dict(solved.state_dict())
    return compact, slim
