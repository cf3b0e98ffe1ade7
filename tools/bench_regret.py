"""What does a cheap profile cost? Value lost by solving on few cells instead of on the whole grid.

Both are measured here: the ordinary sweep, and every crossing of the edges. The network chosen on the cheap profile is
priced on the whole one; the *regret* is the share of value that the best network of that true latency would have
kept more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import latency
from halpiee.selection.choose import select
from halpiee.selection.cost import LatencyCost
from halpiee.selection.fixed import fixed_sides
from halpiee.structure.trace import trace
from halpiee.zoo import build

BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SEEDS = 5


def main() -> None:
    """Prints one line per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--size", type=int, default=32, help="image size")
    parser.add_argument("--batch", type=int, default=8, help="images per inference")
    parser.add_argument("--every", type=int, default=8, help="step of the whole grid")
    parser.add_argument(
        "--folder", type=Path, help="keep both profiles here; finished cells are not measured again"
    )
    parser.add_argument("--cheap", type=Path, help="the cheap profile, measured before")
    given = parser.parse_args()

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
    whole = latency.sweep(ops, fixed=fixed, path=paths["whole"], every=given.every, progress=True)
    found = regrets(LatencyCost(structure, cheap), LatencyCost(structure, whole))
    counts = [sum(c.get("role", "sweep") == "sweep" for c in profile.cells) for profile in (cheap, whole)]
    print(
        f"{name}: {counts[0]} cells for {counts[1]}; regret over {len(found)} plans: median {np.median(found):.2%}, "
        f"worst {max(found):.2%}"
    )


def regrets(cheap: LatencyCost, whole: LatencyCost) -> list[float]:
    """Returns the regret of every budget and score."""
    found = []
    for seed in range(SEEDS):
        rng = torch.Generator().manual_seed(seed)
        scores = {
            g.name: torch.randn(g.size, generator=rng).exp() * float(torch.randn(1, generator=rng).exp())
            for g in whole.structure.prunable
        }
        for share in BUDGETS:
            chosen = select(scores, cheap, share * cheap.dense_us, gap=1e-4)
            best = select(scores, whole, whole.total_us(chosen.counts), gap=1e-4)
            found.append(1 - chosen.value / best.upper_bound)
    return found


if __name__ == "__main__":
    main()
