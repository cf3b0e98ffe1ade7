"""The stages that price a network: its ops are profiled, the sum of them is calibrated to whole networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

import latency
from halpiee.deploy.calibrate import calibrate
from halpiee.deploy.target import Target
from halpiee.errors import BudgetError, HalpieeError, HoldoutWarning
from halpiee.limits import Network, check_also, limits_of, offered
from halpiee.methods.allocator import bind, smallest_us
from halpiee.methods.registry import METHODS
from halpiee.selection.cost import Also, LatencyCost
from halpiee.selection.options import fixed_sides
from halpiee.sparsity.distribution import Latency
from halpiee.sparsity.granularity import Channels
from halpiee.structure.groups import Structure
from halpiee.structure.shrink import shrink
from halpiee.training.checkpoint import save_json
from halpiee.training.job import PROFILE, Run
from halpiee.training.preflight import check_cells
from halpiee.training.record import line_values, read_calibration
from halpiee.training.stage import Stage
from latency.backends.torch.network import restored
from latency.inspect import inspect

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
            check_cells(profile, structure, s, run.data.shape, classes=run.data.n_classes)
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
    example = (run.example[0][:1].expand(n, *run.data.shape).contiguous(),)

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
