"""A run: profile, calibrate, train dense and to a budget, shrink, export, measure, report. A folder that resumes.

Every stage leaves a file; a stage whose file is there is not done again. Dense and pruned networks see the same
data in the same order with the same recipe.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

import latency
from halpiee.deploy.calibrate import calibrate
from halpiee.errors import BudgetError
from halpiee.methods.pools import bind
from halpiee.selection.cost import LatencyCost
from halpiee.selection.fixed import fixed_sides
from halpiee.sparsity.distribution import Latency
from halpiee.sparsity.granularity import Channels
from halpiee.structure.groups import Structure
from halpiee.structure.plan import Plan
from halpiee.structure.size import macs
from halpiee.structure.trace import trace
from halpiee.training import record
from halpiee.training.baseline import train_dense
from halpiee.training.checkpoint import load_weights, save_json
from halpiee.training.closing import write_report
from halpiee.training.data import Data, load
from halpiee.training.masking import train_masked, train_small
from halpiee.training.network import network
from halpiee.training.opening import check_cells, check_folder, check_settings
from halpiee.training.pruning import train_to_budget
from halpiee.training.settings import Settings, parse_budget
from latency.predict import Calibration

__all__ = ["Run", "Talk"]


class Talk(Protocol):
    """Where a run says what it is doing."""

    def stage(self, text: str) -> None:
        """A new stage begins."""

    def note(self, text: str) -> None:
        """A fact worth a line."""

    def training(self, label: str, step: int, total: int, entry: dict[str, Any] | None) -> None:
        """Training has moved on; ``entry`` is a new history entry."""

    def sweeping(self, done: int, total: int) -> None:
        """The sweep has measured ``done`` of ``total`` cells."""


@dataclass
class Run:
    """One run and its folder.

    Attributes:
        settings: what to do.
        folder: where everything goes.
        talk: told what happens.
    """

    settings: Settings
    folder: Path
    talk: Talk

    # -- opening ----------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, settings: Settings, folder: Path, talk: Talk, *, resume: bool = False) -> Run:
        """Checks everything that can be checked in two seconds, then claims the folder.

        Raises:
            UsageError: unknown model, bad budget, a profile of another device, settings that differ on resume.
            DataError: data that is missing or unreadable.
            OutputInUseError: the folder holds something, and ``resume`` was not asked.
            MissingError: the device is not there.
        """
        check_folder(settings, folder, resume=resume)
        check_settings(settings)
        folder.mkdir(parents=True, exist_ok=True)
        stored = folder / "settings.json"
        if not stored.is_file():
            save_json(stored, settings.as_dict())
        return cls(settings, folder, talk)

    # -- parts, made when they are needed -----------------------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        """Where training happens."""
        if self.settings.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.settings.device)

    @cached_property
    def data(self) -> Data:
        """The data, decoded once."""
        return load(self.settings.data, size=self.settings.size).to(self.device)

    def build(self) -> nn.Module:
        """Returns the network with the run's initial weights."""
        return network(self.settings, self.data.n_classes)

    @cached_property
    def example(self) -> tuple[torch.Tensor]:
        """One batch of random images at the batch size of the budget."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        return (torch.randn(self.settings.batch, *self.data.shape, generator=generator),)

    @cached_property
    def structure(self) -> Structure:
        """Units and ops of the network."""
        return trace(self.build(), self.example)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.data.steps_per_epoch(self.settings.batch_size) * self.settings.epochs

    def macs(self, counts: Mapping[str, int]) -> int:
        """Returns the multiply-accumulates of one image."""
        return sum(macs(self.structure, counts).values())

    def compact(self) -> nn.Module:
        """Returns the finished compact network, rebuilt from its plan and weights."""
        plan = self.folder / "plan.json"  # masks of single weights leave every shape as it was
        model = Plan.load(plan).apply(self.build()) if plan.is_file() else self.build()
        model.load_state_dict(load_weights(self.folder / "pruned.safetensors"))
        return model.eval()

    def dense(self) -> nn.Module:
        """Returns the dense network with its trained weights, or its initial ones without a baseline."""
        model = self.build()
        if (self.folder / "dense.safetensors").is_file():
            model.load_state_dict(load_weights(self.folder / "dense.safetensors"))
        return model.eval()

    # -- stages -----------------------------------------------------------------------------------------------

    def execute(self) -> dict[str, Any]:
        """Does every stage that is still to do and returns the report."""
        finished = self.folder / "report.json"
        if finished.is_file():
            report: dict[str, Any] = json.loads(finished.read_text())
            self.talk.note(f"{self.folder} is finished; showing its report")
            return report
        s = self.settings
        if s.method == "iee":
            s.cycle.steps(self.total_steps)
        seconds: dict[str, float] = self._times()
        cost = self._price(seconds) if s.budget is not None else None
        dense = None
        if s.baseline or s.weights:
            self.talk.stage("Train dense" if not s.weights else "Given weights")
            dense = self._timed(seconds, "dense", lambda: train_dense(self))
        self.talk.stage("Train to the budget" if s.budget is not None else f"Train: {s.goal}")
        pruned = self._timed(seconds, "pruned", lambda: self._train(cost))
        self.talk.stage("Export and measure")
        return write_report(self, dense, pruned, seconds)

    def _price(self, seconds: dict[str, float]) -> LatencyCost:
        """Returns the calibrated latency model; refuses a budget that nothing reaches."""
        self.talk.stage("Profile")
        profile = self._timed(seconds, "profile", self._profile)
        self.talk.stage("Calibrate")
        cost: LatencyCost = self._timed(
            seconds, "calibrate", lambda: self._calibrate(LatencyCost(self.structure, profile))
        )
        self._check_reachable(cost)
        return cost

    def _train(self, cost: LatencyCost | None) -> dict[str, Any]:
        if self.settings.method == "small-dense":
            return train_small(self, cost)
        return train_masked(self) if cost is None else train_to_budget(self, cost)

    def _check_reachable(self, cost: LatencyCost) -> None:
        """Refuses a budget that no network reaches before anything is trained; the profile is not lost."""
        try:
            bind(Latency(us=self.budget_us(cost)), Channels(self.build(), self.structure), cost)
        except BudgetError as error:
            profile = self.settings.profile or str(self.folder / "profile.jsonl")
            raise BudgetError(
                f"{error}, in another --out with --profile {profile} (what was measured is kept there)",
                minimum=error.minimum,
            ) from error

    def _times(self) -> dict[str, float]:
        path = self.folder / "seconds.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def _timed(self, seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
        """Runs one stage and adds its wall time, over interruptions too."""
        begun = time.perf_counter()
        try:
            return work()
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun
            save_json(self.folder / "seconds.json", seconds)

    def _profile(self) -> latency.Profile:
        s = self.settings
        if s.profile is not None:
            profile = latency.Profile.load(Path(s.profile))
            check_cells(profile, self.structure, self.settings, self.data.shape)
            return profile
        return latency.sweep(
            [timed.op for timed in self.structure.ops],
            backend=s.backend,
            path=self.folder / "profile.jsonl",
            resume=True,
            threads=s.threads,
            fixed=fixed_sides(self.structure),
            progress=self.talk.sweeping,
        )

    def _calibrate(self, cost: LatencyCost) -> LatencyCost:
        path = self.folder / "calibration.json"
        if not path.is_file():
            s = self.settings
            found = calibrate(
                self.build(),
                cost,
                self.example,
                networks=s.calibration_nets,
                threads=s.threads,
                rounds=s.rounds,
                seed=s.seed,
                progress=self.talk.note,
            )
            save_json(path, record.line_values(found))
        values = json.loads(path.read_text())
        line = Calibration(values["a_us"], values["b"], tuple((x, y) for x, y in values["points"]))
        cost = cost.with_calibration(line)
        self.talk.note(
            f"dense {cost.dense_us:.0f} µs; whole = {line.a_us:.1f} µs + {line.b:.3f} · Σ, "
            f"worst residual {line.worst:.1%}"
        )
        return cost

    def budget_us(self, cost: LatencyCost) -> float:
        """Returns Ψ in µs, on the scale of the cost's dense latency."""
        us, fraction = parse_budget(self.settings.budget or "1")
        return us if us is not None else (fraction or 1.0) * cost.dense_us
