"""A stage of a run: a part that is done once, timed, and kept in the run's folder; and what stages that train share."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.deploy.calibrate import Candidate, close_loop
from halpiee.deploy.target import Target
from halpiee.limits import used_of
from halpiee.methods.allocator import LatencyPool
from halpiee.methods.method import Method
from halpiee.selection.cost import LatencyCost
from halpiee.structure.shrink import shrink
from halpiee.structure.verification import verify
from halpiee.training import record
from halpiee.training.build import Material, make_optimizer, network
from halpiee.training.checkpoint import load_state, save_json
from halpiee.training.job import Run
from halpiee.training.loop import Outlet, Trainer, evaluate, pick_threads
from halpiee.training.ranks import Ranks
from halpiee.training.record import line_values, predicted, read_result, read_seconds, read_threads
from latency.timing.benchmark import Comparison

BEST = "{}-best.safetensors"
"""The weights of the best epoch of a training, in the folder of its run."""


class Stage:
    """One part of a run.

    Attributes:
        name: under which its seconds are kept.
        title: the line that announces it.
        file: of the run's folder; it is written when the stage is done. Empty: the stage is done every time.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    file: ClassVar[str] = ""

    def headline(self, run: Run) -> str:
        """Returns the line that announces the stage."""
        return self.title

    def done(self, run: Run) -> bool:
        """Whether nothing is left to do."""
        return bool(self.file) and (run.folder / self.file).is_file()

    def start(self, run: Run) -> None:
        """Makes what ``run`` works on, or takes it up where it was interrupted."""

    def run(self, run: Run) -> None:
        """Does the work."""

    def finish(self, run: Run) -> None:
        """Writes what the next stages read."""


def do(stage: Stage, run: Run) -> None:
    """Does a stage that is still to do; its wall time adds up over interruptions."""
    run.talk.stage(stage.headline(run))
    if run.ranks.once(lambda: stage.done(run)):
        return
    begun = time.perf_counter()
    try:
        stage.start(run)
        stage.run(run)
        stage.finish(run)
    finally:
        if run.ranks.first:
            path = run.folder / "seconds.json"
            seconds = read_seconds(path) if path.is_file() else {}
            spent = seconds.get(stage.name, 0.0) + time.perf_counter() - begun
            save_json(path, {**seconds, stage.name: spent})


class Training(Stage):
    """A stage that leaves a network: its weights, and its results."""

    name = "pruned"
    file = "pruned.json"
    trainer: Trainer

    def headline(self, run: Run) -> str:
        """Returns the goal of the training."""
        return "Train to the budget" if run.settings.budget is not None else f"Train: {run.settings.goal}"

    def run(self, run: Run) -> None:
        """Trains to the end."""
        self.trainer.run()

    def finish(self, run: Run) -> None:
        """Writes weights and results, and removes the state that training goes on from."""
        trainer = self.trainer
        model, facts = trainer.result, self.facts(run)
        if run.settings.ship == "best" and trainer.best is not None:
            run.fill(model, BEST.format(self.name))
            facts["epoch"] = trainer.best[0]
            run.talk.note(f"the weights of {self.name} are those of epoch {trainer.best[0]}, the best one")
        leave(run, self.name, model, trainer.history, trainer.seconds, facts)

    def facts(self, run: Run) -> dict[str, Any]:
        """Returns what the results hold beside accuracy and history."""
        return {}

    def result(self, run: Run) -> dict[str, Any]:
        """Returns the results, as they lie in the folder."""
        return read_result(run.folder / self.file, pruned=self.name == "pruned")


def leave(
    run: Run,
    name: str,
    model: nn.Module,
    history: Sequence[Mapping[str, Any]],
    seconds: float,
    facts: Mapping[str, Any],
) -> None:
    """Writes the weights of a trained network, then its results: their file says that the stage is done."""
    top1, top5 = evaluate(model, run.data, run.task)
    result = {
        "accuracy": top1,
        "top5": top5,
        "history": history,
        "seconds": seconds,
        "params": sum(p.numel() for p in model.parameters()),
        **facts,
    }
    run.keep(f"{name}.safetensors", model.state_dict())
    run.note(f"{name}.json", result)
    run.forget(f"{name}.state")


