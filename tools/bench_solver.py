"""How long selections take and how far from optimal they can be: the table of ``make bench-solver``.

    python -m tools.bench_solver                  every network, budgets 0.2 … 0.9 of dense
    python -m tools.bench_solver resnet50 --profile profiles/cpu.jsonl
    python -m tools.bench_solver --small 5000     random small problems against enumeration

Costs come from a measured profile where one is given, else from seeded random staircases: steps of
``--quantum`` channels on both sides and ±5 % from cell to cell, so that neither width nor cost is monotone.
Scores are log-normal, with a random scale per group. Times are wall-clock medians over the budgets, one
thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halpiee.errors import BudgetError
from halpiee.selection.choose import choose, select
from halpiee.selection.cost import LatencyCost
from halpiee.selection.linear import linearise
from halpiee.selection.problem import solve_grid
from halpiee.selection.terms import normalise
from halpiee.structure.groups import Structure
from latency.op import Op

NETWORKS = {
    "resnet50": (0.1, 1e-3),
    "resnet101": (0.5, 2e-3),
    "resnet152": (0.5, 2e-3),
    "mobilenet_v1": (0.5, 2e-3),
    "mobilenet_v2": (0.5, 2e-3),
    "efficientnet_b0": (0.5, 2e-3),
    "densenet121": (5.0, 1e-2),
    "inception_v3": (5.0, 1e-2),
    "googlenet": (5.0, 1e-2),
}
"""Seconds and certified gap that each network must stay within."""

BUDGETS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Staircase:
    """A made-up table: blocks of channels cost, each block pair a little more or less than its share."""

    def __init__(self, op: Op, quantum: int, seed: int) -> None:
        key = zlib.crc32(op.table_key().encode())
        jitter = np.random.default_rng([seed, key])
        self.quantum = quantum
        area = op.h * op.w * op.batch * float(np.prod(op.kernel or (1,)))
        blocks = [-(-(max(c, 1)) // quantum) + 1 for c in (16 * op.c_in, 16 * op.c_out)]
        self.noise = 1 + 0.05 * (2 * jitter.random((min(blocks[0], 512), min(blocks[1], 512))) - 1)
        self.paired = op.kind in ("conv", "conv_transpose", "linear") and not op.depthwise
        self.rate_us = area * quantum * (quantum if self.paired else 4) / 2e4
        self.base_us = 1.0 + 0.02 * area / 1e3

    def lookup(self, c_in: NDArray[np.int64], c_out: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns µs; the arguments broadcast."""
        rows, columns = -(-np.asarray(c_in) // self.quantum), -(-np.asarray(c_out) // self.quantum)
        noise = self.noise[rows % self.noise.shape[0], columns % self.noise.shape[1]]
        blocks = rows * columns if self.paired else np.maximum(rows, columns)
        return np.asarray(self.base_us + self.rate_us * blocks * noise)

    def measured(self, c_in: NDArray[np.int64], c_out: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns True everywhere: a made-up table interpolates nothing."""
        return np.ones(np.broadcast_shapes(np.shape(c_in), np.shape(c_out)), dtype=np.bool_)


class Staircases:
    """A made-up profile."""

    def __init__(self, quantum: int, seed: int) -> None:
        self.quantum, self.seed = quantum, seed

    def table(self, op: Op) -> Staircase:
        """Returns the table of an op; the same op always gets the same one."""
        return Staircase(op, self.quantum, self.seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints one line per problem."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", help=f"default: {' '.join(NETWORKS)}")
    parser.add_argument("--profile", help="measured tables to use instead of random staircases")
    parser.add_argument("--quantum", type=int, default=8, help="channels per step of a random staircase (8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gap", type=float, help="gap to prove; default: what each network must reach")
    parser.add_argument(
        "--retained", type=float, nargs="*", default=[], help="budgets at which to compare joint and linear"
    )
    parser.add_argument("--small", type=int, default=0, help="random small problems to check by enumeration")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    args = parser.parse_args(argv)
    for name in args.networks or ([] if args.small else list(NETWORKS)):
        report(bench_network(name, args), as_json=args.json)
    if args.small:
        report(bench_small(args.small, args.seed), as_json=args.json)


def report(row: dict[str, Any], *, as_json: bool) -> None:
    """Prints one result."""
    if as_json:
        print(json.dumps(row), flush=True)
        return
    print(
        "  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True
    )


def bench_network(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Solves one network at all budgets."""
    import torch

    structure = trace(name)
    profile: Any = Staircases(args.quantum, args.seed)
    if args.profile:
        from latency import Profile

        profile = Profile.load(args.profile)
    cost = LatencyCost(structure, profile)
    generator = torch.Generator().manual_seed(args.seed)
    scores = {
        g.name: torch.exp(torch.randn(g.size, generator=generator) + torch.randn((), generator=generator))
        for g in structure.prunable
    }
    limit_s, most = NETWORKS.get(name, (5.0, 1e-2))
    gap = most if args.gap is None else args.gap
    select(scores, cost, 0.95 * cost.dense_us)  # fills the cells, as a first solve of a training does
    seconds, gaps, slacks, paths = [], [], [], []
    for share in BUDGETS:
        begin = time.perf_counter()
        try:
            found = choose(scores, cost, share * cost.dense_us, gap=gap)
        except BudgetError:
            continue
        seconds.append(time.perf_counter() - begin)
        gaps.append(found.gap)
        slacks.append(found.slack_us / found.budget_us)
        paths.append(found.path)
        assert found.latency_us <= found.budget_us * (1 + 1e-9)
    row = {
        "problem": name,
        "groups": len(structure.prunable),
        "options": sum(len(c) for c in cost.candidates.values()),
        "budgets": len(seconds),
        "median_ms": 1e3 * statistics.median(seconds),
        "worst_ms": 1e3 * max(seconds),
        "worst_gap": max(gaps),
        "worst_slack": max(slacks),
        "paths": "/".join(sorted(set(paths))),
        "within": statistics.median(seconds) <= limit_s and max(gaps) <= most,
    }
    if name == "resnet50":
        row |= bench_linear(scores, cost)
    for share in args.retained:
        report(bench_retained(name, scores, cost, share), as_json=args.json)
    return row


def bench_linear(scores: dict[str, Any], cost: LatencyCost) -> dict[str, Any]:
    """Times the linear baseline against a plain Python program of the same knapsack."""
    budget_us = 0.5 * cost.dense_us
    begin = time.perf_counter()
    kept = choose(scores, cost, budget_us, solver="linear")
    linear_s = time.perf_counter() - begin
    options = {name: np.array(k) for name, k in cost.candidates.items()}
    terms, constant_us = cost.grid(options)
    values = [
        np.concatenate([[0.0], np.cumsum(np.sort(scores[name].double().numpy())[::-1])])[k]
        for name, k in options.items()
    ]
    term_list = [*terms, (None, None, np.array([[constant_us]]))]
    from halpiee.selection.terms import Term

    grid = normalise(values, [Term(*t) for t in term_list], list(options.values()))
    own = linearise(grid, np.array([len(v) - 1 for v in values]))
    begin = time.perf_counter()
    best = plain_knapsack(values, [f.table for f in own.factors], budget_us - own.constant)
    plain_s = time.perf_counter() - begin
    joint = choose(scores, cost, max(kept.latency_us, budget_us * 1e-9))
    return {
        "linear_ms": 1e3 * linear_s,
        "plain_s": plain_s,
        "speed_up": plain_s / linear_s,
        "linear_value": kept.value,
        "plain_value": best,
        "linear_true_share": kept.latency_us / budget_us,
        "joint_value_at_same_true_latency": joint.value,
    }


def bench_retained(name: str, scores: dict[str, Any], cost: LatencyCost, share: float) -> dict[str, Any]:
    """Compares the share of all scores kept: linear in 1, 5 and 30 steps, joint at the same true latency."""
    total = sum(float(score.sum()) for score in scores.values())
    row: dict[str, Any] = {"problem": f"{name} at {share:g}"}
    for steps in (1, 5, 30):
        keep = None
        for step in range(1, steps + 1):
            budget_us = cost.dense_us * share ** (step / steps)
            try:
                found = choose(scores, cost, budget_us, may=keep, solver="linear")
            except BudgetError:
                break
            keep = found.keep
        joint = choose(scores, cost, found.latency_us)
        row |= {
            f"linear{steps}": found.value / total,
            f"true_share{steps}": found.latency_us / (share * cost.dense_us),
            f"joint_there{steps}": joint.value / total,
        }
    found = choose(scores, cost, share * cost.dense_us)
    return row | {"joint": found.value / total, "bound": found.upper_bound / total}


def plain_knapsack(
    values: Sequence[NDArray[np.float64]], costs: Sequence[NDArray[np.float64]], capacity: float
) -> float:
    """Returns the optimum of the multiple-choice knapsack in whole µs: the straightforward program."""
    least = [float(c.min()) for c in costs]
    room = int(capacity - sum(least))
    best = [0.0] * (room + 1)
    for value, cost, low in zip(values, costs, least, strict=True):
        options = [(float(v), round(float(c) - low)) for v, c in zip(value, cost, strict=True)]
        new = [-np.inf] * (room + 1)
        for v, c in options:
            for w in range(c, room + 1):
                candidate = best[w - c] + v
                if candidate > new[w]:
                    new[w] = candidate
        best = new
    return max(best)


def bench_small(count: int, seed: int) -> dict[str, Any]:
    """Solves random small problems and checks each one by enumeration."""
    rng = np.random.default_rng(seed)
    wrong, over, below, exact, seconds = 0, 0, 0, 0, 0.0
    for _ in range(count):
        n = [int(rng.integers(2, 6)) for _ in range(int(rng.integers(2, 6)))]
        values = [np.cumsum(rng.random(k)) if rng.random() < 0.5 else rng.random(k) for k in n]
        terms = []
        for g in range(len(n)):
            before = int(rng.integers(g)) if g else None
            table = np.cumsum(rng.random((n[before] if before is not None else 1, n[g])), axis=1)
            terms.append((before, g, table + 0.3 * rng.random(table.shape)))
        costs = {
            choice: sum(t[0 if i is None else choice[i], choice[o]] for i, o, t in terms)
            for choice in itertools.product(*(range(k) for k in n))
        }
        budget = float(np.quantile(list(costs.values()), rng.random()))
        best = max(
            sum(v[k] for v, k in zip(values, choice, strict=True))
            for choice, cost in costs.items()
            if cost <= budget
        )
        begin = time.perf_counter()
        found = solve_grid(values, terms, budget, gap=0.0)
        seconds += time.perf_counter() - begin
        over += found.cost > budget * (1 + 1e-9)
        below += found.upper_bound < best - 1e-9
        exact += found.gap <= 1e-9
        wrong += found.gap <= 1e-9 and abs(found.value - best) > 1e-9
    return {
        "problem": f"{count} small",
        "ms_each": 1e3 * seconds / count,
        "proved_exact": exact,
        "proved_but_wrong": wrong,
        "over_budget": over,
        "bound_below_optimum": below,
    }


def trace(name: str) -> Structure:
    """Returns the structure of a network of torchvision or the zoo, on its usual input."""
    import torch
    import torchvision

    import halpiee

    side = 299 if name == "inception_v3" else 224
    if name == "mobilenet_v1":
        from halpiee import zoo

        model = zoo.mobilenet_v1()
    elif name in ("googlenet", "inception_v3"):
        model = getattr(torchvision.models, name)(init_weights=False, aux_logits=False)
    else:
        model = getattr(torchvision.models, name)()
    return halpiee.trace(model.eval(), (torch.zeros(1, 3, side, side),))


if __name__ == "__main__":
    main()
