"""Measure the tables of some ops: few cells, in random order, each on the disk before the next.

Steps are probed first (`latency.sweeping.steps`), then the cells that tell the tables (`latency.sweeping.design`) are
measured in one shuffled order over all tables (`latency.sweeping.schedule`), so that drift of the machine does not
become a slope of a table. Where the held-out cells of a table show it wrong by more than a few per cent, it gets
further rows and columns.

A full sweep prices every network; a plan needs a few. So ``LazySweep`` starts with the steps and the corners of every
table; whoever plans with it asks for the cells of its answer, plans again, and stops when nothing new is asked for.
It leaves an ordinary profile: a sweep may fill it later, and a killed one resumes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

from latency.backends import Backend, adopted
from latency.device import pinned
from latency.errors import HoldoutWarning, MeasurementError, UsageError
from latency.inspect import inspect
from latency.op import CONTRACTIONS, Op, in_words
from latency.profile_io import Journal
from latency.profiles import Profile
from latency.sweeping.cold_weights import Memory
from latency.sweeping.design import Design, Spec, crossings, design, refined, specs
from latency.sweeping.schedule import Cell, Measurer, Progress, memory_of
from latency.sweeping.steps import Steps, kind_of, probe
from latency.timing.timer import Precision

__all__ = ["PROBES", "Estimate", "LazySweep", "probed", "sweep"]


PROBES = Precision(relative=0.01, absolute_us=0.05, n_min=15)
"""What steps are told from must be sharper than a cell: one per cent decides."""


class LazySweep:
    """Tables that are measured where they are asked for; a context manager.

    Args:
        ops: ops as built; equal ones are one table.
        backend: a name, or a backend itself.
        path: the profile's file; one that is there is continued.
        resume: whether a file that is there is continued.
        threads: threads of the runtime.
        progress: called with (cells done, cells in all).
        seed: of the order.
        fixed: for some ops, whether C_in and C_out never change.
        precision: of one cell.
        settings: more arguments of the backend.

    Raises:
        ProfileError: the file belongs to another environment.
        OutputInUseError: the file is there and not to be resumed, or another sweep writes it.
    """

    def __init__(
        self,
        ops: Iterable[Op],
        *,
        backend: str | Backend = "onnxruntime",
        path: str | Path | None = None,
        resume: bool = True,
        threads: int = 1,
        progress: Progress | None = None,
        seed: int = 0,
        fixed: Mapping[Op, tuple[bool, bool]] | None = None,
        precision: Precision | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._listed = list(ops)
        self._wanted = specs(self._listed, fixed)
        self._backend = adopted(backend, threads=threads, settings=settings)
        self._backend.expects(self._listed)
        self._path, self._resume, self._threads = path, resume, threads
        self._progress, self._seed = progress, seed
        self._precision = precision or Precision()
        self._steps: dict[str, Steps] = {}
        self._journal: Journal | None = None
        self._measurer: Measurer | None = None

    def __enter__(self) -> LazySweep:
        path = None if self._path is None else Path(self._path)
        self._journal = Journal(path, self._backend.environment(), resume=self._resume)
        try:
            with pinned(self._threads):
                self._measurer = Measurer(
                    self._backend,
                    self._journal,
                    memory=memory_of(self._backend, self._listed, self._journal.environment),
                    seed=self._seed,
                    told=self._progress,
                )
                measurer = self._measurer
                measurer.from_the_start(lambda: self._begin(measurer))
        except BaseException:
            self._journal.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal is not None:
            self._journal.close()

    @property
    def profile(self) -> Profile:
        """What has been measured so far."""
        journal = self._opened()[1]
        return Profile(journal.environment, journal.cells)

    def measure(self, cells: Iterable[tuple[Op, int, int]]) -> int:
        """Measures the edges above some cells, where they are not known yet.

        Args:
            cells: (op, C_in, C_out); cells of ops that have no table, and empty ones, are left out.

        Returns:
            How many were measured.
        """
        measurer, _ = self._opened()
        tables = {spec.op.table_key(): spec for spec in self._wanted}
        asked: dict[Op, Cell] = {}
        for op, c_in, c_out in cells:
            name = op.table_key()
            if name not in self._steps or c_in < 1 or c_out < 1:
                continue
            found = _edge(op, tables[name], self._steps[name], c_in, c_out)
            if measurer.known(found, "sweep") is None:
                asked[found] = (found, "sweep", self._steps[name])
        if not asked:
            return 0
        with pinned(self._threads):
            measurer.expect(len(asked))
            return len(measurer.measure(list(asked.values()), self._precision))

    def _begin(self, measurer: Measurer) -> None:
        """Finds the steps, and measures the corners of every table."""
        buildable = [spec for spec in self._wanted if measurer.builds(spec.op)]
        kinds = {kind_of(spec.op) for spec in buildable if spec.op.kind in CONTRACTIONS}
        measurer.expect(40 * len(kinds) + 4 * len(buildable))  # about: both axes of a kind, and the corners
        steps, _ = probed(measurer, buildable)
        self._steps = {spec.op.table_key(): found for spec, found in zip(buildable, steps, strict=True)}
        corners: dict[Op, Cell] = {}
        for spec, found in zip(buildable, steps, strict=True):
            ins = {spec.op.c_in, *spec.ins} | (set() if spec.fixed_in else {1})
            outs = {spec.op.c_out, *spec.outs} | (set() if spec.fixed_out else {1})
            pairs = (
                [(i, round(i * spec.op.c_out / spec.op.c_in)) for i in ins]
                if spec.op.diagonal
                else [(i, o) for i in (min(ins), max(ins)) for o in (min(outs), max(outs))]
            )
            for i, o in pairs:
                op = _edge(spec.op, spec, found, i, o)
                corners[op] = (op, "sweep", found)
        measurer.expect(len(corners))
        measurer.measure(list(corners.values()), self._precision)

    def _opened(self) -> tuple[Measurer, Journal]:
        if self._measurer is None or self._journal is None:
            raise UsageError(
                "a lazy sweep was asked to measure before it was opened; write `with LazySweep(…) as tables:`"
            )
        return self._measurer, self._journal


def probed(measurer: Measurer, buildable: list[Spec]) -> tuple[list[Steps], int]:
    """Returns the steps of every table and the resolution, measuring what tells them where it is not known."""

    def us(op: Op) -> float:
        cell = measurer.known(op, "probe")
        if cell is None:
            measured = measurer.measure([(op, "probe", None)], PROBES)
            if not measured:
                raise MeasurementError(
                    f"the steps of {in_words(op)} were to be probed at {op.c_in}→{op.c_out}, which could not be "
                    f"measured: {measurer.journal.environment['not_measured'][-1]}; free the device and start again"
                )
            cell = measured[0]
        return float(cell["us"])

    found, resolution = probe([spec.op for spec in buildable], us)
    return [found.get(kind_of(spec.op), Steps((resolution, resolution))) for spec in buildable], resolution


def _edge(op: Op, spec: Spec, found: Steps, c_in: int, c_out: int) -> Op:
    """Returns an op at the right edges above two widths, never beyond the widest that was built."""
    if op.diagonal:
        unit = spec.op.c_in // spec.op.groups if spec.op.groups > 1 else 1
        step = max(found.steps)
        step = step if step % unit == 0 else step * unit
        least = 2 if spec.op.depthwise else 1  # a single channel is no longer told from a dense op
        i = min(max(least, -(-c_in // step) * step), spec.op.c_in)
        return spec.op.with_channels(i, round(i * spec.op.c_out / spec.op.c_in))
    i, o = (
        width if fixed else min(-(-width // step) * step, widest)
        for width, fixed, step, widest in (
            (c_in, spec.fixed_in, found.steps[0], spec.op.c_in),
            (c_out, spec.fixed_out, found.steps[1], spec.op.c_out),
        )
    )
    return spec.op.with_channels(i, o)


ROUNDS_OF_REFINEMENT = 3

MORE, MORE_CELLS = 0.5, 100
"""Refinement adds no more than this share of the cells first designed, or so many.

