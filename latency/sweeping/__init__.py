"""Measure the tables of some ops: few cells, in random order, each on the disk before the next.

Steps are probed first (`latency.sweeping.steps`). Then the cells that determine the tables (`latency.sweeping.design`)
are measured in one shuffled order over all tables (`latency.sweeping.schedule`), so that drift of the machine does not
become a slope of a table. A table that its held-out cells contradict gets further rows and columns (0068).

A full sweep prices every network; a plan needs a few. ``LazySweep`` starts with the steps and the corners of every
table; a plan asks for the cells of its answer until nothing new is asked for. Its profile may be filled later (0069).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

from latency.backends import Backend, adopted
from latency.device import TimingPolicy, pinned
from latency.errors import HoldoutWarning, MeasurementError, UsageError, need, outside
from latency.inspect import inspect
from latency.op import CONTRACTIONS, Op, in_words
from latency.profile_io import Journal
from latency.profiles import Profile
from latency.sweeping.cold_weights import cold_weights_of
from latency.sweeping.design import Design, Estimate, Spec, crossings, design, edge_above, refined, specs
from latency.sweeping.schedule import Cell, Measurer, Progress
from latency.sweeping.steps import Steps, kind_of, probe
from latency.timing.timer import Precision


class SweepOptions(TypedDict, total=False):
    """How tables are measured; all are optional.

    Attributes:
        threads: threads of the runtime; by default 1.
        progress: called with (cells done, cells in all), or True for a bar on stderr.
        seed: of order and hold-out; by default 0.
        fixed: for some ops, whether C_in and C_out never change.
        holdout: held-out cells per table at most; by default 6.
        precision: of one cell.
        settings: more arguments of the backend.
        every: measure the whole grid at multiples of this many channels, without probing: what HALP's tables are, and
            what the few cells of an ordinary sweep are judged by.
        policy: the figures by which the backend times; by default those of its kind of device.
    """

    threads: int
    progress: Progress | bool | None
    seed: int
    fixed: Mapping[Op, tuple[bool, bool]] | None
    holdout: int
    precision: Precision | None
    settings: Mapping[str, Any] | None
    every: int | None
    policy: TimingPolicy | None


DEFAULTS: SweepOptions = {
    "threads": 1, "progress": None, "seed": 0, "fixed": None, "holdout": 6, "precision": None, "settings": None,
    "every": None, "policy": None,
}  # fmt: skip


def _chosen(how: SweepOptions) -> SweepOptions:
    """Returns all options; those that were not given have their defaults."""
    if strange := how.keys() - DEFAULTS.keys():
        raise TypeError(f"a sweep takes no {', '.join(strange)}; its options are {', '.join(DEFAULTS)}")
    return {**DEFAULTS, **how}


def _opened(backend: str | Backend, ops: Sequence[Op], chosen: SweepOptions) -> Backend:
    """Returns the backend, told which ops are to be measured."""
    runtime = adopted(backend, threads=chosen["threads"], settings=chosen["settings"])
    if chosen["policy"] is not None:
        runtime.policy = chosen["policy"]
    runtime.expects(ops)
    return runtime


@overload
def sweep(
    ops: Iterable[Op],
    *,
    backend: str | Backend = ...,
    path: str | Path | None = ...,
    resume: bool = ...,
    dry_run: Literal[False] = ...,
    **how: Unpack[SweepOptions],
) -> Profile: ...


@overload
def sweep(
    ops: Iterable[Op], *, backend: str | Backend = ..., dry_run: Literal[True], **how: Unpack[SweepOptions]
) -> Estimate: ...


def sweep(
    ops: Iterable[Op],
    *,
    backend: str | Backend = "onnxruntime",
    path: str | Path | None = None,
    resume: bool = True,
    dry_run: bool = False,
    **how: Unpack[SweepOptions],
) -> Profile | Estimate:
    """Measures every table that some ops need, over all widths up to those they are built at.

    Args:
        ops: ops as built; equal ones are measured once.
        backend: a name, or a backend itself.
        path: the profile's file; a killed sweep is resumed from it.
        resume: whether a file that is there is continued.
        dry_run: return what would be done, measure nothing.
        **how: such as ``threads=4``; see `SweepOptions`.

    Returns:
        The profile, or the estimate of a dry run. Ops that the backend cannot build, or that do not
        fit in its memory, have no cell; they stand with the reason in ``environment["not_measured"]``.

    Raises:
        ProfileError: the file belongs to another environment.
        OutputInUseError: the file is there and not to be resumed, or another sweep writes it.

    Warns:
        HoldoutWarning: one held-out cell in twenty is off by more than 5 %.
    """
    need(ops, Iterable, "ops to time", "give [timed.op for timed in structure.ops]")
    chosen = _chosen(how)
    listed = list(ops)
    for op in listed:
        need(op, Op, "an op to time", "give [timed.op for timed in structure.ops]")
    if not listed:
        raise UsageError("no ops to time were given; give [timed.op for timed in structure.ops]")
    wanted = specs(listed, chosen["fixed"])
    runtime = _opened(backend, listed, chosen)
    memory = cold_weights_of(runtime, listed, runtime.environment())
    if dry_run:
        designs = _planned(wanted, chosen)
        return Estimate.of(wanted, designs, memory, ops=len(listed), refines=chosen["every"] is None)
    journal = Journal(None if path is None else Path(path), runtime.environment(), resume=resume)
    with journal, _progress(chosen["progress"]) as progress, pinned(chosen["threads"]):
        measurer = Measurer(runtime, journal, memory=memory, seed=chosen["seed"], progress=progress)
        measurer.from_the_start(lambda: _sweep(measurer, wanted, chosen))
    profile = Profile(journal.environment, journal.cells)
    warning = inspect(profile).holdout_warning
    if warning is not None:
        warnings.warn(warning, HoldoutWarning, stacklevel=outside())
    return profile


ROUNDS_OF_REFINEMENT = 3

MORE, MORE_CELLS = 0.5, 100
"""Refinement adds no more than this share of the cells first designed, or so many.