def material(run: Run) -> Material:
    """Returns what a method is built from beside the settings."""
    return Material(
        structure=lambda: run.structure,
        examples=partial(examples, run),
        images=lambda: run.data.at(shuffled(run)[: run.settings.images])[0],
        n_classes=run.data.n_classes,
        loss=run.task.loss,
        example=run.placed,
    )


def shuffled(run: Run) -> Tensor:
    """Returns the numbers of the training images in an order that the seed draws: the first ones solve layers."""
    return torch.randperm(run.data.n_train, generator=torch.Generator().manual_seed(run.settings.seed))


def examples(run: Run, images: int | None = None) -> Sequence[tuple[Any, Any]]:
    """Returns batches to score on; of other targets than classes as large as in training.

    They are ten images of each class, or as many of each as come to ``images``.
    """
    s, single = run.settings, run.task.kind == "class"
    a_class = 10 if images is None else math.ceil(images / run.data.n_classes)
    return run.data.few(a_class, seed=s.seed, batch_size=256 if single else s.batch_size // s.accumulate)


def begun(
    run: Run,
    model: nn.Module,
    optimizer: Optimizer,
    label: str,
    method: Method | None = None,
    *,
    first: int = 0,
    lead: int = 0,
) -> Trainer:
    """Returns the trainer of a network; where its state was saved, it goes on there: masked, or cut already.

    It begins with step ``first`` of the schedule, which begins anew after ``lead`` steps; ``label`` names its files.
    """
    given = label == "dense" and run.settings.weights is not None
    if not given:
        choose_threads(run)  # first: engines of one process share what accelerate knows of the last one
    trainer = Trainer(
        model,
        optimizer,
        run.data,
        run.settings,
        method=method,
        task=run.task,
        ranks=run.ranks,
        outlet=Outlet(
            checkpoint=run.folder / f"{label}.state",
            best=run.folder / BEST.format(label) if label in ("dense", "pruned") else None,
            facts=lambda: _facts(run, trainer),
            report=lambda step, total, entry: _report(run, trainer, label, entry),
        ),
    )
    trainer.lead, trainer.step = lead, first
    if run.settings.distill and label == "pruned":
        trainer.learn_from(run.teacher().to(run.device))
    run.report_data_notes()
    if given:
        return trainer
    torch.manual_seed(run.settings.seed + run.ranks.rank)
    saved = run.folder / f"{label}.state"
    state = run.ranks.once(lambda: load_state(saved) if saved.is_file() else None)
    if state is None:
        return trainer
    ranks = len(state["random"])
    if ranks != run.ranks.count:
        run.talk.note(
            f"{label} was saved by {ranks} process{'es' if ranks > 1 else ''} and goes on with {run.ranks.count}: the "
            "same images in the same order, equal up to rounding, no longer bit for bit"
        )
    if state["stage"] == "compact":
        trainer.replace(*shrink(model, run.structure, state["extra"]["keep"], optimizer))
        if method is not None:
            method.detach()
    trainer.load(state)
    return trainer


def _report(run: Run, trainer: Trainer, label: str, entry: dict[str, Any] | None) -> None:
    """Says how far a training is, and writes the figures of an epoch."""
    if entry is not None:
        run.report_data_notes()
        if run.ranks.first:
            run.metrics.write(label, trainer.history)
        entry = {**entry, "figure": run.task.title}
    run.talk.training(label, trainer.step, trainer.total_steps, entry, trainer.pace)


def choose_threads(run: Run) -> None:
    """Picks the number of training threads by timing, on a copy so that nothing of the run moves."""
    if run.device.type != "cpu" or run.ranks.count > 1:
        return
    path = run.folder / "threads.json"
    if path.is_file():
        torch.set_num_threads(read_threads(path))
        return
    model = network(run.settings, run.data.n_classes).to(run.device)
    rehearsal = Trainer(
        model,
        make_optimizer(model, run.settings),
        run.data,
        replace(run.settings, accumulate=1, ema=0.0, compile=False),
        task=run.task,
    )
    x, y = next(
        run.data.batches(0, run.settings.batch_size // run.settings.accumulate, seed=run.settings.seed)
    )
    threads = pick_threads(lambda: rehearsal.train_step((x, y)))
    run.talk.note(f"training with {threads} thread{'s' if threads > 1 else ''}")
    save_json(path, threads)


def _facts(run: Run, trainer: Trainer) -> dict[str, Any]:
    """Returns the predicted latency of the active units, where it is one, their share, and the FLOPs so far.

    FLOPs are a multiple of those of as many dense steps, by both accountings.
    """
    method = trainer.method
    if not isinstance(method, Method) or not method.log:
        return {"latency_us": None}
    timed = isinstance(method.pool, LatencyPool) and bool(method.reports)
    keep = trainer.extra.get("keep")  # of the compact network that trains on
    done = sum(steps for steps, _, _ in method.log) if keep is None else trainer.step
    compact = None if keep is None else run.macs({name: int(mask.sum()) for name, mask in keep.items()})
    return {
        "latency_us": method.reports[-1].used if timed else None,
        "budget_us": method.reports[-1].budget if timed else None,
        "density": method.alive.density,
        "train_flops": record.train_flops(
            method.log,
            run.active_macs(method),
            done,
            compact_macs=compact,
            paper_charges_gradient=method.paper_charges_gradient,
        ),
    }


def cut(run: Run, trainer: Trainer, method: Method) -> None:
    """Cuts the removed units out of a network in training, once compact and masked network agree."""
    compact, optimizer = method.shrink()
    if run.ranks.first:
        verify(method.model, run.structure, method.keep, run.example, compact=compact, sizes=(1, 2, 5))
    trainer.replace(compact, optimizer)


def close(run: Run, model: nn.Module, cost: LatencyCost, candidate: Candidate) -> dict[str, Any]:
    """Measures the candidate beside the dense network and solves again until it meets the budget.

    Returns:
        What the results say of it: its rounds, the latencies that are predicted and allowed, the first calibration.
    """
    run.talk.note("measuring the candidate beside the dense network")
    budget_us, fitted, rounds = run.budget_us(cost), cost.calibration, run.settings.rounds
    # of several ranks, the first one times
    target = run.target if run.ranks.count == 1 else cast(Target, _FirstRank(run.target, run.ranks))
    cost, turns = close_loop(
        model, cost, run.example, candidate, budget_us=budget_us, target=target, rounds=rounds,
        progress=run.talk.note,
    )  # fmt: skip
    for turn in turns:
        run.talk.note(
            f"round {turn.round}: predicted {turn.predicted_us:.0f} µs, measured {turn.measured_us:.0f} µs, "
            f"wanted {turn.lower_us:.0f} … {turn.upper_us:.0f} µs"
        )
    return {
        "closed_loop": [asdict(turn) for turn in turns],
        **predicted(cost, candidate.counts),
        "calibration": line_values(fitted) if fitted else None,
        "dense_us": cost.dense_us,
        "budget_us": budget_us,
        "limits": used_of(cost.also, run.structure, candidate.counts),
    }


class _FirstRank:
    """Times networks on the first rank; every rank gets its answer, and solves by it."""

    def __init__(self, target: Target, ranks: Ranks) -> None:
        self._target, self._ranks = target, ranks

    def ready(self, model: nn.Module, example: tuple[Any, ...]) -> Any:
        return self._target.ready(model, example) if self._ranks.first else None

    def compare(self, networks: Mapping[str, Any], example: tuple[Any, ...], *, rounds: int) -> Comparison:
        return self._ranks.once(lambda: self._target.compare(networks, example, rounds=rounds))
