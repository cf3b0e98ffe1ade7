"""How long selections take and how far from optimal they can be: the table of ``make bench-solver``.

    python -m tools.bench_solver                            every network on random staircases
    python -m tools.bench_solver --profile resnet50-224-b1.jsonl     … and that network on measured tables
    python -m tools.bench_solver resnet50 --no-staircases --profile …  that alone
    python -m tools.bench_solver --retained 0.7 0.5 0.3 --profile …    joint against linear at equal true latency

A measured profile is named after its network, image size and batch: ``resnet50-224-b1.jsonl``. Random staircases
are seeded: steps of ``--quantum`` channels on both sides and ±5 % from cell to cell, so that neither width nor cost
is monotone. Scores are log-normal, with a random scale per group. Budgets are 0.2 … 0.9 of dense. Times are medians
over the budgets, wall clock and processor time of the one thread that works; on a machine that is busy with other
things only the latter says what a solve takes. The whole selection is timed: scores to masks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halpiee.errors import BudgetError
from halpiee.selection.choose import choose, select
from halpiee.selection.cost import LatencyCost
from halpiee.selection.grid import Term, normalise
from halpiee.selection.lagrangian import linearise
from halpiee.structure.groups import Structure
from latency.op import Op
from tools.results import append, markdown, recorded

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


def main(argv: Sequence[str] | None = None) -> None:
    """Prints one table per question."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", help=f"default: {' '.join(NETWORKS)}")
    parser.add_argument(
        "--profile", type=Path, nargs="+", default=[], help="measured tables: MODEL-SIZE-bBATCH.jsonl"
    )
    parser.add_argument(
        "--staircases",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="random tables of every network",
    )
    parser.add_argument("--quantum", type=int, default=8, help="channels per step of a random staircase (8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gap", type=float, help="gap to prove; default: what each network must reach")
    parser.add_argument(
        "--retained",
        type=float,
        nargs="+",
        default=[],
        help="only compare joint and linear, at these budgets",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    recorded(parser)
    args = parser.parse_args(argv)
    problems = [problem for path in args.profile for problem in measured(path, args.networks)]
    if args.staircases and not args.retained:
        problems += [staircase(name, args) for name in args.networks or NETWORKS]
    if args.retained:
        rows = [bench_retained(problem, args, share) for problem in problems for share in args.retained]
        report("share of all scores kept, at the true latency that linear reaches", rows, as_json=args.json)
        if not args.no_record:
            append("solver-retained", rows)
    elif problems:
        rows = []
        for problem in problems:
            rows.append(bench_network(problem, args))
            print(f"{problem.name} on {problem.tables}: done", file=sys.stderr, flush=True)
        report("one selection", rows, as_json=args.json)
        if not args.no_record:
            append("solver", rows)
        linear = [bench_linear(problem, args) for problem in problems if problem.name == "resnet50"]
        report(
            "linear against a plain Python program of the same knapsack, budget 0.5",
            linear,
            as_json=args.json,
        )


def report(title: str, rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Prints a table in Markdown, or one JSON object per row."""
    if as_json:
        for row in rows:
            print(json.dumps(row), flush=True)
        return
    if not rows:
        return
    print(f"\n{title}\n\n{markdown(rows)}\n", flush=True)


@dataclass
class Problem:
    """A network with its tables."""

    name: str
    tables: str
    cost: LatencyCost


def measured(path: Path, networks: Sequence[str]) -> list[Problem]:
    """Returns the problem of a measured profile, unless other networks were named."""
    from latency import Profile

    name, side, batch = path.stem.rsplit("-", 2)
    if networks and name not in networks:
        return []
    structure = trace(name, side=int(side), batch=int(batch.lstrip("b")))
    return [Problem(name, "measured", LatencyCost(structure, Profile.load(path)))]


def staircase(name: str, args: argparse.Namespace) -> Problem:
    """Returns a network on random staircases."""
    cost = LatencyCost(trace(name), Staircases(args.quantum, args.seed))
    return Problem(name, "staircases" if args.quantum == 8 else f"staircases of {args.quantum}", cost)


def scores_of(problem: Problem, seed: int) -> dict[str, Any]:
    """Returns log-normal scores with a random scale per group."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        g.name: torch.exp(torch.randn(g.size, generator=generator) + torch.randn((), generator=generator))
        for g in problem.cost.structure.prunable
    }


def bench_network(problem: Problem, args: argparse.Namespace) -> dict[str, Any]:
    """Solves one network at all budgets."""
    cost, scores = problem.cost, scores_of(problem, args.seed)
    limit_s, most = NETWORKS.get(problem.name, (5.0, 1e-2))
    gap = most if args.gap is None else args.gap
    select(scores, cost, 0.95 * cost.dense_us)  # fills the cells, as a first solve of a training does
    seconds, worked, found = [], [], []
    for share in BUDGETS:
        begin, before = time.perf_counter(), time.process_time()
        try:
            selection = choose(scores, cost, share * cost.dense_us, gap=gap)
        except BudgetError:
            continue
        seconds.append(time.perf_counter() - begin)
        worked.append(time.process_time() - before)
        found.append(selection)
        assert selection.latency_us <= selection.budget_us * (1 + 1e-9)
    loosest = max(found, key=lambda s: s.slack_us / s.budget_us)
    assert not loosest.next_step_us <= loosest.slack_us
    gaps = [s.gap for s in found]
    return {
        "network": problem.name,
        "tables": problem.tables,
        "groups": len(cost.structure.prunable),
        "options": sum(len(c) for c in cost.candidates.values()),
        "budgets": len(found),
        "ms": 1e3 * statistics.median(seconds),
        "worst ms": 1e3 * max(seconds),
        "CPU ms": 1e3 * statistics.median(worked),
        "aim ms": 1e3 * limit_s,
        "worst gap %": 100 * max(gaps),
        "aim %": 100 * most,
        "path": "/".join(sorted({s.path for s in found})),
        "most slack %": 100 * loosest.slack_us / loosest.budget_us,
        "at": round(loosest.budget_us / cost.dense_us, 3),
        "next step %": 100 * loosest.next_step_us / loosest.budget_us,
        "within": statistics.median(seconds) <= limit_s and max(gaps) <= most,
    }


def bench_linear(problem: Problem, args: argparse.Namespace) -> dict[str, Any]:
    """Times the linear baseline against a plain Python program of the same knapsack."""
    cost, scores = problem.cost, scores_of(problem, args.seed)
    budget_us = 0.5 * cost.dense_us
    worked = []
    for _ in range(5):
        begin = time.process_time()
        kept = choose(scores, cost, budget_us, solver="linear")
        worked.append(time.process_time() - begin)
    linear_s = statistics.median(worked)
    options = {name: np.array(k) for name, k in cost.candidates.items()}
    terms = cost.grid(options)
    values = [
        np.concatenate([[0.0], np.cumsum(np.sort(scores[name].double().numpy())[::-1])])[k]
        for name, k in options.items()
    ]
    grid = normalise(values, [Term(*t) for t in terms], list(options.values()))
    own = linearise(grid, np.array([len(v) - 1 for v in values]))
    begin = time.process_time()
    best = plain_knapsack(values, [f.table for f in own.factors], budget_us - own.constant)
    plain_s = time.process_time() - begin
    return {
        "network": problem.name,
        "tables": problem.tables,
        "linear CPU ms": 1e3 * linear_s,
        "plain CPU s": plain_s,
        "times faster": plain_s / linear_s,
        "asked": 50,
        "linear value": kept.value,
        "plain value": best,
        "true latency / budget": kept.latency_us / budget_us,
    }


def bench_retained(problem: Problem, args: argparse.Namespace, share: float) -> dict[str, Any]:
    """Compares the share of all scores kept: linear in 1, 5 and 30 steps, joint at the same true latency."""
    cost, scores = problem.cost, scores_of(problem, args.seed)
    total = sum(float(score.sum()) for score in scores.values())
    row: dict[str, Any] = {"network": problem.name, "budget": share}
    for steps in (1, 5, 30):
        keep, found = None, None
        word = f"{steps} step{'s' * (steps > 1)}"
        for step in range(1, steps + 1):
            budget_us = cost.dense_us * share ** (step / steps)
            try:
                found = choose(scores, cost, budget_us, may=keep, solver="linear")
            except BudgetError:
                break
            keep = found.keep
        if found is None:
            row |= dict.fromkeys(
                (f"{what}, {word}" for what in ("linear", "true latency", "joint there")), "–"
            )
            continue
        kept = sum(float(scores[name][mask].sum()) for name, mask in found.keep.items())
        there = choose(scores, cost, found.latency_us)
        row |= {
            f"linear, {word}": kept / total,
            f"true latency, {word}": found.latency_us / cost.dense_us,
            f"joint there, {word}": there.value / total,
        }
    best = choose(scores, cost, share * cost.dense_us)
    return row | {"joint at the budget": best.value / total}


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


def trace(name: str, *, side: int | None = None, batch: int = 1) -> Structure:
    """Returns the structure of a network of torchvision or the zoo, on its usual input."""
    import torch
    import torchvision

    import halpiee
    from halpiee.zoo import build

    side = side or (299 if name == "inception_v3" else 224)
    if name in ("googlenet", "inception_v3"):
        model = getattr(torchvision.models, name)(init_weights=False, aux_logits=False)
    else:
        model = build(name)
    return halpiee.trace(model.eval(), (torch.zeros(batch, 3, side, side),))


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


if __name__ == "__main__":
    main()
