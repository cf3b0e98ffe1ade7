"""Predicted against measured latency on random shrunk networks (``make bench-latency``), and what profiles are worth.

    python -m tools.bench_latency --backend torch --device cuda --precision fp16 --channels-last --model resnet50 \\
        --batch 256 --profile resnet50-fp16-b256.jsonl
    python -m tools.bench_latency --regret runs/bench-latency        # a sweep of few cells against one of all
    python -m tools.bench_latency --pair A.jsonl B.jsonl             # how far two sweeps are apart

Each network is profiled (or a profile is given), the sum of its tables is fitted on five random shrunk networks and the
dense one, and other random networks are measured interleaved with the dense one; both are drawn from the cost's
candidate widths. An error is predicted over measured, both as shares of the dense latency, minus one. With torch
a network is a call of four forwards beside one of a single forward, on a GPU each one CUDA graph, batch norms folded:
their slope is what the ops' slopes add up to.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import latency
from halpiee.deploy.calibrate import random_counts
from halpiee.deploy.target import Target
from halpiee.selection.choose import select
from halpiee.selection.cost import LatencyCost
from halpiee.selection.options import fixed_sides
from halpiee.structure.shrink import keep_first, shrink
from halpiee.structure.trace import trace
from halpiee.zoo import build
from latency.errors import BudgetError, ProfileError, UsageError
from latency.inspect import inspect
from latency.profiles import cell_key
from tools.results import append, markdown, recorded

NETWORKS = (
    ("resnet20", 32, 8),
    ("vgg16_bn", 32, 8),
    ("mobilenet_v1", 224, 1),
    ("mobilenet_v2", 224, 1),
    ("resnet50", 224, 1),
)
"""(MODEL, image size, batch) of the full table."""

FITTED = 5

FORWARDS = 4
"""In the longer of a network's two graphs."""


