"""Orders the methods on CIFAR-10 at a size a CPU can train: accuracy, survival and overlap, over seeds.

    python -m tools.bench_methods --data path/to/cifar10 --out methods.jsonl

One JSON line a run is appended to ``--out``; runs that stand there are skipped, so an interrupted benchmark goes on.
The settings are those of ``tools.small_cifar``; by default those for a CPU, ``--settings`` names the larger ones, for
``--device cuda``. Accuracy is that of the last epoch on the test images, nothing is
picked.
"""

from __future__ import annotations

import itertools
import statistics
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
from halpiee.methods.one_shot import AtInit, SynFlow
from halpiee.methods.sparse import Sparse
from halpiee.sparsity import ERK, Global
from tools.small_cifar import (
    BATCH,
    LARGE,
    SETTINGS,
    Runs,
    Setting,
    accuracy,
    batches,
    few,
    interval,
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
    """Trains once and returns what came out."""
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


def table(rows: Sequence[Mapping[str, Any]], setting: str) -> list[str]:
    """Returns the Markdown table of one setting, best first."""
    lines = [
        "| method | top-1 %, mean ± 95 % interval | runs | survival | IoU first → last third | explored | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    of = {name: [r for r in rows if r["setting"] == setting and r["method"] == name] for name in METHODS}
    for name, runs in sorted(
        of.items(), key=lambda kv: -statistics.fmean([r["accuracy"] for r in kv[1]] or [0])
    ):
        if not runs:
            continue
        mean, half = interval([100 * r["accuracy"] for r in runs])
        alive = [r["survival"] for r in runs if r.get("survival") is not None]
        iou = [r["iou"] for r in runs if r.get("iou")]
        explored = [r["explored"] for r in runs if r.get("explored") is not None]
        lines.append(
            f"| {name} | {mean:.1f} ± {half:.1f} | {len(runs)} | "
            f"{f'{statistics.fmean(alive):.2f}' if alive else '–'} | "
            + (
                f"{statistics.fmean([a for a, _ in iou]):.2f} → {statistics.fmean([b for _, b in iou]):.2f}"
                if iou
                else "–"
            )
            + f" | {f'{statistics.fmean(explored):.2f}' if explored else '–'} "
            f"| {statistics.fmean([r['cpu_s'] for r in runs]):.0f} |"
        )
    return lines


CLAIMS = (
    ("accuracy", "dense", "gmp"),
    ("accuracy", "gmp", "static"),
    ("accuracy", "rigl", "static"),
    ("accuracy", "iee", "static"),
    ("survival", "iee", "rigl"),
)


def checks(rows: Sequence[Mapping[str, Any]], setting: str) -> list[str]:
    """Returns what the papers claim, and how it came out seed by seed."""
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
            print("\n".join([*table(chosen, setting_name), "", *checks(chosen, setting_name)]))


if __name__ == "__main__":
    main()
