"""Stages that train a network to a latency: with a method, by one cut, by repair, or scaled from the start."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from halpiee.deploy.calibrate import Chosen
from halpiee.inputs import ordered
from halpiee.methods.channels import narrowed
from halpiee.methods.method import Method
from halpiee.reconstruction.repair import RepairedLayer
from halpiee.reconstruction.rounds import InRounds, Rounds
from halpiee.selection.choose import scaled
from halpiee.selection.cost import LatencyCost
from halpiee.structure.plan import Selection
from halpiee.structure.shrink import keep_first, shrink
from halpiee.structure.verification import verify
from halpiee.training import record
from halpiee.training.build import initial, make_optimizer, method_of
from halpiee.training.job import Run, save_plan
from halpiee.training.loop import evaluate
from halpiee.training.stage import Training, begun, close, cut, leave, material, shuffled

BETTER = (
    "from scratch a uniformly narrower network (--method small-dense) had more accuracy at the same latency in the "
    "comparison of docs/results.md, and one of fewer blocks (--method scaled) more still"
)
"""What a run says that trains channels away from scratch."""


class _Cut(Training):
    """A training whose network is cut to a latency, by a calibrated cost; the trainer's ``extra`` has what was kept."""

    def __init__(self, cost: LatencyCost) -> None:
        self._cost = cost

    def log(self) -> record.Trained:
        """Returns the steps before the cut, with the counts they ran at."""
        raise NotImplementedError

    def facts(self, run: Run) -> dict[str, Any]:
        """Returns counts, latencies, events and training FLOPs."""
        extra = self.trainer.extra
        counts = {name: int(mask.sum()) for name, mask in extra["keep"].items()}
        flops = record.train_flops(
            self.log(), run.macs, self.trainer.total_steps, compact_macs=run.macs(counts)
        )
        known = {key: value for key, value in extra.items() if key != "keep"}
        return {"counts": counts, "events": [], "train_flops_ratio": flops, **known}

    def finish(self, run: Run) -> None:
        """Writes the plan beside the weights."""
        extra = self.trainer.extra
        used, most = (extra["predicted_us"],), (extra["budget_us"],)
        save_plan(run, Selection(extra["keep"], used, most, gap=extra["gap"]))
        super().finish(run)


class Budgeted(_Cut):
    """Trains to a latency: IEE or HALP, the closed loop, the cut, the rest of the training at compact size."""

    method: Method

    def start(self, run: Run) -> None:
        """Builds network and method; goes on where they were saved."""
        s = run.settings
        model = initial(s, run.data.n_classes).to(run.device)
        optimizer = make_optimizer(model, s)
        limit = (self._cost, run.budget_us(self._cost))
        make = method_of(s, model, run.total_steps, material(run), limit=limit, protect=run.protected)
        self.method = make(model, optimizer)
        self.trainer = begun(run, model, optimizer, self.name, self.method)
        if s.weights is None:
            run.talk.note(BETTER)

    def run(self, run: Run) -> None:
        """Trains until the method has chosen; what trains on is the compact network."""
        if self.trainer.stage == "masked":
            self.trainer.run(until=lambda _: self.method.finished)
            closed = close(run, self.method.model, self._cost, Chosen(self.method))
            cut(run, self.trainer, self.method)
            last = self.method.reports[-1]
            found = {"next_step_us": last.next_step, "gap": last.gap, "keep": dict(self.method.alive)}
            self.trainer.extra = {**closed, **found}
            self.trainer.save()
        self.trainer.run()

    def log(self) -> record.Trained:
        """Returns what the method logged."""
        return self.method.log

    def facts(self, run: Run) -> dict[str, Any]:
        """Returns counts, latencies, the method's events and training FLOPs."""
        return {**super().facts(run), "events": record.events(self.method.reports, latency=True)}


class Repaired(Training):
    """Meets a latency without training: cut, measure, solve every layer again from unlabelled images."""

    def __init__(self, cost: LatencyCost) -> None:
        self._cost = cost

    def headline(self, run: Run) -> str:
        """Returns what is done instead of training."""
        return "Cut and repair"

    def run(self, run: Run) -> None:
        """Cuts the given network, measures, cuts again until it meets the budget, and repairs."""
        self._begun = time.perf_counter()
        self._cut, self._facts = chosen(run, run.dense(), self._cost)
        self._compact = self._cut.repaired(_reporting(run, self._facts))

    def finish(self, run: Run) -> None:
        """Writes plan, weights and results."""
        save_plan(run, self._cut.selection)
        nothing = {"events": [], "train_flops_ratio": {"paper": 0.0, "strict": 0.0}}
        facts = {"counts": self._cut.counts, **nothing, **self._facts}
        leave(run, self.name, self._compact, [], time.perf_counter() - self._begun, facts)


CUT_AT = 0.25
"""Share of a training from scratch that is dense before the cut: docs/decisions/0120-an-early-cut.md."""

ROUNDS = 1
"""Rounds of a cut in a training: what they win, training wins as well."""


