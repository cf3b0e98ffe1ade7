"""The CPU seconds of one change of the masks, for every kind of method that changes them in training.

All of a method's work happens inside ``optimizer.step()``: reading scores, choosing, switching masks, and for latencies
the solver. Its CPU time less that of the bare optimizer is therefore the price of a change; forward and backward stay
out of the measurement, so a small batch does. One thread. On a GPU it is wall time, waited for at both ends.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from halpiee.methods.channels import HALP
from halpiee.methods.dynamic import SET, SNFS, RigL
from halpiee.methods.gradual import GMP, FilterPruning, GraNet
from halpiee.methods.iee import IEE
from halpiee.methods.method import Method
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity import ERK, Global, Latency
from halpiee.structure.groups import Structure
from halpiee.structure.trace import trace
from latency import Profile

__all__ = ["Update", "now", "updates"]


@dataclass(frozen=True)
class Update:
    """The changes of one kind that a method made.

    Attributes:
        method: its name.
        events: what happened between two steps, such as ``prune`` or ``drop, grow``.
        seconds: CPU time of each (wall time on a GPU), the bare optimizer's taken off.
    """

    method: str
    events: str
    seconds: tuple[float, ...]


Maker = Callable[[nn.Module, Optimizer], Method]


def makers(structure: Structure, cost: LatencyCost, n: int) -> dict[str, Maker]:
    """Returns each method, set so that about ``n`` changes of every kind come in as few steps as possible."""
    exchange: dict[str, Any] = {"budget": ERK(0.1), "total_steps": math.ceil((n + 1) / 0.75), "interval": 1}
    gradual: dict[str, Any] = {"budget": Global(0.1), "total_steps": math.ceil(n / 0.6875), "interval": 1}
    cycles: dict[str, Any] = {"total_steps": math.ceil((2 * n + 2) / 0.75), "h": 1, "j": 0, "q": 1}
    half: dict[str, Any] = {"structure": structure, "cost": cost, "budget": Latency(fraction=0.5)}
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
        "IEE, channels, latency": lambda m, o: IEE(m, o, **half, **cycles),
        "HALP, channels, latency": lambda m, o: HALP(m, o, **half, total_steps=n, prunes=n, interval=1),
        "filters": lambda m, o: FilterPruning(m, o, **filters),
        "filters, regrown": lambda m, o: FilterPruning(m, o, regrow=0.1, **filters),
    }


def updates(
    model: nn.Module, sgd: Callable[[nn.Module], Optimizer], image: Tensor, profile: Path, n: int = 40
) -> Iterator[Update]:
    """Yields what the changes of every kind of method cost on a network.

    Args:
        model: the dense network.
        sgd: builds the optimizer.
        image: one input, with the batch axis, on the network's device.
        profile: latency profile of the network.
        n: changes of each kind, about.
    """
    structure = trace(model, (image,))
    cost = LatencyCost(structure, Profile.load(profile))
    x = torch.randn(8, *image.shape[1:]).to(image.device)
    batch = (x, torch.randint(0, 10, (8,)).to(image.device))
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
                found.setdefault(events, []).append(seconds - plain)
            if method.finished:
                break
        for events, times in found.items():
            if len(times) > n // 2:
                yield Update(name, events, tuple(times))


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
