"""Is it the mask or the layers' densities? Rewinding and pruning at initialisation on CIFAR-10, each also shuffled.

    python -m tools.bench_rewinding --data path/to/cifar10 --out rewinding.jsonl

"Pruning Neural Networks at Initialization: Why Are We Missing the Mark?" (arXiv 2009.08576) claims two things, looked
at here on a network that a CPU trains in minutes (``resnet8`` of ``tools.small_cifar``): masks found after training,
trained again from an early step, beat masks found before it; and shuffling a mask within each layer costs the former
much, the latter nothing. Every network is pruned by one ranking over all layers and trained on the same images.

One JSON line a run is appended to ``--out``; runs that stand there are skipped. Accuracy is that of the last epoch.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from halpiee.data.sources import load
from halpiee.data.tensors import TensorData
from halpiee.methods.one_shot import prune_once
from halpiee.methods.rewind import held, lottery_ticket_rewinding, rewind
from halpiee.sparsity.mask import Mask
from tools.small_cifar import SETTINGS, Runs, Setting, accuracy, batches, few, interval, parser, sgd

AT_INIT = {"snip": 1, "synflow": 100, "magnitude": 1, "grasp": 1}
"""Criteria at initialisation, with the rounds they are applied in."""

NAMES = ("ltr", "ltr-shuffled", *(f"{name}{end}" for name in AT_INIT for end in ("", "-shuffled")))

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


def run(training: Training, name: str) -> dict[str, Any]:
    """Prunes and trains once; returns what came out."""
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


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the Markdown table: each method as it is, shuffled, and the difference seed by seed."""
    value = {(r["method"], r["seed"]): 100 * r["accuracy"] for r in rows}
    lines = ["| mask from | top-1 % | shuffled | shuffling costs | seeds |", "|---|---|---|---|---|"]
    for name in ("ltr", *AT_INIT):
        seeds = sorted(s for m, s in value if m == name and (f"{name}-shuffled", s) in value)
        if not seeds:
            continue
        plain, other = ([value[m, s] for s in seeds] for m in (name, f"{name}-shuffled"))
        cost = [a - b for a, b in zip(plain, other, strict=True)]
        cells = [f"{mean:.1f} ± {half:.1f}" for mean, half in map(interval, (plain, other, cost))]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(seeds)} |")
    return lines


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


def main() -> None:
    """Runs what is missing and prints the table."""
    asked = parser(__doc__, "rewinding.jsonl", NAMES)
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked.add_argument("--sparsity", type=float, default=SPARSITY)
    asked.add_argument("--steps", type=int, default=SETTINGS["resnet8"].steps)
    options = asked.parse_args()
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
                found = {"method": name, "seed": seed, **same, **run(training, name)}
                found["cpu_s"] = round(time.process_time() - begun, 1)
                runs.add(found)
    print(f"\nresnet8, {options.sparsity:.1%} sparse, {options.steps} steps\n")
    rows = [row for row in runs.rows if same.items() <= row.items()]
    print("\n".join([*table(rows), "", *claims(rows)]))


if __name__ == "__main__":
    main()
