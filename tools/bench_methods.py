"""Orders the methods on CIFAR-10 at a size a CPU can train: accuracy, survival and overlap, over seeds.

    python -m tools.bench_methods --data path/to/cifar10 --out methods.jsonl
    python -m tools.bench_methods --rewinding --data path/to/cifar10 --out rewinding.jsonl

One JSON line a run is appended to ``--out``; runs that stand there are skipped, so an interrupted benchmark goes on.
The settings are those of ``tools.small_cifar``; by default those for a CPU, ``--settings`` names the larger ones, for
``--device cuda``. Accuracy is that of the last epoch on the test images, nothing is picked.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from halpiee.analysis import History, exploration, overlaps, survival_rates
from halpiee.data.sources import load
from halpiee.data.tensors import TensorData
from halpiee.methods.dynamic import SET, SNFS, RigL, Static
from halpiee.methods.gradual import GMP, GraNet
from halpiee.methods.iee import IEE
from halpiee.methods.one_shot import AtInit, SynFlow, prune_once
from halpiee.methods.rewind import held, lottery_ticket_rewinding, rewind
from halpiee.methods.sparse import Sparse
from halpiee.sheet import Mean
from halpiee.sparsity import ERK, Global
from halpiee.sparsity.mask import Mask
from tools.results import append, markdown
from tools.small_cifar import (
    BATCH,
    LARGE,
    SETTINGS,
    Runs,
    Setting,
    accuracy,
    batches,
    few,
    parser,
    sgd,
)

Maker = Callable[[nn.Module, Optimizer, Setting, "list[tuple[Tensor, Tensor]]", int], "Sparse | None"]


def iee(explore_init: str) -> Maker:
    """Returns IEE whose never-active weights start from the initialisation (``model``) or from ``zero``."""

    def make(
        model: nn.Module, optimizer: Optimizer, s: Setting, batches: list[tuple[Tensor, Tensor]], seed: int
    ) -> Sparse:
        h, j, q = s.cycle
        return IEE(
            model,
            optimizer,
            budget=ERK(s.density),
            total_steps=s.steps,
            h=h,
            j=j,
            q=q,
            decay="cosine",
            explore_init="zero" if explore_init == "zero" else "model",
            seed=seed,
        )

    return make


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean of some values, and half of its 95 % interval."""
    found = Mean.of(values)
    return found.mean, found.half


def at_init(criterion: str) -> Maker:
    """Returns pruning at initialisation, one ranking over all layers."""
    return lambda m, o, s, b, seed: AtInit(
        m, o, budget=Global(s.density), criterion=criterion, batches=b, seed=seed
    )


METHODS: dict[str, Maker] = {
    "dense": lambda m, o, s, b, seed: None,
    "gmp": lambda m, o, s, b, seed: GMP(
        m, o, budget=Global(s.density), total_steps=s.steps, interval=s.interval, seed=seed
    ),
    "static": lambda m, o, s, b, seed: Static(m, o, budget=ERK(s.density), seed=seed),
    "rigl": lambda m, o, s, b, seed: RigL(
        m, o, budget=ERK(s.density), total_steps=s.steps, interval=s.interval, seed=seed
    ),
    "iee": iee("zero"),
    "set": lambda m, o, s, b, seed: SET(
        m, o, budget=ERK(s.density), total_steps=s.steps, interval=s.interval, seed=seed
    ),
    "granet": lambda m, o, s, b, seed: GraNet(
        m, o, budget=Global(s.density), total_steps=s.steps, interval=s.interval, initial=0.5, seed=seed
    ),
    "snfs": lambda m, o, s, b, seed: SNFS(
        m, o, budget=ERK(s.density), total_steps=s.steps, interval=s.interval, seed=seed
    ),
    "iee-random": iee("model"),
    "snip": at_init("snip"),
    "magnitude": at_init("magnitude"),
    "synflow": lambda m, o, s, b, seed: SynFlow(m, o, budget=Global(s.density), batches=b, seed=seed),
    "random": at_init("random"),
}


