"""Predicted against measured latency on random shrunk networks: ``make bench-latency``.

Each network is profiled (or a profile is given), the sum of its tables is fitted on five random shrunk networks and the
dense one, and other random networks are measured interleaved with the dense one; both are drawn from the cost's
candidate widths. An error is predicted over measured, both as shares of the dense latency, minus one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import latency
from halpiee.deploy.calibrate import first_units, random_counts
from halpiee.selection.cost import LatencyCost
from halpiee.selection.fixed import fixed_sides
from halpiee.structure.shrink import shrink
from halpiee.structure.trace import trace
from halpiee.zoo import build
from latency.backends.onnxruntime import to_onnx
from latency.inspect import inspect

NETWORKS = (
    ("resnet20", 32, 8),
    ("vgg16_bn", 32, 8),
    ("mobilenet_v1", 224, 1),
    ("mobilenet_v2", 224, 1),
    ("resnet50", 224, 1),
)
"""(MODEL, image size, batch) of the full table."""

FITTED = 5


def main() -> None:
    """Prints one line per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="one of these only; may be given several times")
    parser.add_argument("--size", type=int, help="image size, with --model")
    parser.add_argument("--batch", type=int, help="images per inference, with --model")
    parser.add_argument("--width", type=float, help="width multiplier, with --model")
    parser.add_argument("--networks", type=int, default=20, help="networks to predict (default 20)")
    parser.add_argument("--rounds", type=int, default=40, help="interleaved rounds (default 40)")
    parser.add_argument("--profile", type=Path, help="a profile measured before")
    options = parser.parse_args()
    chosen: tuple[tuple[str, int, int], ...] = NETWORKS
    if options.model:
        chosen = tuple((name, options.size or 224, options.batch or 1) for name in options.model)
    print(
        f"{'network':26} {'cells':>6} {'sweep s':>8} {'Σ/dense':>8} {'held-out p95':>12} "
        f"{'median':>7} {'p95':>7} {'worst':>7}   of {options.networks} networks"
    )
    for name, size, batch in chosen:
        extra = {} if options.width is None else {"width": options.width}
        print(row(name, size, batch, extra, options.networks, options.rounds, options.profile), flush=True)


def row(
    name: str, size: int, batch: int, extra: dict[str, float], n: int, rounds: int, path: Path | None
) -> str:
    """Measures one network and returns its line."""
    torch.manual_seed(0)
    model = build(name, **extra).eval()
    example = (torch.randn(batch, 3, size, size),)
    structure = trace(model, example)
    begun = time.perf_counter()
    profile = (
        latency.Profile.load(path)
        if path
        else latency.sweep([timed.op for timed in structure.ops], fixed=fixed_sides(structure))
    )
    seconds = time.perf_counter() - begun
    cost = LatencyCost(structure, profile)
    drawn = [*random_counts(cost, FITTED, seed=1), *random_counts(cost, n, seed=2)]
    graphs = {"dense": to_onnx(model, example)}
    for i, counts in enumerate(drawn):
        graphs[str(i)] = to_onnx(shrink(model, structure, first_units(structure, counts)), example)
    found = latency.compare(graphs, example_inputs=example, rounds=rounds, seconds=600)
    dense = found["dense"].median_us
    points = [(cost.sum_us(counts), found[str(i)].median_us) for i, counts in enumerate(drawn)]
    line = latency.fit(points[:FITTED], anchor=(cost.sum_us({}), dense))
    errors = np.abs([line.apply(total) / measured - 1 for total, measured in points[FITTED:]])
    held = inspect(profile).holdout_p95
    wide = f" ×{extra['width']:g}" if extra else ""
    label = f"{name}{wide} {size}px b{batch}"
    return (
        f"{label:26} {len(profile.cells):6d} {seconds:8.0f} {cost.sum_us({}) / dense:8.3f} {held:12.1%} "
        f"{np.median(errors):7.1%} {np.quantile(errors, 0.95):7.1%} {errors.max():7.1%}"
    )


if __name__ == "__main__":
    main()
