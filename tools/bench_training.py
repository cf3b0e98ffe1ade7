"""What masks cost a training step, what a change of the masks costs, and what shrinking saves, printed as tables.

Run as ``make bench`` or ``python -m tools.bench_training --pairs 100``. CPU time of one thread, or with
``--device cuda`` wall time on a GPU. A step is compared with the dense one in interleaved pairs; the interval of a
median is the distribution-free one of order statistics.

A change of the masks happens inside ``optimizer.step()``: reading scores, choosing, switching masks, and for latencies
the solver. Its CPU time less that of the bare optimizer is therefore its price; forward and backward stay out of that
measurement, so a small batch does.

``--trainings`` (``make bench-training``) times ``halpiee train``'s own steps: masked under bf16 autocast with each step
in four parts; a whole training by IEE to 30 % of the latency, solves and cut included, a step of it and a dense one in
turn.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from halpiee.data.tensors import TensorData
from halpiee.methods.channels import HALP
from halpiee.methods.dynamic import SET, SNFS, RigL, Static
from halpiee.methods.gradual import GMP, FilterPruning, GraNet
from halpiee.methods.iee import IEE
from halpiee.methods.method import Method
from halpiee.saliency import Taylor
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity import ERK, Channels, Global, Latency, Uniform
from halpiee.structure.groups import Structure, macs
from halpiee.structure.trace import trace
from halpiee.training.build import make_optimizer
from halpiee.training.config import Settings
from halpiee.training.loop import Trainer
from halpiee.zoo import build
from latency import Profile
from latency.timing.timer import median_interval
from tools.results import append, markdown, recorded

PROFILE = Path("profiles/intel-xeon-avx512-ort-1t/resnet20-32-b1.jsonl")
CUT_PROFILE = Path("profiles/intel-xeon-avx512-ort-1t/wrn22_2-32-b1.jsonl")
"""A network as narrow as ResNet-20 does not reach 30 % of its latency."""


def stepper(
    model: nn.Module, optimizer: Optimizer, batch: tuple[torch.Tensor, torch.Tensor]
) -> Callable[[], None]:
    """Returns one training step on a fixed batch."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Returns the time of one call."""
    begun = now(device)
    step()
    return now(device) - begun