def run(setting: Setting, name: str, data: TensorData, seed: int) -> dict[str, Any]:
    """Trains once; returns the figures."""
    torch.manual_seed(seed)
    model = setting.build().to(data.train_x.device)
    optimizer = sgd(model, setting.lr)
    method = METHODS[name](model, optimizer, setting, few(data, 10), seed)
    history = None if method is None else History.of(method)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting.steps)
    begun = time.process_time()
    model.train()
    for x, y in itertools.islice(batches(data, seed), setting.steps):
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    found: dict[str, Any] = {
        "accuracy": accuracy(model, data),
        "cpu_s": round(time.process_time() - begun, 1),
    }
    if method is not None and history is not None:
        found["density"] = method.alive.density
        survived = [rate for _, rate in survival_rates(history)]
        found["survival"] = statistics.fmean(survived) if survived else None
        overlap = [iou for _, iou in overlaps(history)]
        third = len(overlap) // 3
        found["iou"] = (
            [statistics.fmean(overlap[:third]), statistics.fmean(overlap[-third:])] if third else None
        )
        found["explored"] = exploration(history)
    return found


# -- what the runs say ------------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]], setting: str) -> list[dict[str, Any]]:
    """Returns the rows of one setting's table, best first."""
    of = {name: [r for r in rows if r["setting"] == setting and r["method"] == name] for name in METHODS}
    found = []
    for name, runs in of.items():
        if not runs:
            continue
        mean, half = interval([100 * r["accuracy"] for r in runs])
        iou = [r["iou"] for r in runs if r.get("iou")]
        first, last = (statistics.fmean(part) for part in zip(*iou, strict=True)) if iou else (None, None)
        found.append(
            {
                "method": name,
                "top-1 %": f"{mean:.1f} ± {half:.1f}",
                "runs": len(runs),
                "survival": _mean(runs, "survival"),
                "IoU, first → last third": None if first is None else f"{first:.2f} → {last:.2f}",
                "ever active": _mean(runs, "explored"),
                "CPU s": _mean(runs, "cpu_s"),
            }
        )
    return sorted(found, key=lambda row: -float(str(row["top-1 %"]).split()[0]))


