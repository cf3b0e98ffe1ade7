"""What a run does, in order: profile, calibrate, train dense and to a budget, shrink, export, measure, report.

Every stage leaves a file; a stage whose file is there is not done again, so an interrupted run goes on. Dense and
pruned networks see the same data in the same order with the same recipe.

Rewinding: learning-rate rewinding keeps the final weights and begins the schedule anew; lottery-ticket rewinding takes
the weights of a step and the schedule from there (``--restart``: from the start); the lottery ticket is that of step 0.
In n rounds each prunes to ρ^(k/n) and trains again. Every training leaves its weights in the run's folder; the
training that is pruned costs what it costs, and counts.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import latency
from halpiee.data.functions import FunctionSource
from halpiee.data.sources import find
from halpiee.deploy.calibrate import Candidate, Round, calibrate, close_loop
from halpiee.deploy.target import restored
from halpiee.errors import BudgetError, HoldoutWarning
from halpiee.methods.allocator import LatencyPool, bind, smallest_us
from halpiee.methods.channels import keep_first, small_dense, uniform_counts
from halpiee.methods.dynamic import Static
from halpiee.methods.method import Method
from halpiee.methods.registry import METHODS
from halpiee.methods.rewind import REINIT, Pruning, Retrain, rewinding
from halpiee.reconstruction.repair import RepairedLayer
from halpiee.reconstruction.rounds import InRounds, Rounds
from halpiee.report.values import read_report
from halpiee.saliency.registry import named
from halpiee.selection.cost import LatencyCost
from halpiee.selection.options import fixed_sides
from halpiee.sparsity.distribution import Latency
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.granularity import Channels
from halpiee.sparsity.mask import Mask
from halpiee.structure.groups import macs
from halpiee.structure.plan import Selection
from halpiee.structure.shrink import shrink
from halpiee.structure.verify import verify
from halpiee.training import record
from halpiee.training.build import (
    budget_of,
    densities,
    draw_again,
    few,
    initial,
    method_of,
    network,
    weights_of,
)
from halpiee.training.checkpoint import fill, load_state, save_json, save_weights
from halpiee.training.config import Settings
from halpiee.training.job import PROFILE, Run, save_plan
from halpiee.training.loop import Trainer, evaluate, make_optimizer, pick_threads
from halpiee.training.preflight import check_cells, check_images
from halpiee.training.record import (
    line_values,
    read_calibration,
    read_log,
    read_result,
    read_seconds,
    read_threads,
)
from halpiee.training.results import write_report
from latency.inspect import inspect

if TYPE_CHECKING:
    from halpiee.training.job import Run

__all__ = [
    "active_macs",
    "choose_threads",
    "close",
    "execute",
    "finish_masked",
    "repair_to_budget",
    "resumed",
    "retrain_of",
    "train_dense",
    "train_early",
    "train_masked",
    "train_rewound",
    "train_small",
    "train_to_budget",
    "trainer_of",
]


T = TypeVar("T")


def execute(run: Run) -> dict[str, Any]:
    """Does every stage of a run that is still to do, and returns its report; the folder is its own meanwhile.

    Raises:
        BudgetError: no network reaches the budget; the profile is kept.
        OutputInUseError: another run writes the folder.
        WriteError: the disk is full; what was saved before is kept.
    """
    with run.owned():
        return _stages(run)


def _stages(run: Run) -> dict[str, Any]:
    finished = run.folder / "report.json"
    if finished.is_file():
        report = read_report(run.folder)
        run.talk.note(f"{run.folder} is finished; showing its report")
        return report
    s = run.settings
    if isinstance(find(s.data, s.size), FunctionSource):  # of others the look at the files has told
        check_images(s, run.data.shape, run.data.n_classes)
    if s.method == "iee":
        s.cycle.steps(run.total_steps)
    watch = _Watch(run.folder / "seconds.json")
    cost = _price(run, watch) if s.budget is not None else None
    dense = None
    again = retrain_of(s, run.total_steps)
    if s.baseline or s.weights or again is not None:
        run.talk.stage("Train dense" if not s.weights else "Given weights")
        step = again.weights if again is not None and isinstance(again.weights, int) else 0
        dense = watch.timed("dense", lambda: train_dense(run, keep_step=step or None))
    run.talk.stage(_what(s))
    pruned = watch.timed("pruned", lambda: _train(run, cost))
    run.talk.stage("Export and measure")
    return write_report(run, dense, pruned, watch.seconds)


class _Watch:
    """Wall time of every stage, in seconds, over interruptions too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = read_seconds(path) if path.is_file() else {}

    def timed(self, name: str, work: Callable[[], T]) -> T:
        """Does one stage and adds its time."""
        begun = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun
            save_json(self._path, self.seconds)


