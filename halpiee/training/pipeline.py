"""What a run does, in order: profile, calibrate, train dense and to a budget, shrink, export, measure, report.

Every stage leaves a file; a stage whose file is there is not done again, so an interrupted run goes on. Dense and
pruned networks see the same data in the same order with the same recipe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halpiee.data.functions import FunctionSource
from halpiee.methods.allocator import LatencyPool
from halpiee.methods.channels import keep_first, narrowed, small_dense, uniform_counts
from halpiee.methods.dynamic import Static
from halpiee.methods.method import Method
from halpiee.methods.registry import METHODS
from halpiee.methods.rewind import REINIT, Pruning, Retrain, rewinding
from halpiee.reconstruction.repair import RepairedLayer
from halpiee.reconstruction.rounds import InRounds, Rounds
from halpiee.report.values import read_report
from halpiee.saliency.registry import named
from halpiee.selection.choose import scaled
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.mask import Mask
from halpiee.structure.groups import macs
from halpiee.structure.plan import Plan, Selection
from halpiee.structure.shrink import shrink
from halpiee.structure.verification import verify
from halpiee.tasks import named as task_named
from halpiee.training import record
from halpiee.training.build import (
    budget_of,
    densities,
    draw_again,
    given_mask,
    initial,
    method_of,
    weights_of,
)
from halpiee.training.checkpoint import load_weights
from halpiee.training.config import Settings
from halpiee.training.job import Run, save_plan
from halpiee.training.loop import evaluate
from halpiee.training.preflight import check_images
from halpiee.training.price import Calibrated, Profiled, check_reachable, limited
from halpiee.training.record import read_log
from halpiee.training.results import write_report
from halpiee.training.schedule import make_optimizer
from halpiee.training.stage import Stage, Training, begun, close, cut, do, leave, material

__all__ = [
    "Budgeted",
    "Dense",
    "Early",
    "Masked",
    "Narrow",
    "Repaired",
    "Report",
    "Rewound",
    "Scaled",
    "Tuned",
    "execute",
    "priced",
    "pruning_of",
    "retrain_of",
    "trained",
]


def execute(run: Run) -> dict[str, Any]:
    """Does every stage of a run that is still to do, and returns its report; the folder is its own meanwhile.

    Raises:
        BudgetError: no network reaches the budget; the profile is kept.
        OutputInUseError: another run writes the folder.
        WriteError: the disk is full; what was saved before is kept.
    """
    with run.owned(), run.ranks.heard():
        finished = run.ranks.once(lambda: _finished(run))
        if finished is not None:
            run.talk.note(f"{run.folder} is finished; showing its report")
            return finished
        do(Report(*trained(run)), run)
        return run.ranks.once(lambda: read_report(run.folder))


def _finished(run: Run) -> dict[str, Any] | None:
    """Returns the report of a run that is done."""
    return read_report(run.folder) if (run.folder / Report.file).is_file() else None


def trained(run: Run) -> tuple[Dense | None, Training]:
    """Does every stage before the report, and returns those that left the dense network, if any, and the pruned one."""
    s = run.settings
    source = task_named(s.task).source(s.data, s.size)
    if isinstance(source, FunctionSource):  # of others the look at the files has told
        check_images(s, run.data.shape, run.data.n_classes)
    if s.method == "iee" and s.from_run is None:
        s.cycle.steps(run.total_steps)
    cost = priced(run) if s.budget is not None else None
    again = retrain_of(s, run.total_steps)
    dense = Dense(again) if s.baseline or s.weights or again is not None else None
    if dense is not None:
        do(dense, run)
    pruning = pruning_of(run, cost)
    do(pruning, run)
    return dense, pruning


def priced(run: Run) -> LatencyCost:
    """Returns the calibrated latency model; refuses a budget that nothing reaches."""
    run.protected  # noqa: B018  layers that are not there are refused before anything is measured
    profiled = Profiled()
    do(profiled, run)
    calibrated = Calibrated(LatencyCost(run.structure, profiled.profile))
    do(calibrated, run)
    cost = limited(run, calibrated.cost_of(run), profiled.profile)
    check_reachable(run, cost)
    return cost


def pruning_of(run: Run, cost: LatencyCost | None) -> Training:
    """Returns the stage that makes the pruned network, by the kind of the method.

    Args:
        run: of the settings that name the method.
        cost: the latency model of a run to a latency; ``None``: it is to a sparsity.
    """
    if run.settings.from_run is not None:
        return Tuned(Path(run.settings.from_run))
    kind = METHODS[run.settings.method].kind
    if kind == "narrow":
        return Scaled(cost) if cost is not None and run.settings.method == "scaled" else Narrow(cost)
    if kind == "rewind":
        return Rewound()
    if cost is None:
        return Masked()
    if kind == "cut":
        return Repaired(cost) if run.settings.method == "repair" else Early(cost)
    return Budgeted(cost)


def retrain_of(settings: Settings, total_steps: int) -> Retrain | None:
    """Returns which weights are trained again from where on the schedule; ``None`` for methods that do not."""
    m, method = settings.masks, METHODS[settings.method]
    if method.kind != "rewind":
        return None
    if m.ablation == "reinit":
        return REINIT
    typed = m.rewind if m.rewind is not None else max(1, round(PAPERS_STEP * total_steps))
    weights = method.load().preset.get("weights", typed)
    return Retrain(weights, "step" if isinstance(weights, int) and not m.restart else "start")


PLAN, MASK = "plan.json", "mask.safetensors"
"""What a run was pruned by: channels, or single weights."""

PAPERS_STEP = 1000 / 62_400
"""Step 1000 of 160 epochs of CIFAR-10 in batches of 128 (arXiv 2009.08576, table A.3), as a share."""


class Dense(Training):
    """Trains the dense network, or scores the given weights.

    Args:
        again: what is trained again later: the weights of its step are kept in the folder as well.
    """

    name = "dense"
    file = "dense.json"

    def __init__(self, again: Retrain | None = None) -> None:
        self._step = again.weights if again is not None and isinstance(again.weights, int) else 0

    def title(self, run: Run) -> str:
        """Returns whether it is trained."""
        return "Given weights" if run.settings.weights else "Train dense"

    def start(self, run: Run) -> None:
        """Builds the network; goes on where it was saved."""
        model = initial(run.settings, run.data.n_classes, say=run.talk.note).to(run.device)
        self.trainer = begun(run, model, make_optimizer(model, run.settings), self.name)

    def run(self, run: Run) -> None:
        """Trains, unless weights were given."""
        if run.settings.weights:
            return
        kept = "dense-step.safetensors"
        if self._step and not run.ranks.once(lambda: (run.folder / kept).is_file()):
            self.trainer.run(until=lambda t: t.step >= self._step)
            run.keep(kept, self.trainer.model.state_dict())
        self.trainer.run()


class Masked(Training):
    """Trains to a sparsity: masks of single weights to the end, or filters that are cut out half way."""

    method: Method
    before: Sequence[tuple[int, str, Mapping[str, int]]] = ()
    """Log of what was trained before this training: the dense network that is pruned after training."""

    def start(self, run: Run) -> None:
        """Builds network and method; goes on where they were saved."""
        s = run.settings
        model = initial(s, run.data.n_classes).to(run.device)
        if s.masks.mask is not None and s.masks.ablation == "reinit":
            draw_again(s, run.data.n_classes, model, s.seed)
        optimizer = make_optimizer(model, s)
        self.method = method_of(s, model, run.total_steps, material(run))(model, optimizer)
        lead = s.masks.at if s.masks.restart else 0
        self.trainer = begun(run, model, optimizer, self.name, self.method, lead=lead)

    def run(self, run: Run) -> None:
        """Trains; filters are cut out as soon as their choice is final."""
        if isinstance(self.method.units, Filters) and self.trainer.stage == "masked":
            self.trainer.run(until=lambda _: self.method.finished)
            filters = {path: int(mask.sum()) for path, mask in self.method.alive.items()}
            cut(run, self.trainer, self.method)
            self.trainer.extra = {"keep": self.method.keep, "filters": filters, "units": self._units()}
            self.trainer.save()
        self.trainer.run()

    def _units(self) -> dict[str, Any]:
        """Returns how many units are kept, of how many, and how many were asked for."""
        method = self.method
        return {
            "kept": sum(method.alive.counts.values()),
            "asked": int(method.pool.total),
            "total": sum(math.prod(shape) for shape in method.units.sizes.values()),
            "densities": densities(method),
            "left_out": dict(method.units.left_out),
        }

    def facts(self, run: Run) -> dict[str, Any]:
        """Returns counts, the units that are kept, events and training FLOPs."""
        method, keep = self.method, self.trainer.extra.get("keep")
        counts = {} if keep is None else {name: int(mask.sum()) for name, mask in keep.items()}
        units = self.trainer.extra.get("units") or self._units()
        effective = (
            None if keep is not None else record.effective_macs(macs(run.structure), units["densities"])
        )
        return {
            "counts": counts,
            "sparsity": units,
            "effective_macs": effective,
            "events": record.plain_events(method.reports),
            "train_flops_ratio": record.train_flops(
                [*self.before, *method.log],
                run.active_macs(method),
                self.trainer.schedule_steps,
                compact_macs=run.macs(counts),
                paper_charges_gradient=method.paper_charges_gradient,
            ),
        }

    def finish(self, run: Run) -> None:
        """Writes the plan of the cut network, or the mask, beside the weights."""
        keep = self.trainer.extra.get("keep")
        if keep is not None:
            save_plan(run, Selection(keep))
        else:
            run.keep(MASK, self.method.alive)
        super().finish(run)


class Rewound(Masked):
    """Prunes the trained dense network and trains it again, in rounds.

    Learning-rate rewinding keeps the final weights and begins the schedule anew; lottery-ticket rewinding takes the
    weights of a step and the schedule from there (``--restart``: from the start); the lottery ticket is that of step 0.
    In n rounds each prunes to ρ^(k/n) and trains again. Every training leaves its weights in the folder; the training
    that is pruned costs what it costs, and counts.
    """

    def start(self, run: Run) -> None:
        """Leaves everything to the rounds."""

    def run(self, run: Run) -> None:
        """Prunes and trains in rounds; rounds whose results are there are not trained again."""
        s = run.settings
        m = s.masks
        retrain = retrain_of(s, run.total_steps)
        assert retrain is not None
        model = initial(s, run.data.n_classes).to(run.device)
        units = weights_of(model, s)
        how = Pruning(
            budget=budget_of(s),
            criterion=named(m.criterion or "magnitude", s.seed),
            batches=run.data.few(10, seed=s.seed),
            rounds=m.rounds or 1,
            shuffle=m.ablation == "shuffle",
            units=units,
            seed=s.seed,
        )
        before = [] if s.weights else [(run.total_steps, "train", Mask.full(units.sizes).counts)]
        run.fill(model, "dense.safetensors")
        for k, alive in enumerate(rewinding(model, how, partial(_rewound, run, retrain)), start=1):
            last = k == how.rounds
            label = self.name if last else f"round{k}"
            log = run.ranks.once(partial(_log, run, label))
            if log is not None:
                before += log
                run.fill(model, f"{label}.safetensors")
                continue
            self.before = tuple(before)
            self.method = Static(model, make_optimizer(model, s), mask=alive, units=units, seed=s.seed)
            optimizer = self.method.optimizer
            self.trainer = begun(run, model, optimizer, label, self.method, first=retrain.first)
            self.trainer.run()
            self.method.detach()
            if not last:
                run.keep(f"{label}.safetensors", model.state_dict())
                accuracy = self.trainer.history[-1]["accuracy"]
                run.note(f"{label}.json", {"accuracy": accuracy, "log": self.method.log})
                run.forget(f"{label}.state")
                before += self.method.log


def _log(run: Run, label: str) -> list[tuple[int, str, dict[str, int]]] | None:
    """Returns what a round logged that is done."""
    path = run.folder / f"{label}.json"
    return read_log(path) if path.is_file() else None


def _rewound(run: Run, retrain: Retrain, model: nn.Module) -> None:
    """Writes the weights that are trained again into the model; the final ones are there."""
    s = run.settings
    if retrain.weights == "fresh":
        draw_again(s, run.data.n_classes, model, s.seed)
    elif retrain.weights == 0:
        model.load_state_dict(initial(s, run.data.n_classes).state_dict())
    elif retrain.weights != "final":
        run.fill(model, "dense-step.safetensors")


class Narrow(Training):
    """Trains the small dense network from the start, at equal parameters or within the latency.

    Args:
        cost: the latency model, for a latency.
    """

    def __init__(self, cost: LatencyCost | None) -> None:
        self._cost = cost

    def start(self, run: Run) -> None:
        """Builds the narrow network; goes on where it was saved."""
        s, cost = run.settings, self._cost
        self._params = 1 - (s.masks.sparsity or 0.0)
        limit: dict[str, Any] = {"params": self._params}
        if cost is not None:
            limit = {"latency_us": run.budget_us(cost), "cost": cost, "protect": run.protected}
        self._counts = uniform_counts(run.structure, **limit)
        model = small_dense(initial(s, run.data.n_classes), run.structure, **limit).to(run.device)
        self.trainer = begun(run, model, make_optimizer(model, s), self.name)

    def facts(self, run: Run) -> dict[str, Any]:
        """Returns counts, FLOPs, and the latency or the parameters that were asked for."""
        cost, counts = self._cost, self._counts
        ratio = run.macs(counts) / run.macs({})
        found: dict[str, Any] = {
            "counts": counts,
            "events": [],
            "train_flops_ratio": {"paper": ratio, "strict": ratio},
        }
        if cost is not None:
            return {
                **found,
                "sparsity": None,
                "predicted_us": cost.total_us(counts),
                "dense_us": cost.dense_us,
                "next_step_us": cost.next_step_us(counts, cost.candidates),
            }
        whole = sum(p.numel() for p in run.build().parameters())
        kept = sum(p.numel() for p in self.trainer.model.parameters())
        asked = int(self._params * whole)
        return {**found, "sparsity": {"kept": kept, "asked": asked, "total": whole, "densities": {}}}

    def finish(self, run: Run) -> None:
        """Writes the plan beside the weights."""
        used = () if self._cost is None else (self._cost.total_us(self._counts),)
        save_plan(run, Selection(keep_first(run.structure, self._counts), used))
        super().finish(run)


class Tuned(Training):
    """Trains the pruned network of a finished run on: compact, or under its mask.

    Args:
        source: folder of that run.
    """

    method: Method | None = None

    def __init__(self, source: Path) -> None:
        self._source = source

    def start(self, run: Run) -> None:
        """Builds the network with its weights; goes on where it was saved."""
        s, source = run.settings, self._source
        plan = run.ranks.once(lambda: Plan.load(source / PLAN) if (source / PLAN).is_file() else None)
        model = run.build() if plan is None else plan.apply(run.build())
        model.load_state_dict(run.ranks.once(lambda: load_weights(source / "pruned.safetensors")))
        model.to(run.device)
        optimizer = make_optimizer(model, s)
        mask = run.ranks.once(lambda: given_mask(str(source)) if (source / MASK).is_file() else None)
        if mask is not None:
            self.method = Static(model, optimizer, mask=mask, units=weights_of(model, s), seed=s.seed)
        self._plan = plan
        self.trainer = begun(run, model, optimizer, self.name, self.method)

    def facts(self, run: Run) -> dict[str, Any]:
        """Returns counts, FLOPs, and how much of the dense network it is."""
        counts = {} if self._plan is None else self._plan.counts
        whole = sum(p.numel() for p in run.build().parameters())
        kept = sum(p.numel() for p in self.trainer.model.parameters())
        shares = {} if self.method is None else densities(self.method)
        if self.method is not None:
            whole = sum(math.prod(shape) for shape in self.method.units.sizes.values())
            kept = sum(self.method.alive.counts.values())
        effective = record.effective_macs(macs(run.structure), shares) if shares else run.macs(counts)
        ratio = effective / run.macs({})
        return {
            "counts": counts,
            "events": [],
            "train_flops_ratio": {"paper": ratio, "strict": ratio},
            "effective_macs": effective if shares else None,
            "sparsity": {"kept": kept, "asked": kept, "total": whole, "densities": shares},
        }

    def finish(self, run: Run) -> None:
        """Writes the plan or the mask that it was pruned by beside the weights."""
        if self._plan is not None and run.ranks.first:
            self._plan.save(run.folder / PLAN, overwrite=True)
        if self.method is not None:
            run.keep(MASK, self.method.alive)
        super().finish(run)


BETTER = (
    "from scratch a uniformly narrower network (--method small-dense) had more accuracy at the same latency in the "
    "comparison of docs/results.md, and one of fewer blocks (--method scaled) more still"
)
"""What a run says that trains channels away from scratch."""


class Budgeted(Training):
    """Trains to a latency: IEE or HALP, the closed loop, the cut, the rest of the training at compact size.

    Args:
        cost: the calibrated latency model.
    """

    method: Method

    def __init__(self, cost: LatencyCost) -> None:
        self._cost = cost

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
            closed = close(run, self.method.model, self._cost, _Chosen(self.method))
            cut(run, self.trainer, self.method)
            last = self.method.reports[-1]
            found = {"next_step_us": last.next_step, "gap": last.gap, "keep": dict(self.method.alive)}
            self.trainer.extra = {**closed, **found}
            self.trainer.save()
        self.trainer.run()

    def facts(self, run: Run) -> dict[str, Any]:
        """Returns counts, latencies, events and training FLOPs."""
        extra = {key: value for key, value in self.trainer.extra.items() if key != "keep"}
        counts = {name: int(mask.sum()) for name, mask in self.trainer.extra["keep"].items()}
        flops = record.train_flops(
            self.method.log, run.macs, self.trainer.total_steps, compact_macs=run.macs(counts)
        )
        return {
            "counts": counts,
            "events": record.events(self.method.reports),
            "train_flops_ratio": flops,
            **extra,
        }

    def finish(self, run: Run) -> None:
        """Writes the plan beside the weights."""
        extra = self.trainer.extra
        used, most = (extra["predicted_us"],), (extra["budget_us"],)
        save_plan(run, Selection(extra["keep"], used, most, gap=extra["gap"]))
        super().finish(run)


class _Chosen:
    """The method's selection as the closed loop sees it."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._turns = [(method.alive, method.reports[-1])]

    @property
    def counts(self) -> dict[str, int]:
        return self._method.alive.counts

    @property
    def keep(self) -> dict[str, Tensor]:
        return self._method.keep

    @property
    def next_step_us(self) -> float:
        return self._method.reports[-1].next_step

    def solve_again(self, cost: LatencyCost) -> None:
        assert isinstance(self._method.pool, LatencyPool)
        self._method.choose_again(self._method.pool.with_cost(cost))
        self._turns.append((self._method.alive, self._method.reports[-1]))

    def go_back(self, turn: int) -> None:
        self._method.adopt(*self._turns[turn])


