"""From sums of tables to a network's own latency: the fit before training, and the closed loop after it.

A sum of layers is not a network: ``e2e = a + b·Σ`` is fitted on a few random shrunk networks, measured beside the
dense one, and ends in it (`latency.fit`). When the selection is final it is shrunk and measured again, and where it
misses the budget the line is drawn through that measurement and the selection is solved once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from halpiee.deploy.target import Target
from halpiee.selection.cost import LatencyCost
from halpiee.structure.groups import Structure
from halpiee.structure.shrink import shrink
from latency.predict import Calibration, fit

__all__ = ["Candidate", "Round", "calibrate", "close_loop", "first_units", "random_counts"]


@dataclass(frozen=True)
class Round:
    """One turn of the closed loop, in µs on the scale of the calibration's dense latency.

    Attributes:
        round: from 1.
        predicted_us: the selection's latency before it was measured.
        measured_us: its latency beside the dense network's.
        lower_us: the budget minus one step of the selection.
        upper_us: 1.02 times the budget.
        factor: measured over predicted.
    """

    round: int
    predicted_us: float
    measured_us: float
    lower_us: float
    upper_us: float
    factor: float


def first_units(structure: Structure, counts: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Returns a keep of the first units of every group: latency does not depend on which."""
    return {
        name: torch.arange(structure.by_name[name].size) < count
        for name, count in counts.items()
        if structure.by_name[name].prunable
    }


def random_counts(cost: LatencyCost, n: int, seed: int) -> list[dict[str, int]]:
    """Returns ``n`` networks of random candidate widths, spread from narrow to wide."""
    generator = np.random.default_rng(seed)
    networks = []
    for share in np.linspace(0.3, 0.9, n):
        counts = {}
        for name, candidates in cost.candidates.items():
            allowed = np.array([k for k in candidates if k > 0])
            wanted = allowed[-1] * np.clip(share + generator.uniform(-0.3, 0.3), 0, 1)
            counts[name] = int(allowed[np.abs(allowed - wanted).argmin()])
        networks.append(counts)
    return networks


def calibrate(
    model: nn.Module,
    cost: LatencyCost,
    example_inputs: tuple[Any, ...],
    *,
    networks: int = 4,
    target: Target | None = None,
    rounds: int = 20,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Returns the fit of summed tables to whole networks on this machine.

    Args:
        model: the dense network; its weights do not matter.
        cost: uncalibrated.
        example_inputs: at the profile's batch size.
        networks: random shrunk networks to measure beside the dense one.
        target: what they are timed on, as the profile was; by default ONNX Runtime with one thread.
        rounds: interleaved rounds.
        seed: of the networks' widths.
        progress: told what is being done.
    """
    structure, target = cost.structure, target or Target()
    drawn = random_counts(cost, networks, seed)
    progress(f"making the dense network and {networks} random shrunk ones ready")
    ready = {"dense": target.ready(model, example_inputs)}
    for i, counts in enumerate(drawn):
        ready[f"net{i}"] = target.ready(
            shrink(model, structure, first_units(structure, counts)), example_inputs
        )
    progress("measuring them side by side")
    found = target.compare(ready, example_inputs, rounds=rounds)
    dense_us = found["dense"].median_us
    points = [(cost.sum_us(counts), found[f"net{i}"].median_us) for i, counts in enumerate(drawn)]
    return fit(points, anchor=(cost.sum_us({}), dense_us))


class Candidate(Protocol):
    """A selection that can be measured, replaced by another solve, and taken back."""

    @property
    def counts(self) -> dict[str, int]:
        """Units per group."""
        ...

    @property
    def keep(self) -> Mapping[str, torch.Tensor]:
        """Which units stay."""
        ...

    @property
    def next_step_us(self) -> float:
        """Smallest extra cost of any next allowed size; NaN when everything is active."""
        ...

    def solve_again(self, cost: LatencyCost) -> None:
        """Replaces the selection under a corrected cost."""
        ...

    def go_back(self, turn: int) -> None:
        """Takes the selection of an earlier turn (from 0) again."""
        ...


def close_loop(
    model: nn.Module,
    cost: LatencyCost,
    example_inputs: tuple[Any, ...],
    candidate: Candidate,
    *,
    budget_us: float,
    target: Target | None = None,
    rounds: int = 20,
    turns: int = 5,
) -> tuple[LatencyCost, list[Round]]:
    """Measures the selection and solves again under a corrected line until it meets the budget.

    The corrected line is fitted to all candidates measured so far and ends in the dense network: one noisy measurement
    does not tip it. If no turn meets the budget, the candidate closest below its upper limit is taken.

    Args:
        model: dense-shaped, with its current weights.
        cost: calibrated.
        example_inputs: at the profile's batch size.
        candidate: the selection.
        budget_us: Ψ on the scale of ``cost.dense_us``.
        target: as for ``calibrate``.
        rounds: interleaved rounds of each measurement.
        turns: how often to measure at most.

    Returns:
        The cost that the accepted candidate was solved under, and every turn.
    """
    structure, target = cost.structure, target or Target()
    dense = target.ready(model, example_inputs)
    seen: list[Round] = []
    costs: list[LatencyCost] = []
    points: list[tuple[float, float]] = []
    while True:
        counts = candidate.counts
        compact = target.ready(shrink(model, structure, candidate.keep), example_inputs)
        found = target.compare({"dense": dense, "pruned": compact}, example_inputs, rounds=rounds)
        measured = cost.dense_us / found.ratio("dense", "pruned").median
        predicted, step = cost.total_us(counts), candidate.next_step_us
        lower, upper = budget_us - (budget_us if math.isnan(step) else step), 1.02 * budget_us
        seen.append(Round(len(seen) + 1, predicted, measured, lower, upper, measured / predicted))
        costs.append(cost)
        points.append((cost.sum_us(counts), measured))
        if lower <= measured <= upper:
            return cost, seen
        if len(seen) >= turns:
            break
        line = fit(points, anchor=(cost.sum_us({}), cost.dense_us))
        cost = cost.with_calibration(line)
        candidate.solve_again(cost)
    best = max(range(len(seen)), key=lambda i: _merit(seen[i]))
    candidate.go_back(best)
    return costs[best], seen


def _merit(turn: Round) -> tuple[bool, float]:
    """Ranks candidates: within the limit before over it, then the closest to it."""
    within = turn.measured_us <= turn.upper_us
    return within, turn.measured_us if within else -turn.measured_us
