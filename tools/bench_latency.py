"""Predicted against measured latency on random shrunk networks: ``make bench-latency``.

    python -m tools.bench_latency --backend torch --device cuda --precision fp16 --channels-last --model resnet50 \\
        --batch 256 --profile resnet50-fp16-b256.jsonl

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import latency
from halpiee.deploy.calibrate import first_units, random_counts
from halpiee.deploy.target import Target
from halpiee.selection.cost import LatencyCost
from halpiee.selection.options import fixed_sides
from halpiee.structure.shrink import shrink
from halpiee.structure.trace import trace
from halpiee.zoo import build
from latency.errors import ProfileError, UsageError
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
    """Prints one line per network."""
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
    options = parser.parse_args(arguments)
    try:
        target = Slopes(options.backend, options.device, options.precision, options.channels_last)
    except UsageError as error:
        parser.error(str(error))
    chosen: tuple[tuple[str, int, int], ...] = NETWORKS
    if options.model:
        chosen = tuple((name, options.size or 224, options.batch or 1) for name in options.model)
    print(
        f"{'network':26} {'cells':>6} {'sweep s':>8} {'Σ/dense':>8} {'held-out p95':>12} "
        f"{'median':>7} {'p95':>7} {'worst':>7}   of {options.networks} networks"
    )
    for name, size, batch in chosen:
        extra = {} if options.width is None else {"width": options.width}
        print(
            row(name, size, batch, extra, options.networks, options.rounds, options.profile, target),
            flush=True,
        )


def row(
    name: str,
    size: int,
    batch: int,
    extra: dict[str, float],
    n: int,
    rounds: int,
    path: Path | None,
    target: Slopes,
) -> str:
    """Measures one network and returns its line."""
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
        models[str(i)] = target.call(shrink(model, structure, first_units(structure, counts)), example)
    found = target.measured_us(models, example, rounds)
    dense = found["dense"]
    points = [(cost.sum_us(counts), found[str(i)]) for i, counts in enumerate(drawn)]
    line = latency.fit(points[:FITTED], anchor=(cost.sum_us({}), dense))
    errors = np.abs([line.apply(total) / measured - 1 for total, measured in points[FITTED:]])
    try:
        held = inspect(profile).holdout_p95
    except ProfileError as error:  # what was measured is worth its line without this figure
        print(f"no held-out error: {error}", file=sys.stderr)
        held = float("nan")
    wide = f" ×{extra['width']:g}" if extra else ""
    kind = (
        ""
        if target.backend == "onnxruntime"
        else f" {target.precision}{' nhwc' if target.channels_last else ''}"
    )
    label = f"{name}{wide} {size}px b{batch}{kind}"
    judged = "all measured" if np.isnan(held) else f"{held:.1%}"  # grids so small that no cell is held out
    return (
        f"{label:26} {len(profile.cells):6d} {seconds:8.0f} {cost.sum_us({}) / dense:8.3f} {judged:>12} "
        f"{np.median(errors):7.1%} {np.quantile(errors, 0.95):7.1%} {errors.max():7.1%}"
    )


if __name__ == "__main__":
    main()