On a quiet machine ResNet-50 takes nearly as many. Beside a busy one tables and held-out cells disagree for other
reasons than what lies between the cells, and each round found new ones: 1,700 cells, and still going.
"""

MATTERS = 0.00003
"""Errors below this share of the widest ops together are left alone."""


@dataclass(frozen=True)
class Estimate:
    """What a sweep would do.

    Attributes:
        ops: ops that were named.
        tables: unique tables among them.
        cells: cells that would be measured.
        holdout: of these, cells that only judge the tables.
        candidates: cells at the crossings of all edges, which the tables will answer for.
        seconds: roughly how long it takes on one undisturbed core.
    """

    ops: int
    tables: int
    cells: int
    holdout: int
    candidates: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.ops} ops, {self.tables} tables: {self.cells} cells ({self.holdout} held out) of "
            f"{self.candidates}, about {self.seconds:.0f} s"
        )


@overload
def sweep(
    ops: Iterable[Op],
    *,
    backend: str | Backend = ...,
    path: str | Path | None = ...,
    resume: bool = ...,
    threads: int = ...,
    progress: Progress | bool | None = ...,
    seed: int = ...,
    fixed: Mapping[Op, tuple[bool, bool]] | None = ...,
    holdout: int = ...,
    precision: Precision | None = ...,
    settings: Mapping[str, Any] | None = ...,
    every: int | None = ...,
    dry_run: Literal[False] = ...,
) -> Profile: ...


@overload
def sweep(
    ops: Iterable[Op],
    *,
    backend: str | Backend = ...,
    path: str | Path | None = ...,
    resume: bool = ...,
    threads: int = ...,
    progress: Progress | bool | None = ...,
    seed: int = ...,
    fixed: Mapping[Op, tuple[bool, bool]] | None = ...,
    holdout: int = ...,
    precision: Precision | None = ...,
    settings: Mapping[str, Any] | None = ...,
    every: int | None = ...,
    dry_run: Literal[True],
) -> Estimate: ...


def sweep(
    ops: Iterable[Op],
    *,
    backend: str | Backend = "onnxruntime",
    path: str | Path | None = None,
    resume: bool = True,
    threads: int = 1,
    progress: Progress | bool | None = None,
    seed: int = 0,
    fixed: Mapping[Op, tuple[bool, bool]] | None = None,
    holdout: int = 6,
    precision: Precision | None = None,
    settings: Mapping[str, Any] | None = None,
    every: int | None = None,
    dry_run: bool = False,
) -> Profile | Estimate:
    """Measures every table that some ops need, over all widths up to those they are built at.

    Args:
        ops: ops as built; equal ones are measured once.
        backend: a name, or a backend itself.
        path: the profile's file; a killed sweep is resumed from it.
        resume: whether a file that is there is continued.
        threads: threads of the runtime.
        progress: called with (cells done, cells in all), or True for a bar on stderr.
        seed: of order and hold-out.
        fixed: for some ops, whether C_in and C_out never change.
        holdout: held-out cells per table at most.
        precision: of one cell.
        settings: more arguments of the backend.
        every: measure the whole grid at multiples of this many channels, without probing: what HALP's tables are, and
            what the few cells of an ordinary sweep are judged by.
        dry_run: return what would be done, measure nothing.

    Returns:
        The profile, or the estimate of a dry run. Ops that the backend cannot build, or that do not
        fit in its memory, have no cell; they stand with the reason in ``environment["not_measured"]``.

    Raises:
        ProfileError: the file belongs to another environment.
        OutputInUseError: the file is there and not to be resumed, or another sweep writes it.

    Warns:
        HoldoutWarning: one held-out cell in twenty is off by more than 5 %.
    """
    listed = list(ops)
    wanted = specs(listed, fixed)
    runtime = adopted(backend, threads=threads, settings=settings)
    runtime.expects(listed)
    memory = memory_of(runtime, listed, runtime.environment())
    if dry_run:
        return _estimate(listed, wanted, holdout, seed, every, memory)
    journal = Journal(None if path is None else Path(path), runtime.environment(), resume=resume)
    with journal, _told(progress) as told, pinned(threads):
        measurer = Measurer(runtime, journal, memory=memory, seed=seed, told=told)
        enough = precision or Precision()

        def work() -> None:
            if every is None:
                _sweep(measurer, wanted, holdout=holdout, seed=seed, precision=enough)
            else:
                _whole(measurer, wanted, Steps((every, every)), enough)

        measurer.from_the_start(work)
    profile = Profile(journal.environment, journal.cells)
    doubt = inspect(profile).doubt
    if doubt is not None:
        warnings.warn(doubt, HoldoutWarning, stacklevel=2)
    return profile


def _sweep(measurer: Measurer, wanted: list[Spec], *, holdout: int, seed: int, precision: Precision) -> None:
    """Probes, measures, refines."""
    buildable = [spec for spec in wanted if measurer.builds(spec.op)]
    measurer.expect(sum(len(d.sweep) + len(d.holdout) for d in _guessed(buildable, holdout, seed)))
    steps, _ = probed(measurer, buildable)
    designs = [design(s, g, holdout=holdout, seed=seed) for s, g in zip(buildable, steps, strict=True)]
    todo: list[Cell] = [
        (spec.op.with_channels(i, o), role, step)
        for spec, step, cells in zip(buildable, steps, designs, strict=True)
        for role, pairs in (("sweep", cells.sweep), ("holdout", cells.holdout))
        for i, o in pairs
    ]
    measurer.expect(len(todo))
    measurer.measure(todo, precision)
    tables = {spec.op.table_key() for spec in buildable}
    designed = sum(len(d.sweep) for d in designs)
    most = designed + max(MORE * designed, MORE_CELLS)
    for _ in range(ROUNDS_OF_REFINEMENT):
        profile = Profile(measurer.journal.environment, measurer.journal.cells)
        widest_us = {spec.op: _widest_us(profile, spec.op) for spec in buildable}
        cells = sum(
            c.get("role", "sweep") == "sweep" and Op.from_key(c).table_key() in tables for c in profile.cells
        )
        more: list[Cell] = []
        for spec, step in sorted(
            zip(buildable, steps, strict=True), key=lambda pair: -widest_us[pair[0].op]
        ):  # those that count the most first
            swept, held = refined(spec, step, profile, MATTERS * sum(widest_us.values()), seed=seed)
            if cells + len(swept) > most:
                continue
            cells += len(swept)
            more += [(spec.op.with_channels(i, o), "sweep", step) for i, o in swept]
            more += [(spec.op.with_channels(i, o), "holdout", step) for i, o in held]
        if not more:
            break
        measurer.expect(len(more))
        measurer.measure(more, precision)


def _whole(measurer: Measurer, wanted: list[Spec], steps: Steps, precision: Precision) -> None:
    """Measures every crossing of the multiples of a step."""
    todo: list[Cell] = [
        (spec.op.with_channels(i, o), "sweep", steps)
        for spec in wanted
        if measurer.builds(spec.op)
        for i, o in crossings(spec, steps)
    ]
    measurer.expect(len(todo))
    measurer.measure(todo, precision)


def _widest_us(profile: Profile, op: Op) -> float:
    """Returns the time of the widest op measured; 0 where every cell was left out."""
    if not profile.has_table(op):
        return 0.0
    table = profile.table(op)
    return float(table.lookup(table.op.c_in, table.op.c_out))


def _guessed(wanted: list[Spec], holdout: int, seed: int) -> list[Design]:
    """Returns the designs for steps of eight, which most CPUs have: what a dry run counts with."""
    return [design(s, Steps((8, 8)), holdout=holdout, seed=seed) for s in wanted]


def _estimate(
    listed: list[Op], wanted: list[Spec], holdout: int, seed: int, every: int | None, memory: Memory | None
) -> Estimate:
    designs = _guessed(wanted, holdout, seed)
    if every is not None:
        whole = [crossings(spec, Steps((every, every))) for spec in wanted]
        designs = [Design(tuple(cells), (), len(cells)) for cells in whole]
    seconds = 5.0  # the anchor, and what tells the steps
    for spec, cells in zip(wanted, designs, strict=True):
        for c_in, c_out in (*cells.sweep, *cells.holdout):
            op = spec.op.with_channels(c_in, c_out)
            once = op.macs / 2e10
            # Builds of two graphs, and fifty rounds of three times the op as far as a quarter of a second goes,
            # a few of each build in any case; where its weights come from memory, what drives them there.
            seconds += 0.05 + max(min(0.25, 150.0 * once), 45.0 * once)
            seconds += 0.2 if memory is not None and memory.has(op) else 0.0
    if every is None:
        seconds *= 1.4  # cells that refinement adds, and that are measured again
    return Estimate(
        ops=len(listed),
        tables=len(wanted),
        cells=sum(len(d.sweep) + len(d.holdout) for d in designs),
        holdout=sum(len(d.holdout) for d in designs),
        candidates=sum(d.candidates for d in designs),
        seconds=seconds,
    )


class _told:  # noqa: N801 - a context manager that reads as a verb
    """Yields a callback (done, total) and closes the bar on exit."""

    def __init__(self, progress: Progress | bool | None) -> None:
        self._progress = progress
        self._bar: Any = None

    def __enter__(self) -> Progress | None:
        if not isinstance(self._progress, bool):
            return self._progress
        if not self._progress:
            return None
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("measuring cells"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        task = self._bar.add_task("", total=None)
        return lambda done, total: self._bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