class Slopes(Target):
    """A target whose networks are timed without what one call costs beside its forward."""

    def call(self, model: nn.Module, example: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        """Returns what of a network is measured: by the number of forwards, as text."""
        counts = (1,) if self.backend == "onnxruntime" else (1, FORWARDS)
        return {str(n): self.ready(model, example, forwards=n) for n in counts}

    def measured_us(
        self, models: Mapping[str, Any], example: tuple[torch.Tensor, ...], rounds: int
    ) -> dict[str, float]:
        """Returns µs of every network, all measured in turns; ``models`` are what ``call`` returned."""
        ready = {f"{name}×{n}": call for name, calls in models.items() for n, call in calls.items()}
        found = self.compare(ready, example, rounds=rounds, seconds=600)
        if self.backend == "onnxruntime":
            return {name: found[f"{name}×1"].median_us for name in models}
        return {
            name: float(np.median(found.runs_us[f"{name}×{FORWARDS}"] - found.runs_us[f"{name}×1"]))
            / (FORWARDS - 1)
            for name in models
        }


def main(arguments: list[str] | None = None) -> None:
    """Prints a table per network, with one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="one of these only; may be given several times")
    parser.add_argument("--size", type=int, help="image size, with --model")
    parser.add_argument("--batch", type=int, help="images per inference, with --model")
    parser.add_argument("--width", type=float, help="width multiplier, with --model")
    parser.add_argument("--networks", type=int, default=20, help="networks to predict (default 20)")
    parser.add_argument("--rounds", type=int, default=40, help="interleaved rounds (default 40)")
    parser.add_argument("--profile", type=Path, help="a profile measured before; a new file is measured into")
    parser.add_argument("--backend", default="onnxruntime", choices=["onnxruntime", "torch"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="of torch")
    parser.add_argument(
        "--precision", default="fp32", choices=["fp32", "tf32", "fp16", "bf16"], help="of torch"
    )
    parser.add_argument("--channels-last", action="store_true", help="NHWC activations, of torch")
    parser.add_argument("--regret", type=Path, metavar="FOLDER", help="what few cells cost")
    parser.add_argument("--pair", type=Path, nargs=2, help="how far two profiles of one network are apart")
    recorded(parser)
    options = parser.parse_args(arguments)
    if options.pair:
        print(differing(options.pair))
        return
    if options.regret:
        name, size, batch = (options.model or ["resnet20"])[0], options.size or 32, options.batch or 8
        print(regret(name, size, batch, options.regret))
        return
    try:
        target = Slopes(options.backend, options.device, options.precision, options.channels_last)
    except UsageError as error:
        parser.error(str(error))
    chosen: tuple[tuple[str, int, int], ...] = NETWORKS
    if options.model:
        chosen = tuple((name, options.size or 224, options.batch or 1) for name in options.model)
    rows = []
    for name, size, batch in chosen:
        extra = {} if options.width is None else {"width": options.width}
        rows.append(row(name, size, batch, extra, options.networks, options.rounds, options.profile, target))
        print(markdown(rows[-1:]), flush=True)
        if not options.no_record:
            append("latency", rows[-1:])


def row(
    name: str,
    size: int,
    batch: int,
    extra: dict[str, float],
    n: int,
    rounds: int,
    path: Path | None,
    target: Slopes,
) -> dict[str, Any]:
    """Measures one network and returns its row."""
    torch.manual_seed(0)
    model = build(name, **extra).eval()
    example = (torch.randn(batch, 3, size, size),)
    structure = target.of(trace(model, example))
    begun = time.perf_counter()
    if path is not None and path.is_file():
        profile = latency.Profile.load(path)
    else:
        ops, fixed = [timed.op for timed in structure.ops], fixed_sides(structure)
        profile = latency.sweep(
            ops, backend=target.backend, settings=target.settings, fixed=fixed, path=path
        )  # fmt: skip
    seconds = time.perf_counter() - begun
    cost = LatencyCost(structure, profile)
    drawn = [*random_counts(cost, FITTED, seed=1), *random_counts(cost, n, seed=2)]
    models = {"dense": target.call(model, example)}
    for i, counts in enumerate(drawn):
        models[str(i)] = target.call(shrink(model, structure, keep_first(structure, counts)), example)
    found = target.measured_us(models, example, rounds)
    dense = found["dense"]
    points = [(cost.raw(counts), found[str(i)]) for i, counts in enumerate(drawn)]
    line = latency.fit(points[:FITTED], anchor=(cost.raw({}), dense))
    shares = coverage(cost, drawn, points, dense)
    errors = np.abs([line.apply(total) / measured - 1 for total, measured in points[FITTED:]])
    try:
        holdout = inspect(profile).holdout_p95
    except ProfileError as error:  # what was measured is worth its line without this figure
        print(f"no held-out error: {error}", file=sys.stderr)
        holdout = float("nan")
    wide = f" ×{extra['width']:g}" if extra else ""
    own = "" if target.backend == "onnxruntime" else f" {target.precision}" + " nhwc" * target.channels_last
    return {
        "network": f"{name}{wide}, {size}×{size}, batch {batch}{own}",
        "cells": len(profile.cells),
        "sweep s": round(seconds),
        "Σ / dense": round(cost.raw({}) / dense, 3),
        # grids so small that no cell is held out
        "held-out p95 %": "all measured" if np.isnan(holdout) else round(100 * holdout, 1),
        "median %": round(100 * float(np.median(errors)), 1),
        "p95 %": round(100 * float(np.quantile(errors, 0.95)), 1),
        "worst %": round(100 * float(errors.max()), 1),
        "in 90 % interval": f"{100 * np.mean(shares):.0f} %" if shares else "–",
    }


def coverage(
    cost: LatencyCost, drawn: Sequence[Mapping[str, int]], points: list[tuple[float, float]], dense_us: float
) -> list[float]:
    """Returns the share of the other networks within their 90 % interval, for each choice of those that are fitted."""
    found, rng = [], np.random.default_rng(0)
    for _ in range(100):  # one choice tells little of how often intervals hold
        order = rng.permutation(len(points))
        fitted = [points[i] for i in order[:FITTED]]
        one = cost.with_calibration(latency.fit(fitted, anchor=(cost.raw({}), dense_us)))
        within = [(one.interval(drawn[i]), points[i][1]) for i in order[FITTED:]]
        covered = [w.holds(us) for w, us in within if w is not None]
        found += [float(np.mean(covered))] if covered else []
    return found


BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares of what lies between the narrowest network, which on a device with wide steps may take half, and the dense."""

SEEDS = 5


def regret(name: str, size: int, batch: int, folder: Path | None) -> str:
    """Returns what an ordinary profile loses against every crossing of the edges.

    *Regret* is value lost by solving on few cells: the network chosen on an ordinary profile is priced on one of every
    crossing of the edges; lost is the share of value that the best network of that true latency would have kept more.

    Args:
        name: MODEL string.
        size: of the images.
        batch: images per inference.
        folder: keeps the profiles; what was measured is not measured again.
    """
    torch.manual_seed(0)
    model = build(name).eval()
    structure = trace(model, (torch.randn(batch, 3, size, size),))
    ops, fixed = [timed.op for timed in structure.ops], fixed_sides(structure)
    label = f"{name}-{size}-b{batch}"
    paths = {kind: folder / f"{label}-{kind}.jsonl" if folder else None for kind in ("cheap", "whole")}
    cheap = latency.sweep(ops, fixed=fixed, path=paths["cheap"], progress=True)
    every = max(step for c in cheap.cells for step in c.get("steps", (1, 1)))
    whole = latency.sweep(ops, fixed=fixed, path=paths["whole"], every=every, progress=True)
    found = regrets(LatencyCost(structure, cheap), LatencyCost(structure, whole))
    counts = [sum(c.get("role", "sweep") == "sweep" for c in profile.cells) for profile in (cheap, whole)]
    return (
        f"{label}: {counts[0]} cells for {counts[1]}; regret over {len(found)} plans: median {np.median(found):.2%}, "
        f"worst {max(found):.2%}"
    )


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
