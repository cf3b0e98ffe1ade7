"""What masks cost a training step, what a change of the masks costs, and what shrinking saves, printed as two tables.

Run as ``make bench`` or ``python -m tools.bench_training --pairs 100``. CPU time of one thread, or with
``--device cuda`` wall time on a GPU. A step is compared with the dense one in interleaved pairs; the interval of a
median is the distribution-free one of order statistics.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from halpiee.methods.dynamic import Static
from halpiee.methods.iee import IEE
from halpiee.saliency import Taylor
from halpiee.sparsity import ERK, Channels, Uniform
from halpiee.structure.groups import macs
from halpiee.structure.trace import trace
from halpiee.zoo import build
from tools.mask_updates import now, updates

PROFILE = Path("profiles/intel-xeon-avx512-ort-1t/resnet20-32-b1.jsonl")


def stepper(
    model: nn.Module, optimizer: Optimizer, batch: tuple[torch.Tensor, torch.Tensor]
) -> Callable[[], None]:
    """Returns one training step on a fixed batch."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def seconds_of(step: Callable[[], None], device: torch.device) -> float:
    """Returns the time of one call."""
    begun = now(device)
    step()
    return now(device) - begun


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the median and its 95 % interval by order statistics (binomial, normal approximation)."""
    ordered, n = sorted(values), len(values)
    half = 1.96 * math.sqrt(n) / 2
    lo, hi = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return ordered[n // 2], ordered[lo], ordered[hi]


def pairs(
    first: Callable[[], None], second: Callable[[], None], n: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Returns ``n`` ratios second / first of neighbouring steps in alternating order, and the first's seconds."""
    for warm in (first, second, first, second):
        warm()
    ratios, seconds = [], []
    for i in range(n):
        if i % 2:
            b, a = seconds_of(second, device), seconds_of(first, device)
        else:
            a, b = seconds_of(first, device), seconds_of(second, device)
        ratios.append(b / a)
        seconds.append(a)
    return ratios, seconds


def sgd(model: nn.Module) -> Optimizer:
    """Returns the demo's kind of optimizer."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--changes", type=int, default=40, help="of each method's masks (default 40)")
    parser.add_argument("--profile", type=Path, default=PROFILE, help="latencies of the network")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # The networks' own arithmetic must be alike: zeros cost what other numbers cost, but not denormals.
    torch.set_flush_denormal(True)
    dense = build(options.model, num_classes=10, width=options.width).to(device)
    x = torch.randn(options.batch_size, 3, options.size, options.size).to(device)
    batch = (x, torch.randint(0, 10, (options.batch_size,)).to(device))
    structure = trace(dense, (x[:1],))
    weights, channels = copy.deepcopy(dense), copy.deepcopy(dense)
    n = options.pairs + 2  # two warm-up steps before every series

    print(
        f"{options.model} ×{options.width:g}, {options.size}×{options.size}, batch {options.batch_size}, "
        f"{'one thread, CPU time' if device.type == 'cpu' else torch.cuda.get_device_name()}, {options.pairs} "
        "interleaved pairs; SGD with momentum\n"
    )
    optimizer, weights_optimizer = sgd(channels), sgd(weights)
    Static(weights, weights_optimizer, budget=ERK(0.1))
    iee = IEE(
        channels,
        optimizer,
        budget=Uniform(0.5),
        units=Channels(channels, structure),
        criterion=Taylor(),
        total_steps=3 * n + 3,
        h=n,
        j=0,
        q=n,
        end=1.0,
    )
    dense_step = stepper(dense, sgd(dense), batch)
    weights_step, channels_step = (
        stepper(weights, weights_optimizer, batch),
        stepper(channels, optimizer, batch),
    )
    print("| step | of a dense step, median [95 %] | asked |\n|---|---|---|")
    seconds: list[float] = []
    for label, step, bound in (
        ("masked, 90 % of the weights", weights_step, 1.05),
        ("masked, half of the channels, scoring", channels_step, 1.05),
        ("all channels, exploring", channels_step, 1.10),
        ("masked, half of the channels, changes over", channels_step, 1.05),
    ):
        ratios, more = pairs(dense_step, step, options.pairs, device)
        seconds += more
        print(row(label, ratios, f"≤ {bound:.2f}"), flush=True)
    compact, compact_optimizer = iee.shrink()
    share = sum(macs(structure, iee.alive.counts).values()) / sum(macs(structure).values())
    ratios, more = pairs(dense_step, stepper(compact, compact_optimizer, batch), options.pairs, device)
    print(row(f"cut to these channels, {share:.3f} of the MACs", ratios, "falls with the MACs"))

    unit = statistics.median([*seconds, *more])
    print(f"\n{options.changes} changes of the masks of each kind; a dense step takes {1e3 * unit:.3g} ms\n")
    print(
        "| method | change | ms, median | of a dense step [95 %] | worst | asked |\n|---|---|---|---|---|---|"
    )
    model = build(options.model, num_classes=10, width=options.width).to(device)
    for update in updates(model, sgd, x[:1], options.profile, options.changes):
        median, lo, hi = (value / unit for value in median_interval(update.seconds))
        print(
            f"| {update.method} | {update.events} | {1e3 * median * unit:.1f} | {median:.3f} [{lo:.3f}, {hi:.3f}] | "
            f"{max(update.seconds) / unit:.3f} | ≤ 2 |",
            flush=True,
        )


def row(label: str, ratios: Sequence[float], asked: str) -> str:
    """Returns one line of the table of steps."""
    median, lo, hi = median_interval(ratios)
    return f"| {label} | {median:.3f} [{lo:.3f}, {hi:.3f}] | {asked} |"


if __name__ == "__main__":
    main()
