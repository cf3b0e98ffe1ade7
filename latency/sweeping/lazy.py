"""Measures only the cells that a solver needs: the corners of every table, then the cells its answers depend on.

A full sweep prices every network; a plan needs a few. So a lazy sweep starts with the steps and the corners of every
table, and whoever plans with it asks for the cells of its answer, plans again, and stops when nothing new is asked
for. What it leaves is an ordinary profile: a sweep may fill it later, and a killed one resumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from latency.backends import Backend, adopted
from latency.device import pinned
from latency.errors import MeasurementError, UsageError
from latency.op import CONTRACTIONS, Op, in_words
from latency.profile_io import Journal
from latency.profiles import Profile
from latency.sweeping.design import Spec, specs
from latency.sweeping.measurer import Cell, Measurer, Progress, memory_of
from latency.sweeping.steps import Steps, kind_of, probe
from latency.timing.timer import Precision

__all__ = ["PROBES", "LazySweep", "probed"]


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