On a quiet machine ResNet-50 takes nearly as many. Beside a busy one tables and held-out cells disagree for other
reasons than what lies between the cells, and each round found new ones: 1,700 cells, and still going.
"""

MATTERS = 0.00003
"""Errors below this share of the widest ops together are left alone."""


def _sweep(measurer: Measurer, wanted: list[Spec], chosen: SweepOptions) -> None:
    """Probes, measures, refines; or measures whole grids."""
    holdout, seed, precision = chosen["holdout"], chosen["seed"], chosen["precision"] or Precision()
    if chosen["every"] is not None:
        _whole(measurer, wanted, Steps((chosen["every"], chosen["every"])), precision)
        return
    buildable = [spec for spec in wanted if measurer.builds(spec.op)]
    measurer.expect(sum(len(d.sweep) + len(d.holdout) for d in _planned(buildable, chosen)))
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
    wrong_share = measurer.backend.policy.table_error
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
            swept, held_out = refined(
                spec, step, profile, MATTERS * sum(widest_us.values()), seed=seed, wrong_share=wrong_share
            )
            if cells + len(swept) > most:
                continue
            cells += len(swept)
            more += [(spec.op.with_channels(i, o), "sweep", step) for i, o in swept]
            more += [(spec.op.with_channels(i, o), "holdout", step) for i, o in held_out]
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


def _planned(wanted: list[Spec], chosen: SweepOptions) -> list[Design]:
    """Returns the designs of a dry run: whole grids, or those of steps of eight, which most CPUs have."""
    if chosen["every"] is None:
        return [design(s, Steps((8, 8)), holdout=chosen["holdout"], seed=chosen["seed"]) for s in wanted]
    grids = [crossings(spec, Steps((chosen["every"], chosen["every"]))) for spec in wanted]
    return [Design(tuple(cells), (), len(cells)) for cells in grids]


@contextmanager
def _progress(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """Yields a callback (done, total) and closes the bar on exit."""
    if not isinstance(progress, bool) or not progress:
        yield None if isinstance(progress, bool) else progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("measuring cells"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class LazySweep:
    """Tables that are measured where they are asked for; a context manager.

    Args:
        ops: ops as built; equal ones are one table.
        backend: a name, or a backend itself.
        path: the profile's file; one that is there is continued.
        **how: as of `sweep`, without ``every``.

    Raises:
        ProfileError: the file belongs to another environment.
        OutputInUseError: another sweep writes the file.
    """

    def __init__(
        self,
        ops: Iterable[Op],
        *,
        backend: str | Backend = "onnxruntime",
        path: str | Path | None = None,
        **how: Unpack[SweepOptions],
    ) -> None:
        self._chosen = _chosen(how)
        self._listed = list(ops)
        self._wanted = specs(self._listed, self._chosen["fixed"])
        self._backend = _opened(backend, self._listed, self._chosen)
        self._path = None if path is None else Path(path)
        self._precision = self._chosen["precision"] or Precision()
        self._steps: dict[str, Steps] = {}
        self._journal: Journal | None = None
        self._measurer: Measurer | None = None

    def __enter__(self) -> LazySweep:
        self._journal, progress = Journal(self._path, self._backend.environment()), self._chosen["progress"]
        try:
            with pinned(self._chosen["threads"]):
                self._measurer = measurer = Measurer(
                    self._backend,
                    self._journal,
                    memory=cold_weights_of(self._backend, self._listed, self._journal.environment),
                    seed=self._chosen["seed"],
                    progress=progress if callable(progress) else None,
                )
                measurer.from_the_start(lambda: self._begin(measurer))
        except BaseException:
            self._journal.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._journal is not None:
            self._journal.close()

    @property
    def profile(self) -> Profile:
        """What has been measured so far."""
        journal = self._opened()[1]
        return Profile(journal.environment, journal.cells)

    def measure(self, cells: Iterable[tuple[Op, int, int]]) -> int:
        """Measures the edges above cells (op, C_in, C_out) that are not known yet; returns how many.

        Ops without a table are left out.
        """
        measurer, _ = self._opened()
        tables = {spec.op.table_key(): spec for spec in self._wanted}
        wanted: dict[Op, Cell] = {}
        for op, c_in, c_out in cells:
            name = op.table_key()
            if name not in self._steps or c_in < 1 or c_out < 1:
                continue
            found = edge_above(op, tables[name], self._steps[name], c_in, c_out)
            if measurer.known(found, "sweep") is None:
                wanted[found] = (found, "sweep", self._steps[name])
        if not wanted:
            return 0
        with pinned(self._chosen["threads"]):
            measurer.expect(len(wanted))
            return len(measurer.measure(list(wanted.values()), self._precision))

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
                op = edge_above(spec.op, spec, found, i, o)
                corners[op] = (op, "sweep", found)
        measurer.expect(len(corners))
        measurer.measure(list(corners.values()), self._precision)

    def _opened(self) -> tuple[Measurer, Journal]:
        if self._measurer is None or self._journal is None:
            raise UsageError(
                "a lazy sweep was asked to measure before it was opened; write `with LazySweep(…) as tables:`"
            )
        return self._measurer, self._journal


PROBES = Precision(relative=0.01, absolute_us=0.05, n_min=15)
"""Precision of probes, sharper than of cells: one per cent decides whether there is a step."""


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

    found, resolution = probe([spec.op for spec in buildable], us, measurer.backend.policy)
    return [found.get(kind_of(spec.op), Steps((resolution, resolution))) for spec in buildable], resolution