def _price(run: Run, watch: _Watch) -> LatencyCost:
    """Returns the calibrated latency model; refuses a budget that nothing reaches."""
    run.talk.stage("Profile")
    profile = watch.timed("profile", lambda: _profile(run))
    run.talk.stage("Calibrate")
    cost = watch.timed("calibrate", lambda: _calibrate(run, LatencyCost(run.structure, profile)))
    _check_reachable(run, cost)
    return cost


def _profile(run: Run) -> latency.Profile:
    s = run.settings
    if s.profile is not None:
        profile = latency.Profile.load(Path(s.profile))
        check_cells(profile, run.structure, s, run.data.shape, classes=run.data.n_classes)
        return profile
    with restored(), warnings.catch_warnings():
        warnings.simplefilter("ignore", HoldoutWarning)
        profile = latency.sweep(
            [timed.op for timed in run.structure.ops],
            backend=run.target.backend,
            settings=run.target.settings,
            path=run.folder / PROFILE,
            resume=True,
            threads=run.target.threads,
            fixed=fixed_sides(run.structure),
            progress=run.talk.sweeping,
        )
    doubt = inspect(profile).doubt
    if doubt is not None:
        run.talk.note(doubt)
    return profile


def _calibrate(run: Run, cost: LatencyCost) -> LatencyCost:
    path, s = run.folder / "calibration.json", run.settings
    if not path.is_file():
        found = calibrate(
            run.build(),
            cost,
            run.example,
            networks=s.calibration_nets,
            target=run.target,
            rounds=s.rounds,
            seed=s.seed,
            progress=run.talk.note,
        )
        save_json(path, record.line_values(found))
    line = read_calibration(path)
    cost = cost.with_calibration(line)
    run.talk.note(
        f"dense {cost.dense_us:.0f} µs; whole = {line.a_us:.1f} µs + {line.b:.3f} · Σ"
        + (f" up to {line.bend[0][1]:.0f} µs, bent to dense beyond" if line.bend else "")
        + f", worst residual {line.worst:.1%}"
    )
    return cost


def _check_reachable(run: Run, cost: LatencyCost) -> None:
    """Refuses a budget that no network reaches before anything is trained; the profile is not lost."""
    if run.protected:
        run.talk.note(f"first group {run.protected[0]} stays whole; --no-protect-first frees it")
    try:
        if (
            METHODS[run.settings.method].kind == "cut"
        ):  # cuts all that can be cut, also what masks cannot train
            free = [name for name in cost.candidates if name not in run.protected]
            smallest_us(cost.restricted(vanish=False), free, run.budget_us(cost), by="a cut")
        else:
            bind(
                Latency(us=run.budget_us(cost)),
                Channels(run.build(), run.structure, protect=run.protected),
                cost,
            )
    except BudgetError as error:
        kept = (
            ""
            if run.settings.profile
            else f" (what was measured is kept in {run.folder}; it goes on from there)"
        )
        raise BudgetError(f"{error}{kept}", minimum=error.minimum) from error


