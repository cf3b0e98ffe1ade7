"""A run: its settings, its folder, and the parts that every stage works on, each made when it is needed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import latency
from halpiee.data.data import Data
from halpiee.data.opening import open_data
from halpiee.deploy.target import Target
from halpiee.errors import ProfileError, WriteError
from halpiee.inputs import Shape, at_batch, example_of
from halpiee.limits import whole_groups
from halpiee.methods.method import Method
from halpiee.ranges import parse_budget
from halpiee.selection.cost import LatencyCost
from halpiee.selection.options import protected
from halpiee.sparsity.granularity import Channels
from halpiee.structure.groups import Structure, macs
from halpiee.structure.plan import Plan, Selection
from halpiee.structure.trace import trace
from halpiee.tasks import Task, named
from halpiee.training.build import arguments, network
from halpiee.training.checkpoint import fill, load_weights, save_json, save_weights
from halpiee.training.config import Settings
from halpiee.training.ranks import ALONE, Ranks
from halpiee.training.record import Metrics, effective_macs
from halpiee.training.weights import fit_weights
from latency.files import FolderLock, contents, write

PROFILE = "profile.jsonl"
"""Where a run's own profile lies in its folder."""

TRAINED = {".state", ".safetensors"}
"""Endings of what training leaves."""

BEFORE_TRAINING = {"settings.json", "seconds.json", "calibration.json", "threads.json"}
"""What a run writes before it trains, without its profile, which took the longest and serves any other run."""


class Talk(Protocol):
    """Where a run says what it is doing."""

    def stage(self, text: str) -> None:
        """A new stage begins."""

    def note(self, text: str) -> None:
        """A fact worth a line."""

    def training(self, label: str, step: int, total: int, entry: dict[str, Any] | None, pace: str) -> None:
        """Training has moved on.

        ``entry`` is a new history entry with the title of its accuracy under ``figure``, ``pace`` how fast it goes and
        why.
        """

    def sweeping(self, done: int, total: int) -> None:
        """The sweep has measured ``done`` of ``total`` cells."""


class Silent:
    """Says nothing: the first rank speaks for all."""

    def note(self, *words: Any) -> None:
        """Says nothing."""

    stage = training = sweeping = note


