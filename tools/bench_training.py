"""What masks cost a training step, and what shrinking saves: ratios of interleaved pairs, printed as a table.

Run as ``make bench`` or ``python -m tools.bench_training --pairs 100``. CPU time of one thread; the interval of a
median is the distribution-free one of order statistics.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from halpiee.methods.dynamic import RigL
from halpiee.methods.iee import IEE
from halpiee.saliency import Taylor
from halpiee.sparsity import ERK, Channels, Uniform
from halpiee.structure.size import macs
from halpiee.structure.trace import trace
from halpiee.zoo import build


def stepper(
    model: nn.Module, optimizer: Optimizer, batch: tuple[torch.Tensor, torch.Tensor]
) -> Callable[[], None]:
    """Returns one training step on a fixed batch."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def cpu_seconds(step: Callable[[], None]) -> float:
    """Returns the CPU time of one call."""
    begun = time.process_time()
    step()
    return time.process_time() - begun


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the median and its 95 % interval by order statistics (binomial, normal approximation)."""
    ordered, n = sorted(values), len(values)
    half = 1.96 * math.sqrt(n) / 2
    lo, hi = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return ordered[n // 2], ordered[lo], ordered[hi]


def pairs(first: Callable[[], None], second: Callable[[], None], n: int) -> list[float]:
    """Returns ``n`` ratios second / first, each from two neighbouring steps in alternating order."""
    for warm in (first, second, first, second):
        warm()
    ratios = []
    for i in range(n):
        if i % 2:
            b, a = cpu_seconds(second), cpu_seconds(first)
        else:
            a, b = cpu_seconds(first), cpu_seconds(second)
        ratios.append(b / a)
    return ratios


def sgd(model: nn.Module) -> Optimizer:
    """Returns the demo's kind of optimizer."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dense = build(options.model, num_classes=10, width=options.width)
    x = torch.randn(options.batch_size, 3, options.size, options.size)
    batch = (x, torch.randint(0, 10, (options.batch_size,)))
    structure = trace(dense, (x[:1],))
    masked = copy.deepcopy(dense)
    n = options.pairs + 2  # two warm-up steps before every series

    print(
        f"{options.model} ×{options.width:g}, {options.size}×{options.size}, batch {options.batch_size}, "
        f"one thread, CPU time, {options.pairs} interleaved pairs; SGD with momentum"
    )
    optimizer = sgd(masked)
    iee = IEE(
        masked,
        optimizer,
        budget=Uniform(0.5),
        units=Channels(masked, structure),
        criterion=Taylor(),
        total_steps=3 * n + 3,
        h=n,
        j=0,
        q=n,
        end=1.0,
    )
    dense_step, masked_step = stepper(dense, sgd(dense), batch), stepper(masked, optimizer, batch)
    # The networks' own arithmetic must be alike: zeros cost what other numbers cost, but not denormals.
    torch.set_flush_denormal(True)
    for label, bound in (
        ("masked, scoring (h)", 1.05),
        ("exploring (q)", 1.10),
        ("masked, updates over", 1.05),
    ):
        median, lo, hi = median_interval(pairs(dense_step, masked_step, options.pairs))
        print(f"  {label:24} / dense step   {median:.3f}  [{lo:.3f}, {hi:.3f}]   at most {bound:.2f} asked")
    updated = copy.deepcopy(dense)
    optimizer = sgd(updated)
    RigL(updated, optimizer, budget=ERK(0.1), total_steps=100 * n, interval=1)
    median, lo, hi = median_interval(pairs(dense_step, stepper(updated, optimizer, batch), options.pairs))
    print(
        f"  {'a mask update (RigL, 90 %)':24} / dense step   {median - 1:.3f}  [{lo - 1:.3f}, {hi - 1:.3f}]   "
        "at most 2 asked; masking of a step included"
    )
    compact, compact_optimizer = iee.shrink()
    share = sum(macs(structure, iee.alive.counts).values()) / sum(macs(structure).values())
    median, lo, hi = median_interval(
        pairs(dense_step, stepper(compact, compact_optimizer, batch), options.pairs)
    )
    print(f"  {'compact':24} / dense step   {median:.3f}  [{lo:.3f}, {hi:.3f}]   MACs {share:.3f} of dense")


if __name__ == "__main__":
    main()