class Early(_Cut):
    """Trains the whole network for a while, cuts it to the latency, and trains on."""

    def start(self, run: Run) -> None:
        """Builds the network; goes on where it was saved."""
        s = run.settings
        share = s.masks.cut_at if s.masks.cut_at is not None else 0.0 if s.weights else CUT_AT
        self._whole = round(share * run.total_steps)
        model = initial(s, run.data.n_classes).to(run.device)
        self.trainer = begun(run, model, make_optimizer(model, s), self.name)

    def run(self, run: Run) -> None:
        """Trains whole, cuts once, trains on."""
        if self.trainer.stage == "masked":
            self.trainer.run(until=lambda t: t.step >= self._whole)
            self._cut(run)
        self.trainer.run()

    def _cut(self, run: Run) -> None:
        """Cuts network and optimizer to the budget; what trains on has its layers solved again, where asked."""
        trainer = self.trainer
        model = trainer.model.to(memory_format=torch.contiguous_format).eval()
        cut, facts = chosen(run, model, self._cost, labelled=True)
        compact, slim = shrink(model, run.structure, cut.keep, trainer.optimizer)
        if run.settings.masks.repair is not False:
            compact.load_state_dict(cut.repaired(_reporting(run, facts)).state_dict())
        trainer.replace(compact, slim)
        figure, _ = evaluate(compact, run.data, run.task)
        run.talk.note(
            f"cut to the budget at step {trainer.step}: {run.task.title} {figure:.1%} before training goes on"
        )
        trainer.extra = {"keep": dict(cut.keep), "accuracy_cut": figure, **facts}
        trainer.save()

    def log(self) -> record.Trained:
        """Returns the steps of the whole network."""
        return [(self._whole, "train", {})]


class Scaled(Early):
    """Trains a smaller network from scratch: the largest of fewer blocks and channels that meets the latency."""

    def start(self, run: Run) -> None:
        """Builds the network; goes on where it was saved."""
        super().start(run)
        self._whole = 0

    def _cut(self, run: Run) -> None:
        """Makes the small network of the whole one's first units."""
        trainer = self.trainer
        candidate = _Scaled(run, self._cost)
        facts = close(run, trainer.model, self._cost, candidate)
        small = narrowed(trainer.model, run.structure, candidate.counts)
        trainer.replace(small, make_optimizer(small, run.settings))
        found = {"keep": candidate.keep, "next_step_us": candidate.next_step_us, "gap": math.nan}
        trainer.extra = {**found, **facts}
        trainer.save()


class _Scaled:
    """A scaled network as the closed loop sees it."""

    def __init__(self, run: Run, cost: LatencyCost) -> None:
        self._run, self._budget_us, self._cost = run, run.budget_us(cost), cost
        self._turns = [scaled(cost, self._budget_us, protect=run.protected)]

    @property
    def counts(self) -> dict[str, int]:
        return self._turns[-1]

    @property
    def keep(self) -> dict[str, Tensor]:
        return keep_first(self._run.structure, self.counts)

    @property
    def next_step_us(self) -> float:
        cost, counts = self._cost, self.counts
        return cost.next_step(counts, {name: cost.candidates[name] for name, k in counts.items() if k})

    def solve_again(self, cost: LatencyCost) -> None:
        self._cost = cost
        self._turns.append(scaled(cost, self._budget_us, protect=self._run.protected))

    def go_back(self, turn: int) -> None:
        self._turns.append(self._turns[turn])


def chosen(
    run: Run, model: nn.Module, cost: LatencyCost, *, labelled: bool = False
) -> tuple[Rounds, dict[str, Any]]:
    """Chooses what stays of a whole network within the run's budget, measures it, and proves the cut.

    Scores take the labels of the images where ``labelled`` or where the task has no classes that a network names;
    else the classes that the network itself names.

    Returns:
        The cut, its layers not solved yet, and what a report says of it.
    """
    s, n = run.settings, run.settings.images
    order = shuffled(run)
    others = (
        order[n : 3 * n] if len(order) > n else order
    )  # to score on; where there are no others, the same images
    images, (scored, labels) = run.data.at(order[:n])[0], run.data.at(others)
    images, scored = (one if isinstance(one, Tensor) else ordered(model, one) for one in (images, scored))
    several = s.method == "repair" and s.masks.widths != "scaled"  # which would bring blocks back
    rounds = s.masks.rounds or (None if several else ROUNDS)
    given: dict[str, Any] = {"rounds": rounds, "criterion": s.masks.criterion, "value": s.masks.value}
    known = {key: value for key, value in given.items() if value is not None}
    cut = Rounds(
        model.to(run.device),
        cost,
        run.budget_us(cost),
        images=images,
        scored=scored,
        labels=labels if labelled or not run.task.names_classes else None,
        how=InRounds(**known, protect=run.protected, widths=s.masks.widths, seed=s.seed, loss=run.task.loss),
        note=run.talk.note,
    )
    closed = close(run, model, cost, cut)
    verify(model, run.structure, cut.keep, run.placed, sizes=(1, 2, 5))
    return cut, {"repaired": [], **closed, "next_step_us": cut.next_step_us, "gap": cut.selection.gap}


def _reporting(run: Run, facts: dict[str, Any]) -> Callable[[RepairedLayer], None]:
    """Returns a function that adds each layer to the report and notes every layer that keeps its weights."""

    def report(layer: RepairedLayer) -> None:
        facts["repaired"].append(asdict(layer))
        if layer.skipped is not None:
            run.talk.note(f"{layer.name} keeps its cut weights: {layer.skipped}")

    return report