def _what(s: Settings) -> str:
    if s.budget is None:
        return f"Train: {s.goal}"
    return "Cut and repair" if s.method == "repair" else "Train to the budget"


def _train(run: Run, cost: LatencyCost | None) -> dict[str, Any]:
    kind = METHODS[run.settings.method].kind
    if kind == "narrow":
        return train_small(run, cost)
    if kind == "rewind":
        return train_rewound(run)
    if cost is None:
        return train_masked(run)
    if kind == "cut":
        return repair_to_budget(run, cost) if run.settings.method == "repair" else train_early(run, cost)
    return train_to_budget(run, cost)


def train_dense(run: Run, *, keep_step: int | None = None) -> dict[str, Any]:
    """Trains the dense network, or scores the given weights, and returns its results.

    Args:
        run: whose folder it goes to.
        keep_step: step whose weights are kept in the folder as well.
    """
    path, weights = run.folder / "dense.json", run.folder / "dense.safetensors"
    if path.is_file():
        return read_result(path)
    model = initial(run.settings, run.data.n_classes).to(run.device)
    if run.settings.weights:
        history: list[dict[str, Any]] = []
        spent = 0.0
    else:
        trainer = trainer_of(run, model, "dense", make_optimizer(model, run.settings))
        choose_threads(run)
        torch.manual_seed(run.settings.seed)
        state = run.folder / "dense.state"
        if state.is_file():
            trainer.load(load_state(state, run.device))
        kept = run.folder / "dense-step.safetensors"
        if keep_step is not None and not kept.is_file():
            trainer.run(until=lambda t: t.step >= keep_step)
            save_weights(kept, model.state_dict())
        trainer.run()
        history, spent = trainer.history, trainer.seconds
    top1, top5 = evaluate(model, run.data)
    result = {
        "accuracy": top1,
        "top5": top5,
        "history": history,
        "seconds": spent,
        "params": sum(p.numel() for p in model.parameters()),
    }
    save_weights(weights, model.state_dict())
    save_json(path, result)
    (run.folder / "dense.state").unlink(missing_ok=True)
    return result


def trainer_of(
    run: Run,
    model: nn.Module,
    label: str,
    optimizer: Optimizer,
    method: Method | None = None,
    *,
    lead: int = 0,
) -> Trainer:
    """Returns a trainer whose state goes into the run's folder."""
    trainer = Trainer(
        model,
        optimizer,
        run.data,
        run.settings,
        checkpoint=run.folder / f"{label}.state",
        method=method,
        facts=lambda: _facts(run, trainer),
        lead=lead,
        teacher=run.dense().to(run.device) if run.settings.distill and label == "pruned" else None,
        report=lambda step, total, entry: run.talk.training(label, step, total, entry),
    )
    return trainer


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
        "density": method.alive.density,
        "train_flops": record.train_flops(
            method.log,
            active_macs(run, method),
            done,
            compact_macs=compact,
            paper_charges_gradient=method.paper_charges_gradient,
        ),
    }


def active_macs(run: Run, method: Method) -> Callable[[Mapping[str, int]], float]:
    """Returns what turns active units per name into the multiply-accumulates of one image."""
    if isinstance(method.units, Channels):
        return run.macs
    layers = macs(run.structure)
    sizes = {name: math.prod(shape) for name, shape in method.units.sizes.items()}
    return lambda counts: record.effective_macs(layers, {name: k / sizes[name] for name, k in counts.items()})


def choose_threads(run: Run) -> None:
    """Picks the number of training threads by timing, on a copy so that nothing of the run moves."""
    if run.device.type != "cpu":
        return
    path = run.folder / "threads.json"
    if path.is_file():
        torch.set_num_threads(read_threads(path))
        return
    model = network(run.settings, run.data.n_classes).to(run.device)
    rehearsal = Trainer(model, make_optimizer(model, run.settings), run.data, run.settings)
    x, y = next(run.data.batches(0, run.settings.batch_size, seed=run.settings.seed))
    threads = pick_threads(lambda: rehearsal.train_step(x, y))
    run.talk.note(f"training with {threads} thread{'s' if threads > 1 else ''}")
    save_json(path, threads)