class Repaired(Training):
    """Meets a latency without training: cut, measure, solve every layer again from unlabelled images.

    Args:
        cost: the calibrated latency model.
    """

    def __init__(self, cost: LatencyCost) -> None:
        self._cost = cost

    def title(self, run: Run) -> str:
        """Returns what is done instead of training."""
        return "Cut and repair"

    def run(self, run: Run) -> None:
        """Cuts the given network, measures, cuts again until it meets the budget, and repairs."""
        self._begun = time.perf_counter()
        self._cut, self._facts = chosen(run, run.dense(), self._cost)
        self._compact = self._cut.repaired(_telling(run, self._facts))

    def finish(self, run: Run) -> None:
        """Writes plan, weights and results."""
        cut = self._cut
        save_plan(run, cut.selection)
        nothing = {"events": [], "train_flops_ratio": {"paper": 0.0, "strict": 0.0}}
        facts = {"counts": cut.counts, **nothing, **self._facts}
        leave(run, self.name, self._compact, [], time.perf_counter() - self._begun, facts)


CUT_AT = 0.25
"""Share of a training from scratch that is dense before the cut: docs/decisions/0120-an-early-cut.md."""

ROUNDS = 1
"""Rounds of a cut in a training: what they win, training wins as well."""


class Early(Training):
    """Trains the whole network for a while, cuts it to the latency, and trains on.

    Args:
        cost: the calibrated latency model.
    """

    def __init__(self, cost: LatencyCost) -> None:
        self._cost = cost

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
        if run.settings.masks.repair:
            compact.load_state_dict(cut.repaired(_telling(run, facts)).state_dict())
        trainer.replace(compact, slim)
        figure, _ = evaluate(compact, run.data, run.task)
        run.talk.note(
            f"cut to the budget at step {trainer.step}: {run.task.title} {figure:.1%} before training goes on"
        )
        trainer.extra = {"keep": dict(cut.keep), "accuracy_cut": figure, **facts}
        trainer.save()

    def facts(self, run: Run) -> dict[str, Any]:
        """Returns counts, latencies and training FLOPs."""
        extra = self.trainer.extra
        counts = {name: int(mask.sum()) for name, mask in extra["keep"].items()}
        log = [(self._whole, "train", dict[str, int]())]
        flops = record.train_flops(log, run.macs, self.trainer.total_steps, compact_macs=run.macs(counts))
        known = {key: value for key, value in extra.items() if key != "keep"}
        return {"counts": counts, "events": [], "train_flops_ratio": flops, **known}

    def finish(self, run: Run) -> None:
        """Writes the plan beside the weights."""
        extra = self.trainer.extra
        used, most = (extra["predicted_us"],), (extra["budget_us"],)
        save_plan(run, Selection(extra["keep"], used, most, gap=extra["gap"]))
        super().finish(run)