def _mean(runs: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Returns the mean of what the runs have under a key, with two decimals; None where none has it."""
    values = [r[key] for r in runs if r.get(key) is not None]
    return round(statistics.fmean(values), 2) if values else None


CLAIMS = (
    ("accuracy", "dense", "gmp"),
    ("accuracy", "gmp", "static"),
    ("accuracy", "rigl", "static"),
    ("accuracy", "iee", "static"),
    ("survival", "iee", "rigl"),
)


def checks(rows: Sequence[Mapping[str, Any]], setting: str) -> list[str]:
    """Returns the claims of the papers, and whether each held, seed by seed."""
    value = {(r["method"], r["seed"]): r for r in rows if r["setting"] == setting}
    lines = []
    for key, better, worse in CLAIMS:
        seeds = sorted(s for m, s in value if m == better and (worse, s) in value)
        seeds = [s for s in seeds if None not in (value[better, s].get(key), value[worse, s].get(key))]
        if not seeds:
            continue
        gaps = [value[better, s][key] - value[worse, s][key] for s in seeds]
        mean, half = interval([100 * g for g in gaps])
        held = sum(g > 0 for g in gaps)
        word = "holds" if held == len(gaps) else "does not hold" if mean <= 0 else "holds on average"
        lines.append(
            f"- {key} {better} > {worse}: {word}: {mean:+.1f} ± {half:.1f} points, {held} of {len(gaps)} seeds"
        )
    for name in ("rigl", "iee"):
        ious = [r["iou"] for (m, _), r in value.items() if m == name and r.get("iou")]
        if ious:
            held = sum(b > a for a, b in ious)
            lines.append(f"- IoU of {name} rises: {held} of {len(ious)} seeds")
    return lines


def main() -> None:
    """Runs what is missing and prints the tables."""
    if "--rewinding" in sys.argv:
        rewinding([word for word in sys.argv[1:] if word != "--rewinding"])
        return
    asked = parser(__doc__, "methods.jsonl", METHODS)
    asked.add_argument("--settings", nargs="+", choices=SETTINGS | LARGE, default=list(SETTINGS))
    asked.add_argument("--device", default="cpu", help="cpu, cuda")
    asked.add_argument("--seeds", type=int, default=3)
    asked.add_argument("--steps", type=int, help="fewer steps, to try the tool out")
    asked.add_argument("--limit", type=int, default=10**9, help="at most so many new runs")
    options = asked.parse_args()
    torch.set_num_threads(1)
    runs = Runs(options.out)
    done = {(r["setting"], r["method"], r["seed"], r["steps"]) for r in runs.rows}
    loaded: dict[int, TensorData] = {}
    left = 0 if options.table else options.limit
    # Seed by seed, so that every method has as many when it is interrupted.
    for seed, setting_name, name in itertools.product(
        range(options.seeds), options.settings, options.methods
    ):
        setting = (SETTINGS | LARGE)[setting_name]
        setting = replace(setting, steps=options.steps or setting.steps)
        if left < 1 or (setting_name, name, seed, setting.steps) in done:
            continue
        left -= 1
        if setting.size not in loaded:
            loaded[setting.size] = load(options.data, size=setting.size).to(options.device)
        data = replace(loaded[setting.size], augmentation=setting.augmentation)
        found = run(setting, name, data, seed)
        runs.add({"setting": setting_name, "method": name, "seed": seed, "steps": setting.steps, **found})
    for setting_name in options.settings:
        s = (SETTINGS | LARGE)[setting_name]
        chosen = [r for r in runs.rows if r["steps"] == (options.steps or s.steps)]
        if any(r["setting"] == setting_name for r in chosen):
            print(
                f"\n{setting_name}: {1 - s.density:.0%} sparse, {options.steps or s.steps} steps of {BATCH}\n"
            )
            found_rows = table(chosen, setting_name)
            print("\n".join([markdown(found_rows), "", *checks(chosen, setting_name)]))
            if not options.no_record:
                append(f"methods-{setting_name}", found_rows)


REWINDING_ABOUT = """Is it the mask or the layers' densities? Rewinding and pruning at init, each also shuffled.

    python -m tools.bench_methods --rewinding --data path/to/cifar10 --out rewinding.jsonl

"Pruning Neural Networks at Initialization: Why Are We Missing the Mark?" (arXiv 2009.08576) claims two things, looked
at here on a network that a CPU trains in minutes (``resnet8`` of ``tools.small_cifar``): masks found after training,
trained again from an early step, beat masks found before it; and shuffling a mask within each layer costs the former
much, the latter nothing. Every network is pruned by one ranking over all layers and trained on the same images.

One JSON line a run is appended to ``--out``; runs that stand there are skipped. Accuracy is that of the last epoch.
"""

AT_INIT = {"snip": 1, "synflow": 100, "magnitude": 1, "grasp": 1}
"""Criteria at initialisation, with the rounds they are applied in."""

REWINDING = ("ltr", "ltr-shuffled", *(f"{name}{end}" for name in AT_INIT for end in ("", "-shuffled")))

SPARSITY = 1 - 0.8**10
"""89.3 %, a rung of the paper's ladder."""

REWOUND = 0.05
"""Share of the training whose weights lottery-ticket rewinding goes back to."""


class Training:
    """Trains parts of one schedule; the dense training of a seed is done once and then replayed.

    Args:
        setting: network, rate, steps.
        data: images.
        seed: of weights and order.
    """

    def __init__(self, setting: Setting, data: TensorData, seed: int) -> None:
        self.setting, self.data, self.seed = setting, data, seed
        self._dense: dict[int, dict[str, Tensor]] = {}

    def network(self) -> nn.Module:
        """Returns the network with this seed's initial weights."""
        torch.manual_seed(self.seed)
        return self.setting.build()

    def __call__(
        self, model: nn.Module, mask: Mask | None, first: int, last: int, done: Callable[[int], None]
    ) -> None:
        """Trains steps ``first`` to ``last - 1``, as ``halpiee.methods.rewind`` asks for it."""
        if mask is None and self._dense:
            for step, state in self._dense.items():
                model.load_state_dict(state)
                done(step)
            return
        s = self.setting
        optimizer = sgd(model, s.lr)
        model.train()
        with held(model, optimizer, mask):
            for step, (x, y) in enumerate(itertools.islice(batches(self.data, self.seed), last)):
                if step < first:
                    continue
                optimizer.param_groups[0]["lr"] = s.lr / 2 * (1 + math.cos(math.pi * step / s.steps))
                optimizer.zero_grad(set_to_none=True)
                cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                done(step + 1)
                if mask is None and step + 1 in (self.rewound, s.steps):
                    state = {name: value.clone() for name, value in model.state_dict().items()}
                    self._dense[step + 1] = state

    @property
    def rewound(self) -> int:
        """The step whose weights are taken again."""
        return round(REWOUND * self.setting.steps)


def run_rewound(training: Training, name: str) -> dict[str, Any]:
    """Prunes and trains once; returns the figures."""
    s, (method, _, shuffled) = training.setting, name.partition("-")
    model = training.network()
    if method == "ltr":
        mask = rewind(
            model,
            training,
            total_steps=s.steps,
            budget=s.density,
            retrain=lottery_ticket_rewinding(training.rewound),
            shuffle=bool(shuffled),
            seed=training.seed,
        )
    else:
        sample = few(training.data, 10)
        mask = prune_once(model, method, s.density, sample, rounds=AT_INIT[method], seed=training.seed)
        mask = mask.shuffled(training.seed) if shuffled else mask
        mask.apply(model)
        training(model, mask, 0, s.steps, lambda step: None)
    return {"accuracy": accuracy(model, training.data), "density": mask.density}


# -- what the runs say ------------------------------------------------------------------------------------------------


def rewinding_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of the table: each method as it is, shuffled, and the difference seed by seed."""
    value = {(r["method"], r["seed"]): 100 * r["accuracy"] for r in rows}
    found = []
    for name in ("ltr", *AT_INIT):
        seeds = sorted(s for m, s in value if m == name and (f"{name}-shuffled", s) in value)
        if not seeds:
            continue
        plain, other = ([value[m, s] for s in seeds] for m in (name, f"{name}-shuffled"))
        cost = [a - b for a, b in zip(plain, other, strict=True)]
        cells = [f"{mean:.1f} ± {half:.1f}" for mean, half in map(interval, (plain, other, cost))]
        names = ("mask from", "top-1 %", "shuffled", "shuffling costs", "seeds")
        found.append(dict(zip(names, (name, *cells, len(seeds)), strict=True)))
    return found


def claims(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the paper's claims and in how many seeds each came out."""
    value = {(r["method"], r["seed"]): 100 * r["accuracy"] for r in rows}
    lines = []
    for name in AT_INIT:
        gaps = [
            value["ltr", s] - v for (m, s), v in sorted(value.items()) if m == name and ("ltr", s) in value
        ]
        if gaps:
            mean, half = interval(gaps)
            lines.append(
                f"- rewinding > {name} at initialisation: {mean:+.1f} ± {half:.1f} points, "
                f"{sum(g > 0 for g in gaps)} of {len(gaps)} seeds"
            )
    for name in ("ltr", *AT_INIT):
        costs = [
            value[name, s] - v
            for (m, s), v in sorted(value.items())
            if m == f"{name}-shuffled" and (name, s) in value
        ]
        if costs:
            mean, half = interval(costs)
            word = (
                "nothing that shows"
                if abs(mean) <= half
                else "something"
                if mean > 0
                else "less than nothing"
            )
            word = "as much as one seed says" if math.isnan(half) else word
            lines.append(
                f"- shuffling costs {name} {word}: {mean:+.1f} ± {half:.1f} points, "
                f"{sum(c > 0 for c in costs)} of {len(costs)} seeds"
            )
    return lines


def rewinding(arguments: list[str]) -> None:
    """Runs what is missing and prints the table."""
    asked = parser(REWINDING_ABOUT, "rewinding.jsonl", REWINDING)
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked.add_argument("--sparsity", type=float, default=SPARSITY)
    asked.add_argument("--steps", type=int, default=SETTINGS["resnet8"].steps)
    options = asked.parse_args(arguments)
    torch.set_num_threads(1)
    setting = replace(SETTINGS["resnet8"], density=1 - options.sparsity, steps=options.steps)
    same = {"sparsity": round(options.sparsity, 4), "steps": options.steps}
    runs = Runs(options.out)
    there = {(row["method"], row["seed"]) for row in runs.rows if same.items() <= row.items()}
    todo = {seed: [m for m in options.methods if (m, seed) not in there] for seed in options.seeds}
    if any(todo.values()) and not options.table:
        data = replace(load(options.data, size=16), augmentation=setting.augmentation)
        for seed, names in todo.items():
            training = Training(setting, data, seed)
            for name in names:
                begun = time.process_time()
                found = {"method": name, "seed": seed, **same, **run_rewound(training, name)}
                found["cpu_s"] = round(time.process_time() - begun, 1)
                runs.add(found)
    print(f"\nresnet8, {options.sparsity:.1%} sparse, {options.steps} steps\n")
    rows = [row for row in runs.rows if same.items() <= row.items()]
    found_rows = rewinding_table(rows)
    print("\n".join([markdown(found_rows), "", *claims(rows)]))
    if not options.no_record:
        append("rewinding", found_rows)


if __name__ == "__main__":
    main()