def pairs(
    first: Callable[[], object], second: Callable[[], object], n: int, device: torch.device
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


def asked(arguments: list[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--cut", default="wrn22_2", help="the network of the whole trainings")
    parser.add_argument("--cut-profile", type=Path, default=CUT_PROFILE, help="its latencies")
    parser.add_argument("--trainings", action="store_true", help="only the steps of halpiee train")
    parser.add_argument("--steps", type=int, default=100, help="of the whole trainings (default 100)")
    parser.add_argument(
        "--share", type=float, default=0.3, help="of the latency that they end at (default 0.3)"
    )
    parser.add_argument("--changes", type=int, default=40, help="of each method's masks (default 40)")
    parser.add_argument("--profile", type=Path, default=PROFILE, help="latencies of the network")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    recorded(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Prints the tables, and returns their rows by the tables' names."""
    options = asked(arguments)
    device = torch.device(options.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # The networks' own arithmetic must be alike: zeros cost what other numbers cost, but not denormals.
    torch.set_flush_denormal(True)
    if options.trainings:
        rows = [autocast_row(options, device), training_row(options, device)]
        print(markdown(rows), flush=True)
        if not options.no_record:
            append("training-step", rows)
        return {"training-step": rows}
    return step_tables(options, device)


def step_tables(options: argparse.Namespace, device: torch.device) -> dict[str, list[dict[str, Any]]]:
    """Prints what masked steps cost, and what changes of the masks do, and returns the rows."""
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
    seconds: list[float] = []
    steps_of: list[dict[str, Any]] = []
    for label, step, bound in (
        ("masked, 90 % of the weights", weights_step, 1.05),
        ("masked, half of the channels, scoring", channels_step, 1.05),
        ("all channels, exploring", channels_step, 1.10),
        ("masked, half of the channels, changes over", channels_step, 1.05),
    ):
        ratios, more = pairs(dense_step, step, options.pairs, device)
        seconds += more
        steps_of.append(row(label, ratios, f"≤ {bound:.2f}"))
    compact, compact_optimizer = iee.shrink()
    share = sum(macs(structure, iee.alive.counts).values()) / sum(macs(structure).values())
    ratios, more = pairs(dense_step, stepper(compact, compact_optimizer, batch), options.pairs, device)
    steps_of.append(row(f"cut to these channels, {share:.3f} of the MACs", ratios, "falls with the MACs"))
    print(markdown(steps_of), flush=True)

    unit = statistics.median([*seconds, *more])
    print(f"\n{options.changes} changes of the masks of each kind; a dense step takes {1e3 * unit:.3g} ms\n")
    changes = list(change_rows(options, device, x[:1], unit))
    print(markdown(changes), flush=True)
    if not options.no_record:
        append("training-step", steps_of)
        append("mask-change", changes)
    return {"training-step": steps_of, "mask-change": changes}


def settings_of(options: argparse.Namespace, **more: Any) -> Settings:
    """Returns the settings of a training whose steps are timed."""
    given = {"budget": "0.5", "method": "iee", "lr": 0.01, "batch_size": options.batch_size, **more}
    return Settings(model=options.model, data="random", **given)


def random_data(options: argparse.Namespace) -> TensorData:
    """Returns as many images as a step takes, of ten classes."""
    x = torch.randint(0, 256, (options.batch_size, 3, options.size, options.size), dtype=torch.uint8)
    y = torch.arange(options.batch_size) % 10
    return TensorData("random", x, y, x, y, tuple(map(str, range(10))))


def autocast_row(options: argparse.Namespace, device: torch.device) -> dict[str, str]:
    """Returns what 90 % masked weights cost a step under autocast whose gradients add up over four parts."""
    s = settings_of(options, precision="bf16", accumulate=4)
    data = random_data(options)
    batches = list(data.to(device).batches(0, options.batch_size // s.accumulate))[: s.accumulate]
    steps = []
    for masked in (False, True):
        model = build(options.model, num_classes=10, width=options.width).to(device)
        optimizer = make_optimizer(model, s)
        method = Static(model, optimizer, budget=ERK(0.1)) if masked else None
        trainer = Trainer(model, optimizer, data, s, method=method)
        steps.append(lambda trainer=trainer: trainer.train_step(*batches))
    ratios, _ = pairs(steps[0], steps[1], options.pairs, device)
    return row("masked, 90 % of the weights, bf16 autocast, four parts", ratios, "≤ 1.05")


def training_row(options: argparse.Namespace, device: torch.device) -> dict[str, str]:
    """Returns the time of a training by IEE to a latency, as a share of a dense one; a step of each in turn."""
    n, s = options.steps, settings_of(options)
    model = build(options.cut, num_classes=10).to(device)
    dense = copy.deepcopy(model)
    structure = trace(model, (torch.randn(1, 3, options.size, options.size, device=device),))
    cost = LatencyCost(structure, Profile.load(options.cut_profile))
    optimizer, data = make_optimizer(model, s), random_data(options)
    h, j, q = s.cycle_steps(n)
    asked: dict[str, Any] = {"structure": structure, "cost": cost, "budget": Latency(fraction=options.share)}
    iee = IEE(model, optimizer, total_steps=n, h=h, j=j, q=q, **asked)
    batches = list(data.to(device).batches(0, options.batch_size))
    whole = Trainer(dense, make_optimizer(dense, s), data, s)
    pruned = Trainer(model, optimizer, data, s, method=iee)
    seconds, wall = [0.0, 0.0], [0.0, 0.0]

    def timed(side: int, step: Callable[[], object]) -> None:
        begun = time.perf_counter()
        seconds[side] += seconds_of(step, device)
        wall[side] += time.perf_counter() - begun

    def pruned_step() -> None:
        if iee.finished and pruned.stage == "masked":
            pruned.replace(*iee.shrink())
        pruned.train_step(*batches)

    for _ in range(n):
        timed(0, lambda: whole.train_step(*batches))
        timed(1, pruned_step)
    share = sum(macs(structure, iee.alive.counts).values()) / sum(macs(structure).values())
    label = f"whole training by IEE of {options.cut} to {options.share:.0%} of the latency, {share:.3f} of the MACs"
    ratio = f"{seconds[1] / seconds[0]:.3f} (wall clock {wall[1] / wall[0]:.3f}; {n} steps)"
    return {"step": label, "of a dense step": ratio, "asked": "≤ 0.55"}


def row(label: str, ratios: Sequence[float], asked: str) -> dict[str, str]:
    """Returns one row of the table of steps."""
    median, lo, hi = median_interval(ratios)
    return {"step": label, "of a dense step": f"{median:.3f} [{lo:.3f}, {hi:.3f}]", "asked": asked}


Maker = Callable[[nn.Module, Optimizer], Method]


def makers(structure: Structure, cost: LatencyCost, n: int) -> dict[str, Maker]:
    """Returns each method, set so that about ``n`` changes of every kind come in as few steps as possible."""
    exchange: dict[str, Any] = {"budget": ERK(0.1), "total_steps": math.ceil((n + 1) / 0.75), "interval": 1}
    gradual: dict[str, Any] = {"budget": Global(0.1), "total_steps": math.ceil(n / 0.6875), "interval": 1}
    cycles: dict[str, Any] = {"total_steps": 2 * n + 2, "end": 1.0, "h": 1, "j": 0, "q": 1}
    latency: dict[str, Any] = {"structure": structure, "cost": cost, "budget": Latency(fraction=0.7)}
    filters: dict[str, Any] = {
        "structure": structure,
        "budget": Global(0.5),
        "total_steps": 2 * n + 2,
        "rounds": n,
        "interval": 1,
    }
    return {
        "RigL": lambda m, o: RigL(m, o, **exchange),
        "SET": lambda m, o: SET(m, o, **exchange),
        "SNFS": lambda m, o: SNFS(m, o, end=0.75, **exchange),
        "GMP": lambda m, o: GMP(m, o, **gradual),
        "GraNet": lambda m, o: GraNet(m, o, **gradual),
        "IEE, weights": lambda m, o: IEE(m, o, budget=ERK(0.1), **cycles),
        "IEE, weights, one ranking": lambda m, o: IEE(m, o, budget=Global(0.1), **cycles),
        "IEE, channels, latency": lambda m, o: IEE(m, o, **latency, **cycles),
        "HALP, channels, latency": lambda m, o: HALP(m, o, **latency, total_steps=n, prunes=n, interval=1),
        "filters": lambda m, o: FilterPruning(m, o, **filters),
        "filters, regrown": lambda m, o: FilterPruning(m, o, regrow=0.1, **filters),
    }


def change_rows(
    options: argparse.Namespace, device: torch.device, image: Tensor, unit: float
) -> Iterator[dict[str, Any]]:
    """Yields a row for every kind of change of the masks, as shares of a dense step of ``unit`` seconds."""
    n = options.changes
    model = build(options.model, num_classes=10, width=options.width).to(device)
    structure = trace(model, (image,))
    cost = LatencyCost(structure, Profile.load(options.profile))
    x = torch.randn(8, *image.shape[1:]).to(device)
    batch = (x, torch.randint(0, 10, (8,)).to(device))
    bare = copy.deepcopy(model)
    plain = statistics.median(steps(bare, sgd(bare), batch, n))
    for name, make in makers(structure, cost, n).items():
        network = copy.deepcopy(model)
        optimizer = sgd(network)
        method = make(network, optimizer)
        found: dict[str, list[float]] = {}
        seen = len(method.reports)
        for seconds in steps(network, optimizer, batch, 3 * n):
            events = ", ".join(dict.fromkeys(e.event for e in method.reports[seen:]))
            seen = len(method.reports)
            if events:
                found.setdefault(events, []).append((seconds - plain) / unit)
            if method.finished:
                break
        for events, shares in found.items():
            if len(shares) > n // 2:
                median, lo, hi = median_interval(shares)
                yield {
                    "method": name,
                    "change": events,
                    "of a dense step": f"{median:.3f} [{lo:.3f}, {hi:.3f}]",
                    "worst": max(shares),
                    "ms": 1e3 * median * unit,
                }


def steps(model: nn.Module, optimizer: Optimizer, batch: tuple[Tensor, Tensor], n: int) -> Iterator[float]:
    """Yields the seconds of each ``optimizer.step()``."""
    model.train()
    for _ in range(n):
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
        begun = now(batch[0].device)
        optimizer.step()
        yield now(batch[0].device) - begun


def now(device: torch.device) -> float:
    """Returns seconds of CPU time; on a GPU of wall time, when all that was begun there is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