def resumed(
    run: Run,
    model: nn.Module,
    optimizer: Optimizer,
    method: Method,
    *,
    label: str = "pruned",
    first: int = 0,
    lead: int = 0,
) -> Trainer:
    """Returns the trainer of the pruned network, where it was saved: masked, or cut already.

    Args:
        run: whose folder it is.
        model: as it begins.
        optimizer: of the model.
        method: attached to it.
        label: of the training, and of its files.
        first: step of the schedule that it begins with.
        lead: steps before the schedule begins anew.
    """
    trainer = trainer_of(run, model, label, optimizer, method, lead=lead)
    trainer.step = first
    choose_threads(run)
    torch.manual_seed(run.settings.seed)
    saved = run.folder / f"{label}.state"
    state = load_state(saved, run.device) if saved.is_file() else None
    if state is not None and state["stage"] == "compact":
        pair = shrink(model, run.structure, state["extra"]["keep"], optimizer)
        assert isinstance(pair, tuple)
        trainer.replace(*pair)
        method.detach()
    if state is not None:
        trainer.load(state)
    return trainer


def train_to_budget(run: Run, cost: LatencyCost) -> dict[str, Any]:
    """Trains to the budget, cuts, trains on, and returns the results; resumes where its state was saved."""
    path = run.folder / "pruned.json"
    if path.is_file():
        return read_result(path, pruned=True)
    s = run.settings
    model = initial(s, run.data.n_classes).to(run.device)
    optimizer = make_optimizer(model, s)
    budget_us = run.budget_us(cost)
    make = method_of(
        s,
        model,
        run.total_steps,
        structure=lambda: run.structure,
        n_classes=run.data.n_classes,
        examples=lambda: few(run.data, 10),
        shape=run.data.shape,
        limit=(cost, budget_us),
        protect=run.protected,
    )
    method = make(model, optimizer)
    trainer = resumed(run, model, optimizer, method)
    if trainer.stage == "masked":
        trainer.run(until=lambda t: method.finished)
        fitted = cost.calibration
        cost, rounds = close(run, method.model, cost, _Candidate(method), budget_us)
        compact, slim = method.shrink()
        verify(method.model, run.structure, method.keep, run.example, compact=compact, sizes=(1, 2, 5))
        trainer.replace(compact, slim)
        predicted = cost.total_us(method.alive.counts)
        trainer.extra = {
            "keep": dict(method.alive),
            "closed_loop": [asdict(r) for r in rounds],
            "predicted_us": predicted,
            "next_step_us": method.reports[-1].next_step,
            "calibration": line_values(fitted) if fitted else None,
            "gap": method.reports[-1].gap,
            "dense_us": cost.dense_us,
            "budget_us": budget_us,
        }
        trainer.save()
    trainer.run()
    return _finish(run, trainer, method, path)


def close(
    run: Run, model: nn.Module, cost: LatencyCost, candidate: Candidate, budget_us: float
) -> tuple[LatencyCost, list[Round]]:
    """Measures the candidate beside the dense network and solves again until it meets the budget."""
    run.talk.note("measuring the candidate beside the dense network")
    s = run.settings
    cost, turns = close_loop(
        model,
        cost,
        run.example,
        candidate,
        budget_us=budget_us,
        target=run.target,
        rounds=s.rounds,
    )
    for turn in turns:
        run.talk.note(
            f"round {turn.round}: predicted {turn.predicted_us:.0f} µs, measured {turn.measured_us:.0f} µs, "
            f"wanted {turn.lower_us:.0f} … {turn.upper_us:.0f} µs"
        )
    return cost, turns