class Scaled(Early):
    """Trains a network of fewer blocks and channels from scratch; the closed loop finds the largest within the latency.

    Args:
        cost: the calibrated latency model.
    """

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
        return cost.next_step_us(counts, {name: cost.candidates[name] for name, k in counts.items() if k})

    def solve_again(self, cost: LatencyCost) -> None:
        self._cost = cost
        self._turns.append(scaled(cost, self._budget_us, protect=self._run.protected))

    def go_back(self, turn: int) -> None:
        self._turns.append(self._turns[turn])


def chosen(
    run: Run, model: nn.Module, cost: LatencyCost, *, labelled: bool = False
) -> tuple[Rounds, dict[str, Any]]:
    """Chooses what stays within the budget, measures it, and proves the cut.

    Args:
        run: whose budget and images it is.
        model: the whole network.
        cost: calibrated.
        labelled: whether scores take the labels of the images, or the network's own answers.

    Returns:
        The cut, its layers not solved yet, and what a report says of it.
    """
    images, scored, labels = _images(run)
    cut = Rounds(
        model.to(run.device),
        run.structure,
        cost,
        run.budget_us(cost),
        images=images,
        scored=scored,
        labels=labels if labelled else None,
        how=_how(run),
        note=run.talk.note,
    )
    closed = close(run, model, cost, cut)
    verify(model, run.structure, cut.keep, tuple(x.to(run.device) for x in run.example), sizes=(1, 2, 5))
    return cut, {"repaired": [], **closed, "next_step_us": cut.next_step_us, "gap": cut.selection.gap}