@dataclass
class Run:
    """One run and its folder."""

    settings: Settings  # what to do
    folder: Path  # where everything goes
    talk: Talk  # told what happens
    begun_here: bool = False  # whether this opening made the run, which until then was not there
    made: tuple[Path, ...] = ()  # the folders that it made for it
    ranks: Ranks = ALONE  # the processes that train; the first one owns the folder
    data_notes: dict[str, None] = field(default_factory=dict)
    """What was said of the data so far, by all ranks."""

    def report_data_notes(self) -> None:
        """Says what is new of the data, such as images that could not be read; every rank has to ask at once."""
        for notes in self.ranks.every(self.data.notes):
            for note in notes:
                if note not in self.data_notes:
                    self.data_notes[note] = None
                    self.talk.note(note)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keeps the folder to this process, until it leaves or dies; a run that is refused within is taken back.

        Raises:
            OutputInUseError: another run writes the folder.
        """
        if not self.ranks.first:
            yield
            return
        lock = FolderLock(self.folder)
        lock.made[:0] = self.made
        try:
            yield
        except WriteError:  # a full disk: what was saved goes on when there is room
            raise
        except Exception:
            self._withdraw(lock)
            raise
        finally:
            lock.close()

    def _withdraw(self, lock: FolderLock) -> None:
        """Takes back a run that this opening began and that was refused before it trained; a profile is kept.

        The corrected command then finds the folder as it would a new one.
        """
        if not self.begun_here or any(path.suffix in TRAINED for path in self.folder.iterdir()):
            return
        for name in contents(self.folder):
            if name in BEFORE_TRAINING or (name == PROFILE and not holds_cells(self.folder / name)):
                (self.folder / name).unlink()
        lock.undo()

    # -- parts, made when they are needed -----------------------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        """Where training happens."""
        asked = self.settings.device
        if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
            return torch.device("cpu")
        if self.ranks.count > 1:
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.ranks.rank)))
        return torch.device("cuda" if asked == "auto" else asked)

    @cached_property
    def data(self) -> Data:
        """The data, ready to be drawn from; the first rank comes first, as it may have to download them."""
        if not self.ranks.first:
            self.ranks.every(None)
        s = self.settings
        source = self._task.source(s.data, s.size)
        found = open_data(source, s.loading, kind=self._task.kind).to(self.device)
        if self.ranks.first:
            self.ranks.every(None)
        return found

    @cached_property
    def _task(self) -> Task:
        return named(self.settings.task)

    @cached_property
    def task(self) -> Task:
        """What is learnt, prepared for the data and for networks of this kind."""
        self._task.prepare(self.data, self.build())
        return self._task

    @property
    def shape(self) -> Shape:
        """(channels, height, width) of the images, or the inputs that the data give."""
        return self.data.inputs or self.data.shape

    def build(self) -> nn.Module:
        """Returns the network with the run's initial weights."""
        return network(self.settings, self.data.n_classes)

    @cached_property
    def example(self) -> tuple[Any, ...]:
        """One batch of random inputs at the batch size of the budget."""
        with torch.random.fork_rng(devices=[]):
            model: Any = self.build() if self.data.inputs else None
            torch.manual_seed(self.settings.seed)
            return example_of(model, self.shape, self.settings.batch)

    @property
    def placed(self) -> tuple[Any, ...]:
        """``example`` where the run trains."""
        return tuple(x.to(self.device) if isinstance(x, Tensor) else x for x in self.example)

    @cached_property
    def structure(self) -> Structure:
        """Units and ops of the network, in the precision and layout it is timed in."""
        s = self.settings
        blocks = s.vanish or "scaled" in (s.method, s.masks.widths)
        return self.target.of(trace(self.build(), self.example, vanish=blocks))

    def at_batch(self, n: int) -> Structure:
        """Returns the structure at another batch."""
        if n == self.settings.batch:
            return self.structure
        return trace(self.build(), at_batch(self.example, n))

    @cached_property
    def target(self) -> Target:
        """What the run's networks are timed on: what its profile was measured on, or what was asked for.

        What engines' builds learn is kept in the run's folder, and begins with what lies beside a profile that was
        given: a network then gets the kernels that its ops were measured with.
        """
        s = self.settings
        if s.profile is None:
            return (
                Target(s.backend, threads=s.threads).where_it_trains(s.device).keeping(self.folder / PROFILE)
            )
        target = Target.of_profile(latency.Profile.load(Path(s.profile)))
        kept, own = target.keeping(Path(s.profile)), target.keeping(self.folder / PROFILE)
        learnt, mine = kept.options.get("timing_cache"), own.options.get("timing_cache")
        if learnt is not None and mine is not None and learnt.is_file() and not mine.exists():
            write(mine, learnt.read_bytes())
        return own

    @cached_property
    def metrics(self) -> Metrics:
        """Where the figures of every epoch go."""
        return Metrics(self.folder, self.settings.track)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.data.steps_per_epoch(self.settings.batch_size) * self.settings.epochs

    @property
    def first(self) -> tuple[str, ...]:
        """Groups of the first layer that stay whole within a latency, by the one rule of plans and trainings."""
        return protected(self.structure, self.settings.model, asked=self.settings.protect_first)

    @cached_property
    def protected(self) -> tuple[str, ...]:
        """Groups that stay whole within a latency: of the first layer, and what --protect and --only leave whole."""
        return tuple(sorted({*self.first, *whole_groups(self.structure, self.settings)}))

    def macs(self, counts: Mapping[str, int]) -> int:
        """Returns the multiply-accumulates of one image."""
        return sum(macs(self.structure, counts).values())

    def active_macs(self, method: Method) -> Callable[[Mapping[str, int]], float]:
        """Returns what turns active units per name into the multiply-accumulates of one image."""
        if isinstance(method.units, Channels):
            return self.macs
        layers = macs(self.structure)
        sizes = {name: math.prod(shape) for name, shape in method.units.sizes.items()}
        return lambda counts: effective_macs(layers, {name: k / sizes[name] for name, k in counts.items()})

    def compact(self) -> nn.Module:
        """Returns the finished compact network, rebuilt from its plan and weights."""
        plan = self.folder / "plan.json"  # masks of single weights leave every shape as it was
        model = Plan.load(plan).apply(self.build()) if plan.is_file() else self.build()
        fill(model, self.folder / "pruned.safetensors")
        return model.eval()

    @property
    def has_dense(self) -> bool:
        """Whether the run has weights of the dense network: trained or given ones."""
        return (self.folder / "dense.safetensors").is_file()

    def dense(self) -> nn.Module:
        """Returns the dense network with its trained weights, or its initial ones without a baseline."""
        model = self.build()
        if self.ranks.once(lambda: self.has_dense):
            self.fill(model, "dense.safetensors")
        return model.eval()

    def teacher(self) -> nn.Module:
        """Returns the network whose answers the pruned one matches: the run's dense one, or one of given weights."""
        given = self.settings.distill
        if given is None or given == "dense":
            return self.dense()
        model = self.build()
        fit_weights(model, given, self.settings.model, option="--distill")
        return model.eval()

    def fill(self, model: nn.Module, name: str) -> None:
        """Gives a model the weights of a file of the folder, which the first rank reads."""
        if self.ranks.count == 1:
            fill(model, self.folder / name)
        else:
            model.load_state_dict(self.ranks.once(lambda: load_weights(self.folder / name)))

    def keep(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Writes weights or masks into the folder."""
        if self.ranks.first:
            save_weights(self.folder / name, weights)

    def note(self, name: str, values: Any) -> None:
        """Writes JSON values into the folder."""
        if self.ranks.first:
            save_json(self.folder / name, values)

    def forget(self, name: str) -> None:
        """Removes a file of the folder, if it is there."""
        if self.ranks.first:
            (self.folder / name).unlink(missing_ok=True)

    def budget_us(self, cost: LatencyCost) -> float:
        """Returns Ψ in µs, on the scale of the cost's dense latency."""
        us, fraction = parse_budget(self.settings.budget or "1")
        return us if us is not None else (fraction or 1.0) * cost.dense_us


def holds_cells(path: Path) -> bool:
    """Whether a file is a profile with cells in it: what a run that was refused has left, and the next one takes."""
    try:
        return bool(latency.Profile.load(path).cells)
    except ProfileError:
        return False


def save_plan(run: Run, selection: Selection) -> None:
    """Writes the plan of a run's network."""
    if not run.ranks.first:
        return
    model, made = run.settings.model, arguments(run.settings, run.data.n_classes)
    plan = Plan.from_selection(run.structure, selection, model=model, arguments=made)
    plan.save(run.folder / "plan.json", overwrite=True)