def _finish(run: Run, trainer: Trainer, method: Method, path: Path) -> dict[str, Any]:
    """Writes plan, weights and results."""
    model = trainer.model
    top1, top5 = evaluate(model, run.data)
    counts = {name: int(mask.sum()) for name, mask in trainer.extra["keep"].items()}
    extra = {key: value for key, value in trainer.extra.items() if key != "keep"}
    result = {
        "accuracy": top1,
        "top5": top5,
        "history": trainer.history,
        "seconds": trainer.seconds,
        "params": sum(p.numel() for p in model.parameters()),
        "counts": counts,
        "events": record.events(method.reports),
        "train_flops_ratio": record.train_flops(
            method.log, run.macs, trainer.total_steps, compact_macs=run.macs(counts)
        ),
        **extra,
    }
    used, most = (trainer.extra["predicted_us"],), (trainer.extra["budget_us"],)
    save_plan(run, Selection(trainer.extra["keep"], used, most, gap=trainer.extra["gap"]))
    save_weights(run.folder / "pruned.safetensors", model.state_dict())
    save_json(path, result)
    (run.folder / "pruned.state").unlink(missing_ok=True)
    return result


class _Candidate:
    """The method's selection as the closed loop sees it."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._turns = [(method.alive, method.reports[-1])]

    @property
    def counts(self) -> dict[str, int]:
        return self._method.alive.counts

    @property
    def keep(self) -> dict[str, torch.Tensor]:
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


def train_masked(run: Run) -> dict[str, Any]:
    """Trains to a sparsity and returns the results; resumes where its state was saved."""
    path = run.folder / "pruned.json"
    if path.is_file():
        return read_result(path, pruned=True)
    s = run.settings
    model = initial(s, run.data.n_classes).to(run.device)
    if s.masks.mask is not None and s.masks.ablation == "reinit":
        draw_again(s, run.data.n_classes, model, s.seed)
    optimizer = make_optimizer(model, s)
    make = method_of(
        s,
        model,
        run.total_steps,
        structure=lambda: run.structure,
        n_classes=run.data.n_classes,
        examples=lambda: few(run.data, 10),
        shape=run.data.shape,
    )
    method = make(model, optimizer)
    trainer = resumed(run, model, optimizer, method, lead=s.masks.at if s.masks.restart else 0)
    if isinstance(method.units, Filters) and trainer.stage == "masked":
        trainer.run(until=lambda t: method.finished)
        _cut(run, trainer, method)
    trainer.run()
    return finish_masked(run, trainer, method)


def _cut(run: Run, trainer: Trainer, method: Method) -> None:
    """Cuts the removed filters out; what trains on is the compact network."""
    kept = {path: int(mask.sum()) for path, mask in method.alive.items()}
    compact, optimizer = method.shrink()
    verify(method.model, run.structure, method.keep, run.example, compact=compact, sizes=(1, 2, 5))
    trainer.replace(compact, optimizer)
    trainer.extra = {"keep": method.keep, "filters": kept, "units": _units(method)}
    trainer.save()


def _units(method: Method) -> dict[str, Any]:
    """Returns how many units are kept, of how many, and how many were asked for."""
    total = sum(math.prod(shape) for shape in method.units.sizes.values())
    return {
        "kept": sum(method.alive.counts.values()),
        "asked": int(method.pool.total),
        "total": total,
        "densities": densities(method),
        "left_out": dict(method.units.left_out),
    }


def finish_masked(
    run: Run, trainer: Trainer, method: Method, before: Sequence[tuple[int, str, dict[str, int]]] = ()
) -> dict[str, Any]:
    """Writes weights, masks, plan and results.

    Args:
        run: whose folder it goes to.
        trainer: at its end.
        method: what it trained by.
        before: log of what was trained before this training: the dense network that is pruned after training.
    """
    model = trainer.model
    top1, top5 = evaluate(model, run.data)
    counts: dict[str, int] = {}
    keep = trainer.extra.get("keep")
    if keep is not None:
        counts = {name: int(mask.sum()) for name, mask in keep.items()}
        save_plan(run, Selection(keep))
    units = trainer.extra.get("units") or _units(method)
    layers = macs(run.structure)
    result = {
        "accuracy": top1,
        "top5": top5,
        "history": trainer.history,
        "seconds": trainer.seconds,
        "params": sum(p.numel() for p in model.parameters()),
        "counts": counts,
        "sparsity": units,
        "effective_macs": None if keep is not None else record.effective_macs(layers, units["densities"]),
        "events": record.plain_events(method.reports),
        "train_flops_ratio": record.train_flops(
            [*before, *method.log],
            active_macs(run, method),
            trainer.schedule_steps,
            compact_macs=run.macs(counts),
            paper_charges_gradient=method.paper_charges_gradient,
        ),
    }
    save_weights(run.folder / "pruned.safetensors", model.state_dict())
    if keep is None:
        save_weights(run.folder / "mask.safetensors", method.alive)
    save_json(run.folder / "pruned.json", result)
    (run.folder / "pruned.state").unlink(missing_ok=True)
    return result


def train_small(run: Run, cost: LatencyCost | None) -> dict[str, Any]:
    """Trains the small dense network from the start, at equal parameters or within the latency."""
    path = run.folder / "pruned.json"
    if path.is_file():
        return read_result(path, pruned=True)
    s = run.settings
    limit: dict[str, Any] = {"params": 1 - (s.masks.sparsity or 0.0)}
    if cost is not None:
        limit = {"latency_us": run.budget_us(cost), "cost": cost, "protect": run.protected}
    counts = uniform_counts(run.structure, **limit)
    keep = keep_first(run.structure, counts)
    model = small_dense(initial(s, run.data.n_classes), run.structure, **limit).to(run.device)
    trainer = trainer_of(run, model, "pruned", make_optimizer(model, s))
    choose_threads(run)
    torch.manual_seed(s.seed)
    saved = run.folder / "pruned.state"
    if saved.is_file():
        trainer.load(load_state(saved, run.device))
    trainer.run()
    top1, top5 = evaluate(model, run.data)
    predicted = None if cost is None else cost.total_us(counts)
    params = sum(p.numel() for p in model.parameters())
    whole = sum(p.numel() for p in run.build().parameters())
    save_plan(run, Selection(keep, () if predicted is None else (predicted,)))
    ratio = run.macs(counts) / run.macs({})
    result = {
        "accuracy": top1,
        "top5": top5,
        "history": trainer.history,
        "seconds": trainer.seconds,
        "params": params,
        "counts": counts,
        "events": [],
        "train_flops_ratio": {"paper": ratio, "strict": ratio},
        "sparsity": None
        if cost is not None
        else {"kept": params, "asked": int(limit["params"] * whole), "total": whole, "densities": {}},
        "predicted_us": predicted,
        "dense_us": None if cost is None else cost.dense_us,
        "next_step_us": None if cost is None else cost.next_step_us(counts, cost.candidates),
    }
    save_weights(run.folder / "pruned.safetensors", model.state_dict())
    save_json(path, result)
    saved.unlink(missing_ok=True)
    return result


PAPERS_STEP = 1000 / 62_400
"""Step 1000 of 160 epochs of CIFAR-10 in batches of 128 (arXiv 2009.08576, table A.3), as a share."""


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


def train_rewound(run: Run) -> dict[str, Any]:
    """Prunes the dense stage's network, trains it again, and returns the results; resumes where it was saved."""
    path = run.folder / "pruned.json"
    if path.is_file():
        return read_result(path, pruned=True)
    s = run.settings
    m = s.masks
    retrain = retrain_of(s, run.total_steps)
    assert retrain is not None
    model = initial(s, run.data.n_classes).to(run.device)
    units = weights_of(model, s)
    how = Pruning(
        budget=budget_of(s),
        criterion=named(m.criterion or "magnitude", s.seed),
        batches=few(run.data, 10),
        rounds=m.rounds or 1,
        shuffle=m.ablation == "shuffle",
        units=units,
        seed=s.seed,
    )
    before = [(run.total_steps, "train", Mask.full(units.sizes).counts)] if s.weights is None else []
    fill(model, run.folder / "dense.safetensors")
    for k, alive in enumerate(rewinding(model, how, partial(_rewound, run, retrain)), start=1):
        label = "pruned" if k == how.rounds else f"round{k}"
        trained, done = run.folder / f"{label}.safetensors", run.folder / f"{label}.json"
        if done.is_file():
            before += read_log(done)
            fill(model, trained)
            continue
        method = Static(model, make_optimizer(model, s), mask=alive, units=units, seed=s.seed)
        trainer = resumed(run, model, method.optimizer, method, label=label, first=retrain.first)
        trainer.run()
        method.detach()
        if k == how.rounds:
            return finish_masked(run, trainer, method, before)
        save_weights(trained, model.state_dict())
        save_json(done, {"accuracy": trainer.history[-1]["accuracy"], "log": method.log})
        (run.folder / f"{label}.state").unlink(missing_ok=True)
        before += method.log
    raise AssertionError("the last round ends the run")


