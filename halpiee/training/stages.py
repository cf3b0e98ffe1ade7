"""What a run does, in order: profile, calibrate, train dense and to a budget, shrink, export, measure, report.

Every stage leaves a file; a stage whose file is there is not done again, so an interrupted run goes on. Dense and
pruned networks see the same data in the same order with the same recipe.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import latency
from halpiee.data.sources import FunctionSource, find
from halpiee.deploy.calibrate import calibrate
from halpiee.deploy.target import restored
from halpiee.errors import BudgetError, HoldoutWarning
from halpiee.methods.allocator import bind, smallest_us
from halpiee.methods.registry import METHODS
from halpiee.report.door import read_report
from halpiee.selection.cost import LatencyCost
from halpiee.selection.options import fixed_sides
from halpiee.sparsity.distribution import Latency
from halpiee.sparsity.granularity import Channels
from halpiee.training import record
from halpiee.training.baseline import train_dense
from halpiee.training.checkpoint import save_json
from halpiee.training.closing import write_report
from halpiee.training.config import Settings
from halpiee.training.masking import train_masked, train_small
from halpiee.training.opening import PROFILE, check_cells, check_images
from halpiee.training.pruning import train_to_budget
from halpiee.training.records import read_calibration, read_seconds
from halpiee.training.repairing import repair_to_budget
from halpiee.training.rewinding import retrain_of, train_rewound
from halpiee.training.run import Run
from latency.inspect import inspect

__all__ = ["execute"]

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
    return "Cut and repair" if METHODS[s.method].kind == "cut" else "Train to the budget"


def _train(run: Run, cost: LatencyCost | None) -> dict[str, Any]:
    kind = METHODS[run.settings.method].kind
    if kind == "narrow":
        return train_small(run, cost)
    if kind == "rewind":
        return train_rewound(run)
    if cost is None:
        return train_masked(run)
    return repair_to_budget(run, cost) if kind == "cut" else train_to_budget(run, cost)
