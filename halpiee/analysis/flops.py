"""What a sparse training costs, as a multiple of the dense one's FLOPs.

One training step is a forward pass, the gradients of the activations and the gradients of the weights: three
times the forward MACs when dense. With F the weights used in forward and U those whose gradient is wanted, a
step costs f(F) + f(F) + f(U); every method is a choice of the two::

    static, SET, GMP     F = U = active
    RigL                 the same; every interval + 1 steps, one with U = all (arXiv 1911.11134, appendix)
    GraNet               GMP; strictly also one step with U = all per interval (arXiv 2106.10404)
    SNFS                 F = active, U = all (dense momentum, arXiv 1907.04840)
    DCIL                 a dense and a sparse forward, two dense backward passes (arXiv 2006.08967): (5 + p) / 3
    SR-STE               F = active in forward, all in both backward passes (arXiv 2102.04010)
    IEE                  active; while exploring F = all, U = the inactive

IEE's paper charges an explore step dense + 2 · active. Activation gradients pass through all weights, and the inactive
part is trained, so strictly it is dense + dense + (dense − active): ``accounting`` says which. Totals are in MACs; the
papers count in them or in FLOPs, two a MAC, and ratios are the same in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from halpiee.errors import UsageError, unknown

Accounting = Literal["paper", "strict"]
Method = Literal["dense", "static", "set", "rigl", "snfs", "gmp", "granet", "sr-ste", "dcil", "iee"]
Constant = float | Mapping[str, float]
Density = Constant | Sequence[Constant] | Callable[[int], Constant]
"""A share kept; one per layer (a layer left out is dense); either step by step, as a list or a function."""


@dataclass(frozen=True, kw_only=True)
class Updates:
    """When masks change."""

    interval: int = 100  # training steps between two mask updates (RigL, GraNet)
    h: int = 150  # IEE's steps before a prune
    j: int = 150  # IEE's steps after it
    q: int = 150  # IEE's steps of exploring
    # share of the training after which IEE's updates have ended: ⌊end · steps / (h + j + q)⌋ cycles
    end: float = 0.75


def train_flops(
    macs: Mapping[str, int],
    density: Density,
    *,
    method: Method,
    steps: int,
    accounting: Accounting = "paper",
    **updates: Any,
) -> float:
    """Returns the training FLOPs of a method over those of dense training for as many steps.

    Args:
        macs: layer → multiply-accumulates of its dense forward.
        density: share of active weights, see ``Density``; for IEE that of the active network.
        method: what is trained how.
        steps: optimizer steps.
        accounting: ``paper``: as the method's paper charges it; ``strict``: what the two masks imply.
        updates: the fields of ``Updates``: ``interval``, ``h``, ``j``, ``q``, ``end``.

    Returns:
        The cost per step, averaged, over 3 · dense. With p the forward's share: static p; RigL
        (p (3 ΔT + 2) + 1) / (3 (ΔT + 1)); SNFS (2 p + 1) / 3; SR-STE (p + 2) / 3; IEE with h = j = q and
        end = 3/4 (11 p + 1) / 12 on paper, (8 p + 3) / 12 strictly.

    Raises:
        UsageError: an unknown method or layer, a density outside [0, 1], or a list of another length.
    """
    if method not in get_args(Method):
        hint = unknown(method, get_args(Method), f"known are {', '.join(get_args(Method))}")
        raise UsageError(f"training FLOPs of the method {method!r} were asked, which is not known; {hint}")
    if accounting not in get_args(Accounting):
        raise UsageError(f"the accounting {accounting!r} was asked; give 'paper' or 'strict'")
    u = Updates(**updates)
    interval, h, j, q, end = u.interval, u.h, u.j, u.q, u.end
    if steps < 1 or interval < 1 or min(h, j, q) < 0 or h + j + q < 1 or not 0 <= end <= 1:
        raise UsageError(
            f"steps={steps}, interval={interval}, h={h}, j={j}, q={q}, end={end} were asked; "
            "steps, interval and h + j + q must be at least 1, end between 0 and 1"
        )
    active = _shares(macs, density, steps)
    step = np.arange(steps)
    ones = np.ones(steps)
    forward = backward = weights = active
    if method == "dense":
        forward = backward = weights = ones
    elif method == "rigl" or (method == "granet" and accounting == "strict"):
        weights = np.where(step % (interval + 1) == interval, ones, active)
    elif method == "snfs":
        weights = ones
    elif method == "dcil":
        forward, backward, weights = 1 + active, 2 * ones, 2 * ones
    elif method == "sr-ste":
        backward = weights = ones
    elif method == "iee":
        cycle = h + j + q
        exploring = (step < int(end * steps) // cycle * cycle) & (step % cycle >= h + j)
        forward = np.where(exploring, ones, active)
        if accounting == "strict":
            backward = forward
            weights = np.where(exploring, 1 - active, active)
    return float((forward + backward + weights).mean() / 3)


@dataclass(frozen=True)
class CostReference:
    """The unit of the cost of a training: dense trainings of ``epochs`` epochs; pretraining is charged.

    The table of the IEE paper states everything in 90 dense epochs. With p the forward's share and E its epochs, a
    method on a pretrained network costs ``1 + p·E/90`` there, one from scratch (or whose search is not charged)
    ``p·E/90``; pruning with fine-tuning is charged the training that it begins with.

    Attributes:
        epochs: of the dense training.
        pretraining: dense epochs before the training.
    """

    epochs: float
    pretraining: float = 0.0

    def __post_init__(self) -> None:
        if not self.epochs > 0 or not self.pretraining >= 0:
            raise UsageError(
                f"a cost in {self.epochs} dense epochs with {self.pretraining} before was asked; "
                "give epochs above 0, and 0 or more before"
            )

    @classmethod
    def parse(cls, text: str, pretraining: float = 0.0) -> CostReference:
        """Returns the reference of a text ``epochs=90``; a UsageError refuses others."""
        key, equals, value = text.partition("=")
        try:
            epochs = float(value)
        except ValueError:
            epochs = math.nan
        if key.strip() != "epochs" or not equals or not math.isfinite(epochs):
            raise UsageError(
                f"--cost-reference {text[:40]} was asked; write epochs=90, the dense epochs of a table"
            )
        return cls(epochs, pretraining)

    def cost(self, ratio: float, epochs: float) -> float:
        """Returns the cost of a training in dense trainings of the reference.

        Args:
            ratio: its FLOPs over those of as many dense steps, as ``train_flops`` returns them.
            epochs: that it takes.
        """
        return (ratio * epochs + self.pretraining) / self.epochs


def forward_share(macs: Mapping[str, int], density: Constant) -> float:
    """Returns Σ d_l · MACs_l / Σ MACs_l: the forward's cost over the dense one's.

    Args:
        macs: layer → multiply-accumulates of its dense forward.
        density: one share for all layers, or layer → share; a layer left out is dense.

    Raises:
        UsageError: an unknown layer, or a density outside [0, 1].
    """
    total = sum(macs.values())
    if total <= 0:
        raise UsageError("the share of a network without MACs was asked; give the MACs of at least one layer")
    if not isinstance(density, Mapping):
        return _valid(density, "the network")
    strange = [name for name in density if name not in macs]
    if strange:
        hint = unknown(strange[0], macs, "use the names of the MACs")
        raise UsageError(f"a density was given for the layer {strange[0]!r}, which has no MACs; {hint}")
    return sum(n * _valid(density.get(name, 1.0), name) for name, n in macs.items()) / total


@dataclass
class FlopsMeter:
    """Adds up the cost of a training, phase by phase, by both accountings.

    Attributes:
        paper_macs: MACs so far, as the papers charge them.
        strict_macs: MACs so far, as they are done.
    """

    paper_macs: float = 0.0
    strict_macs: float = 0.0

    def add(
        self,
        steps: int,
        forward_macs: float,
        backward_act_macs: float,
        backward_weight_macs: float,
        *,
        paper_macs: float | None = None,
    ) -> None:
        """Adds steps of one kind.

        Args:
            steps: how many.
            forward_macs: MACs of one step's forward pass.
            backward_act_macs: of its activation gradients.
            backward_weight_macs: of its weight gradients.
            paper_macs: what a paper charges for one such step, where that is another sum.
        """
        strict = forward_macs + backward_act_macs + backward_weight_macs
        if steps < 0 or min(forward_macs, backward_act_macs, backward_weight_macs) < 0:
            raise UsageError(
                f"{steps} steps of {strict} MACs were added; neither steps nor MACs can be negative"
            )
        self.strict_macs += steps * strict
        self.paper_macs += steps * (strict if paper_macs is None else paper_macs)

    def train(self, steps: int, active_macs: float) -> None:
        """Adds steps in which the active part runs and is trained: 3 · active."""
        self.add(steps, active_macs, active_macs, active_macs)

    def explore(self, steps: int, active_macs: float, dense_macs: float) -> None:
        """Adds IEE's explore steps: 3 · dense − active, on paper dense + 2 · active."""
        self.add(
            steps, dense_macs, dense_macs, dense_macs - active_macs, paper_macs=dense_macs + 2 * active_macs
        )

    def ratio(self, dense_macs: float, dense_steps: int) -> dict[str, float]:
        """Returns ``{"paper": …, "strict": …}``: multiples of a dense training of ``dense_steps`` steps."""
        if dense_macs <= 0 or dense_steps < 1:
            raise UsageError(
                f"a ratio to {dense_steps} dense steps of {dense_macs} MACs was asked; both must be positive"
            )
        whole = 3.0 * dense_macs * dense_steps
        return {"paper": self.paper_macs / whole, "strict": self.strict_macs / whole}


def _shares(macs: Mapping[str, int], density: Density, steps: int) -> NDArray[np.float64]:
    """Returns the forward's share at every step, float64 ``[steps]``."""
    if callable(density):
        return np.array([forward_share(macs, density(t)) for t in range(steps)])
    if isinstance(density, Sequence):
        if len(density) != steps:
            raise UsageError(
                f"{len(density)} densities were given for {steps} steps; "
                "give one a step, or a function of the step"
            )
        return np.array([forward_share(macs, d) for d in density])
    return np.full(steps, forward_share(macs, density))


def _valid(density: float, name: str) -> float:
    if not 0 <= density <= 1:
        raise UsageError(
            f"the density {density} was given for {name}; "
            "densities lie between 0 and 1 (density = 1 − sparsity)"
        )
    return float(density)