def _rewound(run: Run, retrain: Retrain, model: nn.Module) -> None:
    """Writes the weights that are trained again into the model; the final ones are there."""
    s = run.settings
    if retrain.weights == "fresh":
        draw_again(s, run.data.n_classes, model, s.seed)
    elif retrain.weights == 0:
        model.load_state_dict(initial(s, run.data.n_classes).state_dict())
    elif retrain.weights != "final":
        fill(model, run.folder / "dense-step.safetensors")


CUT_AT = 0.25
"""Share of a training from scratch that is dense before the cut: docs/decisions/0120-an-early-cut.md."""

ROUNDS = 1
"""Rounds of a cut in a training: what they win, training wins as well."""


def repair_to_budget(run: Run, cost: LatencyCost) -> dict[str, Any]:
    """Cuts the given network to the budget, repairs it, and returns the results."""
    path = run.folder / "pruned.json"
    if path.is_file():
        return read_result(path, pruned=True)
    begun = time.perf_counter()
    cut, facts = _chosen(run, run.dense(), cost)
    compact = cut.repaired(_telling(run, facts))
    top1, top5 = evaluate(compact, run.data)
    result = {
        "accuracy": top1,
        "top5": top5,
        "history": [],
        "seconds": time.perf_counter() - begun,
        "params": sum(p.numel() for p in compact.parameters()),
        "counts": cut.counts,
        "events": [],
        "train_flops_ratio": {"paper": 0.0, "strict": 0.0},
        **facts,
    }
    save_plan(run, cut.selection)
    save_weights(run.folder / "pruned.safetensors", compact.state_dict())
    save_json(path, result)
    return result


