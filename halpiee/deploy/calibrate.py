"""From sums of tables to a network's own latency: the fit before training, and the closed loop after it.

A sum of layers is not a network: ``e2e = a + b·Σ`` is fitted on a few random shrunk networks, measured beside the
dense one and forced through it. When the selection is final it is shrunk and measured again, and where it misses
the budget the line is drawn through that measurement and the selection is solved once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from latency.backends.onnxruntime import to_onnx
from latency.benchmark import compare
from latency.predict import Calibration, fit
from torch import nn

from halpiee.selection.cost import LatencyCost
from halpiee.structure.groups import Structure
from halpiee.structure.shrink import shrink

__all__ = ["Round", "calibrate", "close_loop", "first_units", "random_counts"]


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
    threads: int = 1,
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
        threads: of the runtime.
        rounds: interleaved rounds.
        seed: of the networks' widths.
        progress: told what is being done.
    """
    structure = cost.structure
    drawn = random_counts(cost, networks, seed)
    progress(f"exporting the dense network and {networks} random shrunk ones")
    graphs = {"dense": to_onnx(model, example_inputs)}
    for i, counts in enumerate(drawn):
        graphs[f"net{i}"] = to_onnx(shrink(model, structure, first_units(structure, counts)), example_inputs)
    progress("measuring them side by side")
    found = compare(graphs, example_inputs=example_inputs, rounds=rounds, threads=threads)
    dense_us = found["dense"].median_us
    points = [(cost.sum_us(counts), found[f"net{i}"].median_us) for i, counts in enumerate(drawn)]
    return fit(points, anchor=(cost.sum_us({}), dense_us))


def close_loop(
    model: nn.Module,
    cost: LatencyCost,
    example_inputs: tuple[Any, ...],
    *,
    budget_us: float,
    counts: Callable[[], dict[str, int]],
    next_step_us: Callable[[], float],
    solve_again: Callable[[LatencyCost], None],
    threads: int = 1,
    rounds: int = 20,
    turns: int = 5,
) -> tuple[LatencyCost, list[Round]]:
    """Measures the selection and solves again under a corrected line until it meets the budget.

    Args:
        model: dense-shaped, with its current weights.
        cost: calibrated.
        example_inputs: at the profile's batch size.
        budget_us: Ψ on the scale of ``cost.dense_us``.
        counts: the selection as it stands.
        next_step_us: the extra cost of its cheapest next step.
        solve_again: replaces the selection under another cost.
        threads: of the runtime.
        rounds: interleaved rounds of each measurement.
        turns: how often to try at most.

    Returns:
        The last cost, and what was measured in every turn. The selection of the last turn is the one to use.
    """
    structure = cost.structure
    dense = to_onnx(model, example_inputs)
    turn: list[Round] = []
    seen: dict[tuple[tuple[str, int], ...], float] = {}
    while True:
        now = counts()
        compact = to_onnx(shrink(model, structure, first_units(structure, now)), example_inputs)
        found = compare(
            {"dense": dense, "pruned": compact}, example_inputs=example_inputs, rounds=rounds, threads=threads
        )
        measured = found["pruned"].median_us / found["dense"].median_us * cost.dense_us
        predicted = cost.total_us(now)
        step = next_step_us()
        lower = budget_us - (step if step == step else budget_us)
        turn.append(Round(len(turn) + 1, predicted, measured, lower, 1.02 * budget_us, measured / predicted))
        key = tuple(sorted(now.items()))
        again = key in seen
        seen[key] = measured
        if lower <= measured <= 1.02 * budget_us or len(turn) >= turns or again:
            return cost, turn
        line = fit([(cost.sum_us(now), measured)], anchor=(cost.sum_us({}), cost.dense_us))
        cost = cost.with_calibration(line)
        solve_again(cost)
