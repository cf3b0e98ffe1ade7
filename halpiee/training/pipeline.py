"""What a run does, in order: profile, calibrate, train dense and to a budget, shrink, export, measure, report.

Every stage leaves a file; a stage whose file is there is not done again, so an interrupted run goes on. Dense and
pruned networks see the same data in the same order with the same recipe. To price a network its ops are profiled, and
the sum of them is calibrated to whole networks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

import latency
from halpiee.data.functions import FunctionSource
from halpiee.deploy.calibrate import calibrate
from halpiee.deploy.target import Target
from halpiee.errors import BudgetError, HalpieeError, HoldoutWarning
from halpiee.inputs import at_batch
from halpiee.limits import Network, check_also, limits_of, offered
from halpiee.methods.allocator import bind, smallest_us
from halpiee.methods.channels import small_dense, uniform_counts
from halpiee.methods.dynamic import Static
from halpiee.methods.method import Method
from halpiee.methods.registry import METHODS
from halpiee.methods.rewind import Retrain
from halpiee.report.values import read_report
from halpiee.selection.cost import Also, LatencyCost
from halpiee.selection.options import fixed_sides
from halpiee.sparsity.distribution import Latency
from halpiee.sparsity.granularity import Channels
from halpiee.structure.groups import Structure, macs
from halpiee.structure.plan import Plan, Selection
from halpiee.structure.shrink import keep_first, shrink
from halpiee.tasks import named as task_named
from halpiee.training import record
from halpiee.training.build import densities, given_mask, initial, make_optimizer, weights_of
from halpiee.training.checkpoint import load_weights, save_json
from halpiee.training.job import PROFILE, Run, save_plan
from halpiee.training.preflight import check_cells, check_images
from halpiee.training.record import line_values, read_calibration
from halpiee.training.results import write_report
from halpiee.training.stage import Stage, Training, begun, do
from halpiee.training.to_latency import Budgeted, Early, Repaired, Scaled
from halpiee.training.to_sparsity import MASK, PLAN, Masked, Rewound, retrain_of
from latency.backends.torch.network import restored
from latency.inspect import inspect


def execute(run: Run) -> dict[str, Any]:
    """Does every stage of a run that is still to do, and returns its report; the folder is its own meanwhile.

    Raises:
        BudgetError: no network reaches the budget; the profile is kept.
        OutputInUseError: another run writes the folder.
        WriteError: the disk is full; what was saved before is kept.
    """
    with run.owned(), run.ranks.heard():
        if run.ranks.once(lambda: (run.folder / Report.file).is_file()):
            run.talk.note(f"{run.folder} is finished; showing its report")
        else:
            do(Report(*trained(run)), run)
        return run.ranks.once(lambda: read_report(run.folder))


def trained(run: Run) -> tuple[Dense | None, Training]:
    """Does every stage before the report, and returns those that left the dense network, if any, and the pruned one."""
    s = run.settings
    for text in s.lowered:
        run.data_notes[text] = None
        run.talk.note(text)
    source = task_named(s.task).source(s.data, s.size)
    if isinstance(source, FunctionSource):  # of others the look at the files has told
        check_images(s, run.shape, run.data.n_classes)
    if s.method == "iee" and s.from_run is None:
        s.cycle_steps(run.total_steps)
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
    """Returns the stage that makes the pruned network, by the kind of the method; without a cost, to a sparsity."""
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


class Dense(Training):
    """Trains the dense network, or scores the given weights.

    The weights of the step that is trained ``again`` later are kept in the folder as well.
    """

    name = "dense"
    file = "dense.json"

    def __init__(self, again: Retrain | None = None) -> None:
        self._step = again.weights if again is not None and isinstance(again.weights, int) else 0

    def headline(self, run: Run) -> str:
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


class Narrow(Training):
    """Trains the small dense network from the start, at equal parameters or, with a cost, within the latency."""

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
                **record.predicted(cost, counts),
                "dense_us": cost.dense_us,
                "next_step_us": cost.next_step(counts, cost.candidates),
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
    """Trains the pruned network of a finished run, in the folder ``source``, on: compact, or under its mask."""

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


class Report(Stage):
    """Exports, measures dense and pruned side by side, and writes the report.

    The stage of the dense network is ``None`` without a baseline.
    """

    name, title = "export", "Export and measure"
    file = "report.json"

    def __init__(self, dense: Training | None, pruned: Training) -> None:
        self._dense, self._pruned = dense, pruned

    def run(self, run: Run) -> None:
        """Writes everything."""
        dense = self._dense
        run.ranks.once(
            lambda: write_report(run, None if dense is None else dense.result(run), self._pruned.result(run))
        )


Measure = Callable[[Mapping[str, Tensor]], tuple[float, float]]
"""See ``Also.measure``."""


class Profiled(Stage):
    """Measures the ops of the network, or reads the profile that was given; ``profile`` is the result."""

    name, title = "profile", "Profile"
    profile: latency.Profile

    def run(self, run: Run) -> None:
        """Measures the cells that are not in the folder yet."""
        structure = run.structure  # of every rank
        self.profile = run.ranks.once(lambda: self._measured(run, structure))

    def _measured(self, run: Run, structure: Structure) -> latency.Profile:
        s = run.settings
        if s.profile is not None:
            profile = latency.Profile.load(Path(s.profile))
            check_cells(profile, structure, s, run.shape, classes=run.data.n_classes)
            return profile
        with restored(), warnings.catch_warnings():
            warnings.simplefilter("ignore", HoldoutWarning)
            profile = latency.sweep(
                [timed.op for timed in structure.ops],
                backend=run.target.backend,
                settings=run.target.settings,
                path=run.folder / PROFILE,
                resume=True,
                threads=run.target.threads,
                fixed=fixed_sides(structure),
                progress=run.talk.sweeping,
            )
        warning = inspect(profile).holdout_warning
        if warning is not None:
            run.talk.note(warning)
        return profile


class Calibrated(Stage):
    """Fits the sum of the ops by a cost to whole networks, measured dense and shrunk at random."""

    name, title = "calibrate", "Calibrate"
    file = "calibration.json"

    def __init__(self, cost: LatencyCost) -> None:
        self._cost = cost

    def run(self, run: Run) -> None:
        """Measures the networks and writes the line."""
        run.ranks.once(lambda: self._measure(run))

    def _measure(self, run: Run) -> None:
        s = run.settings
        found = calibrate(
            run.build(),
            self._cost,
            run.example,
            networks=s.calibration_nets,
            target=run.target,
            rounds=s.rounds,
            seed=s.seed,
            progress=run.talk.note,
        )
        save_json(run.folder / self.file, line_values(found))

    def cost_of(self, run: Run) -> LatencyCost:
        """Returns the calibrated cost, and notes its figures."""
        line = run.ranks.once(lambda: read_calibration(run.folder / self.file))
        cost = self._cost.with_calibration(line)
        run.talk.note(
            f"dense {cost.dense_us:.0f} µs; whole = {line.a_us:.1f} µs + {line.b:.3f} · Σ"
            + (f" up to {line.bend[0][1]:.0f} µs, bent to dense beyond" if line.bend else "")
            + f", worst residual {line.worst:.1%}"
        )
        return cost


def limited(run: Run, cost: LatencyCost, profile: latency.Profile) -> LatencyCost:
    """Returns the cost with the widths that may be chosen, under the limits beside the latency.

    Limits on other profiles are timed in the closed loop on a machine like the one that they were measured on;
    elsewhere a note says so, and they hold as predicted.
    """
    s = run.settings
    cost = offered(cost, s)
    also = []
    for one in limits_of(s.also, Network(run.structure, run.at_batch, profile)):
        measure, why = _measured_here(run, one)
        if why:
            run.talk.note(f"--also {one.name} is not timed here ({why}); its limit holds as predicted")
        also.append(replace(one, measure=measure))
    narrowest = {n: (max if n in run.protected else min)(k) for n, k in cost.candidates.items()}
    check_also(also, run.structure, narrowest)
    return cost.limited(*also)


def _measured_here(run: Run, one: Also) -> tuple[Measure | None, str]:
    """Returns what times a limit on this machine, or why nothing does; of what is counted, neither."""
    profile = one.cost.profile
    if not isinstance(one.cost, LatencyCost) or not isinstance(profile, latency.Profile):
        return None, "an energy cannot be timed" if one.name.startswith("energy") else ""
    try:
        target = Target.of_profile(profile)
        profile.require(target.environment)
    except HalpieeError as error:
        return None, str(error).partition(";")[0]
    n = one.cost.structure.batch
    example = at_batch(run.example, n)

    def timed(keep: Mapping[str, Tensor]) -> tuple[float, float]:
        model = run.build().eval()
        ready = {
            "dense": target.ready(model, example),
            "pruned": target.ready(shrink(model, run.structure, keep), example),
        }
        found = target.compare(ready, example, rounds=run.settings.rounds)
        dense_us = found["dense"].median_us
        return dense_us, dense_us / found.ratio("dense", "pruned").median

    # of several ranks the first one measures, and every rank solves by it
    return lambda keep: run.ranks.once(lambda: timed(keep)), ""


def check_reachable(run: Run, cost: LatencyCost) -> None:
    """Refuses a budget that no network reaches before anything is trained; the profile is not lost.

    Raises:
        BudgetError: what was asked, and the smallest latency that can be reached.
    """
    if run.first:
        run.talk.note(f"first group {run.first[0]} stays whole; --no-protect-first frees it")
    budget_us = run.budget_us(cost)
    try:
        if METHODS[run.settings.method].kind == "cut":  # also cuts what masks cannot train
            free = [name for name in cost.candidates if name not in run.protected]
            smallest_us(cost, free, budget_us, by="a cut")
        else:
            bind(Latency(us=budget_us), Channels(run.build(), run.structure, protect=run.protected), cost)
    except BudgetError as error:
        kept = f" (what was measured is kept in {run.folder}; it goes on from there)"
        raise BudgetError(f"{error}{'' if run.settings.profile else kept}", minimum=error.minimum) from error