def train_early(run: Run, cost: LatencyCost) -> dict[str, Any]:
    """Trains the whole network for a while, cuts it, trains on, and returns the results; resumes where it was saved."""
    path = run.folder / "pruned.json"
    if path.is_file():
        return read_result(path, pruned=True)
    s = run.settings
    share = s.masks.cut_at if s.masks.cut_at is not None else 0.0 if s.weights else CUT_AT
    whole = round(share * run.total_steps)
    model = initial(s, run.data.n_classes).to(run.device)
    trainer = _resumed(run, model, make_optimizer(model, s))
    if trainer.stage == "masked":
        trainer.run(until=lambda t: t.step >= whole)
        _cut_whole(run, trainer, cost)
    trainer.run()
    compact = trainer.model
    top1, top5 = evaluate(compact, run.data)
    keep = trainer.extra["keep"]
    counts = {name: int(mask.sum()) for name, mask in keep.items()}
    result = {
        "accuracy": top1,
        "top5": top5,
        "history": trainer.history,
        "seconds": trainer.seconds,
        "params": sum(p.numel() for p in compact.parameters()),
        "counts": counts,
        "events": [],
        "train_flops_ratio": record.train_flops(
            [(whole, "train", {})], run.macs, trainer.total_steps, compact_macs=run.macs(counts)
        ),
        **{key: value for key, value in trainer.extra.items() if key != "keep"},
    }
    used, most = (trainer.extra["predicted_us"],), (trainer.extra["budget_us"],)
    save_plan(run, Selection(keep, used, most, gap=trainer.extra["gap"]))
    save_weights(run.folder / "pruned.safetensors", compact.state_dict())
    save_json(path, result)
    (run.folder / "pruned.state").unlink(missing_ok=True)
    return result