def _telling(run: Run, facts: dict[str, Any]) -> Callable[[RepairedLayer], None]:
    """Returns what is told of each layer: its place is in the report, and a layer that stays as it is gets a line."""

    def tell(layer: RepairedLayer) -> None:
        facts["repaired"].append(_values(layer))
        if layer.skipped is not None:
            run.talk.note(f"{layer.name} keeps its cut weights: {layer.skipped}")

    return tell


def _how(run: Run) -> InRounds:
    s = run.settings
    rounds = s.masks.rounds or (None if s.method == "repair" else ROUNDS)
    given: dict[str, Any] = {"rounds": rounds, "criterion": s.masks.criterion, "value": s.masks.value}
    known = {key: value for key, value in given.items() if value is not None}
    return InRounds(**known, protect=run.protected, widths=s.masks.widths, seed=s.seed)


def _images(run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """Returns training images to solve from, twice as many others to score on, and the labels of these.

    Where there are no others, the same ones serve for both.
    """
    n = run.settings.images
    order = torch.randperm(run.data.n_train, generator=torch.Generator().manual_seed(run.settings.seed))
    solved, scored = order[:n], order[n : 3 * n]
    return (run.data.at(solved)[0], *run.data.at(scored if len(scored) else solved))


def _values(layer: RepairedLayer) -> dict[str, Any]:
    """Returns what became of a layer as JSON values: no ridge where the cut weights were best, no errors if skipped."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(layer).items()
    }


class Report(Stage):
    """Exports, measures dense and pruned side by side, and writes the report.

    Args:
        dense: the stage of the dense network, or ``None`` without a baseline.
        pruned: that of the pruned network.
    """

    name = "export"
    file = "report.json"

    def __init__(self, dense: Training | None, pruned: Training) -> None:
        self._dense, self._pruned = dense, pruned

    def title(self, run: Run) -> str:
        """Returns what is done."""
        return "Export and measure"

    def run(self, run: Run) -> None:
        """Writes everything."""
        run.ranks.once(lambda: self._write(run))

    def _write(self, run: Run) -> None:
        dense = None if self._dense is None else self._dense.result(run)
        write_report(run, dense, self._pruned.result(run))
