"""What does a cheap profile cost, and does it repeat? Regret against the whole grid, and two sweeps side by side.

*Regret*: value lost by solving on few cells. The network chosen on an ordinary profile is priced on one of every
crossing of the edges; lost is the share of value that the best network of that true latency would have kept more.
*Repeatability*: the ordinary sweep in two processes, one after the other; the median difference of their cells.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import latency
from halpiee.selection.cost import LatencyCost
from halpiee.selection.options import fixed_sides
from halpiee.selection.select import select
from halpiee.structure.trace import trace
from halpiee.zoo import build
from latency.errors import BudgetError
from latency.profiles import cell_key

BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of what lies between the narrowest network, which on a device with wide steps may take half, and the dense."""

SEEDS = 5


def main() -> None:
    """Prints one line per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--size", type=int, default=32, help="image size")
    parser.add_argument("--batch", type=int, default=8, help="images per inference")
    parser.add_argument(
        "--every", type=int, help="step of the whole grid; by default the widest that the cheap profile found"
    )
    parser.add_argument(
        "--folder", type=Path, help="keep both profiles here; finished cells are not measured again"
    )
    parser.add_argument("--cheap", type=Path, help="the cheap profile, measured before")
    parser.add_argument(
        "--pair", type=Path, nargs=2, help="two profiles of one network: say how far apart, measure nothing"
    )
    given = parser.parse_args()
    if given.pair:
        print(differing(given.pair))
        return

    torch.manual_seed(0)
    model = build(given.model).eval()
    structure = trace(model, (torch.randn(given.batch, 3, given.size, given.size),))
    ops, fixed = [timed.op for timed in structure.ops], fixed_sides(structure)
    name = f"{given.model}-{given.size}-b{given.batch}"
    paths = {
        kind: given.folder / f"{name}-{kind}.jsonl" if given.folder else None for kind in ("cheap", "whole")
    }
    cheap = (
        latency.Profile.load(given.cheap)
        if given.cheap
        else latency.sweep(ops, fixed=fixed, path=paths["cheap"], progress=True)
    )
    every = given.every or max(step for c in cheap.cells for step in c.get("steps", (1, 1)))
    whole = latency.sweep(ops, fixed=fixed, path=paths["whole"], every=every, progress=True)
    if given.folder:
        print(f"{name}: {repeatability(given.model, given.size, given.batch, given.folder)}")
    found = regrets(LatencyCost(structure, cheap), LatencyCost(structure, whole))
    counts = [sum(c.get("role", "sweep") == "sweep" for c in profile.cells) for profile in (cheap, whole)]
    print(
        f"{name}: {counts[0]} cells for {counts[1]}; regret over {len(found)} plans: median {np.median(found):.2%}, "
        f"worst {max(found):.2%}"
    )


def repeatability(model: str, size: int, batch: int, folder: Path) -> str:
    """Sweeps twice in processes of their own and says how far the cells are apart."""
    paths = [folder / f"{model}-{size}-b{batch}-repeat{i}.jsonl" for i in range(2)]
    for path in paths:
        arguments = [model, "--size", str(size), "--batch", str(batch), "--out", str(path)]
        subprocess.run(
            [sys.executable, "-m", "halpiee", "profile", *arguments], check=True, capture_output=True
        )
    return differing(paths)


def differing(paths: Sequence[Path]) -> str:
    """Says how far the cells of two profiles are apart, where both have them."""
    first, second = (
        {cell_key(c): float(c["us"]) for c in latency.Profile.load(path).cells if c["role"] != "probe"}
        for path in paths
    )
    apart = [abs(first[key] / second[key] - 1) for key in first if key in second]
    return (
        f"{len(apart)} cells of two sweeps differ by {np.median(apart):.2%} median, {np.quantile(apart, 0.9):.1%} at "
        "the 90th percentile"
    )


def narrowest_us(cost: LatencyCost) -> float:
    """Returns the latency of the narrowest network."""
    try:
        select({g.name: torch.ones(g.size) for g in cost.structure.prunable}, cost, 0.0)
    except BudgetError as error:
        return float(error.minimum)
    return 0.0


def regrets(cheap: LatencyCost, whole: LatencyCost) -> list[float]:
    """Returns the regret of every budget and score."""
    found = []
    least_us = max(narrowest_us(cost) for cost in (cheap, whole))
    for seed in range(SEEDS):
        rng = torch.Generator().manual_seed(seed)
        scores = {
            g.name: torch.randn(g.size, generator=rng).exp() * float(torch.randn(1, generator=rng).exp())
            for g in whole.structure.prunable
        }
        for share in BUDGETS:
            budget_us = least_us + share * (cheap.dense_us - least_us)
            chosen = select(scores, cheap, budget_us, gap=1e-4)
            best = select(scores, whole, whole.total_us(chosen.counts), gap=1e-4)
            found.append(1 - chosen.value / best.upper_bound)
    return found


if __name__ == "__main__":
    main()