def _resumed(run: Run, model: nn.Module, optimizer: Optimizer) -> Trainer:
    """Returns the trainer of the network where it was saved: whole, or cut already."""
    trainer = trainer_of(run, model, "pruned", optimizer)
    choose_threads(run)
    torch.manual_seed(run.settings.seed)
    saved = run.folder / "pruned.state"
    if saved.is_file():
        state = load_state(saved, run.device)
        if state["stage"] == "compact":
            trainer.replace(*shrink(model, run.structure, state["extra"]["keep"], optimizer))
        trainer.load(state)
    return trainer


def _cut_whole(run: Run, trainer: Trainer, cost: LatencyCost) -> None:
    """Cuts the network and its optimizer to the budget; what trains on has its layers solved again, where asked."""
    model = trainer.model.to(memory_format=torch.contiguous_format).eval()
    cut, facts = _chosen(run, model, cost, labelled=True)
    compact, slim = shrink(model, run.structure, cut.keep, trainer.optimizer)
    if run.settings.masks.repair:
        compact.load_state_dict(cut.repaired(_telling(run, facts)).state_dict())
    trainer.replace(compact, slim)
    top1, _ = evaluate(compact, run.data)
    run.talk.note(f"cut to the budget at step {trainer.step}: top-1 {top1:.1%} before it trains on")
    trainer.extra = {"keep": dict(cut.keep), "accuracy_cut": top1, **facts}
    trainer.save()


def _chosen(
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
    budget_us, fitted = run.budget_us(cost), cost.calibration
    images, scored, labels = _images(run)
    cut = Rounds(
        model.to(run.device),
        run.structure,
        cost,
        budget_us,
        images=images,
        scored=scored,
        labels=labels if labelled else None,
        how=_how(run),
        note=run.talk.note,
    )
    turns: list[Round]
    cost, turns = close(run, model, cost, cut, budget_us)
    verify(model, run.structure, cut.keep, tuple(x.to(run.device) for x in run.example), sizes=(1, 2, 5))
    return cut, {
        "repaired": [],
        "closed_loop": [asdict(turn) for turn in turns],
        "predicted_us": cost.total_us(cut.counts),
        "next_step_us": cut.next_step_us,
        "calibration": line_values(fitted) if fitted else None,
        "gap": cut.selection.gap,
        "dense_us": cost.dense_us,
        "budget_us": budget_us,
    }


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
    given: dict[str, Any] = {"rounds": rounds, "criterion": s.masks.criterion}
    chosen = {key: value for key, value in given.items() if value is not None}
    return InRounds(**chosen, protect=run.protected, seed=s.seed)


def _images(run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """Returns training images to solve from, twice as many others to score on, and the labels of these.

    Where there are no others, the same ones serve for both.
    """
    x, n = run.data.train_x, run.settings.images
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(run.settings.seed)).to(x.device)
    solved, scored = order[:n], order[n : 3 * n]
    scored = scored if len(scored) else solved
    return run.data.normalised(x[solved]), run.data.normalised(x[scored]), run.data.train_y[scored]


def _values(layer: RepairedLayer) -> dict[str, Any]:
    """Returns what became of a layer as JSON values: no ridge where the cut weights were best, no errors if skipped."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(layer).items()
    }
