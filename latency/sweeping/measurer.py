"""Measures cells in random order, stores each before the next, and measures contended ones again.

One order over all tables, so that drift of the machine does not become a slope of a table. When a cell is visited,
and in how many builds, is said in `latency.sweeping.schedule`; here it becomes a line of the journal, known ones are
left out, and where reading the weights is all an op does what that takes is added (`latency.sweeping.cold_weights`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from latency.backends import Backend, Built, out_of_memory
from latency.device import environment_id
from latency.errors import UnsupportedOpError
from latency.op import Op, in_words, weight_bytes
from latency.profile_io import Journal
from latency.profiles import COLD, WARM, cell_key
from latency.sweeping.cold_weights import Memory, Rate, both_ways
from latency.sweeping.schedule import Job, Visits
from latency.sweeping.steps import Steps
from latency.timing.contention import Anchor
from latency.timing.timer import Precision, Timing, joined

__all__ = ["Cell", "Measurer", "Progress", "memory_of"]


Progress = Callable[[int, int], None]

Cell = tuple[Op, str, Steps | None]
"""An op at its widths, the role its time will play, and the steps of its axes as far as they are known."""

REFERENCE = "anchor_us"
"""Field of the environment: µs of the anchor at the speed that all times of a profile are stated at."""

SETTLED = 2.0
"""Seconds in which the anchor's floor is looked for."""


class _BegunDisturbed(Exception):  # noqa: N818 - nothing went wrong for good
    """The floor of the anchor fell so far that the cells until now were measured under contention."""


class Measurer:
    """Measures cells that a journal does not hold yet.

    Args:
        backend: builds ops.
        journal: where cells go; those it holds are not measured again.
        memory: what of the network comes from memory; None where nothing does.
        seed: of the order.
        told: called with (cells done, cells in all).
    """

    def __init__(
        self,
        backend: Backend,
        journal: Journal,
        *,
        memory: Memory | None = None,
        seed: int = 0,
        told: Progress | None = None,
    ) -> None:
        self.backend = backend
        self.journal = journal
        self.done = 0
        self.total = 0
        self._told = told
        self._rng = np.random.default_rng(seed)
        self._known = {cell_key(c): c for c in journal.cells}
        self._asked = backend.builds
        self._memory = memory
        self._rates: dict[str, Rate] = {}
        call = backend.anchor()
        self._anchor = Anchor(call, backend.clock()) if call is not None else None
        if self._anchor is not None:
            self._anchor.settle(SETTLED)
            if REFERENCE not in journal.environment:
                journal.state({REFERENCE: round(self._anchor.reference_us, 3)})
            self._anchor.reference_us = journal.environment[REFERENCE]
        self._fresh = not journal.cells
        self._visits = Visits(backend, self._anchor, memory, self._rng, self._take, self._left_out)

    def from_the_start(self, work: Callable[[], object]) -> None:
        """Runs some work, and repeats it where it began under contention that was taken for the normal speed.

        What was measured in this process is forgotten then; a journal that held cells before is only continued.
        """
        while True:
            try:
                work()
            except _BegunDisturbed:
                assert self._anchor is not None
                self._anchor.refer()
                self.journal.forget()
                self.journal.state({REFERENCE: round(self._anchor.reference_us, 3)})
                self._known, self._rates = {}, {}
                self.done = self.total = 0
            else:
                self._fresh = False
                return

    def builds(self, op: Op) -> bool:
        """Returns whether the backend can build an op; one that it cannot is written down."""
        try:
            self.backend.build(op)
        except Exception as error:
            self._left_out(op, error)
            return False
        return True

    def known(self, op: Op, role: str) -> dict[str, Any] | None:
        """Returns the cell of an op in a role, None if it was not measured."""
        return self._known.get(cell_key({**op.key(), "cache": self._state(op), "role": role}))

    def expect(self, cells: int) -> None:
        """Sets the number of cells of the progress."""
        self.total = self.done + cells
        self._tell()

    def measure(self, todo: Sequence[Cell], precision: Precision) -> list[dict[str, Any]]:
        """Measures cells in random order, those that are known left out; returns what was appended."""
        jobs = []
        for op, role, steps in todo:
            if self.known(op, role) is not None:
                self.done += 1
                continue
            jobs.append(Job(op, role, steps))
        self.backend.prepare([job.op for job in jobs])
        if self._asked > 1:
            precision = replace(
                precision,
                relative=precision.relative * math.sqrt(self._asked),  # of a mean of so many
                n_min=max(5, -(-precision.n_min // self._asked)),
                seconds=precision.seconds / self._asked,
            )
        shuffled = [jobs[k] for k in self._rng.permutation(len(jobs))]
        appended: list[dict[str, Any]] = []
        self._tell()
        for job in self._visits.visited(shuffled, precision):
            if job.timing is not None:
                self.journal.append(job.cell)
                self._known[cell_key(job.cell)] = job.cell
                appended.append(job.cell)
            self.done += 1
            self.total = max(self.total, self.done)
            self._tell()
            if self._fresh and self._anchor is not None and self._anchor.disturbed_at_first:
                raise _BegunDisturbed
        return appended

    def _take(self, job: Job, timings: Sequence[Timing], built: Built) -> None:
        """Makes a cell of what was found, without the builds, which hold the op's weights."""
        job.timing = joined(timings)
        if self._memory is not None and self._memory.streams(job.op):
            rate = self._rate(job.op, self._memory)
            job.timing = rate.onto(job.timing, built.copies * weight_bytes(job.op))
            built = replace(built, method=f"{built.method}+memory")
        job.cell = self._cell(job, job.timing, built)

    def _state(self, op: Op) -> str:
        """Returns whether an op finds its weights in a cache."""
        return COLD if self._memory is not None and self._memory.has(op) else WARM

    def _rate(self, op: Op, memory: Memory) -> Rate:
        """Returns what a byte of the weights of a table's ops takes longer from memory, from two cells of one op."""
        name = op.table_key()
        if name not in self._rates:
            sample = memory.sample(op)
            keys = [cell_key({**sample.key(), "cache": state, "role": "probe"}) for state in (WARM, COLD)]
            if not all(key in self._known for key in keys):
                *timings, built = both_ways(self.backend, sample, self._anchor, memory)
                for key, state, timing in zip(keys, (WARM, COLD), timings, strict=True):
                    self._known[key] = self._cell(Job(sample, "probe", None), timing, built, state)
                    self.journal.append(self._known[key])
            warm, cold = (self._known[key] for key in keys)
            self._rates[name] = Rate.of(warm, cold, weight_bytes(sample))
        return self._rates[name]

    def _left_out(self, op: Op, error: Exception) -> None:
        """Writes that a cell cannot be built or does not fit in memory, and goes on; anything else is an error."""
        if not isinstance(error, UnsupportedOpError) and not out_of_memory(error):
            raise error
        why = "out of memory" if out_of_memory(error) else str(error).split(";")[0]
        self.journal.leave_out(f"{in_words(op)} {op.c_in}→{op.c_out}: {why}")

    def _cell(self, job: Job, timing: Timing, built: Built, state: str | None = None) -> dict[str, Any]:
        environment, copies = self.journal.environment, built.copies
        cell: dict[str, Any] = {
            **job.op.key(),
            "cache": state or self._state(job.op),
            "us": round(timing.us / copies, 3),
            "ci_lo": round(timing.ci_lo / copies, 3),
            "ci_hi": round(timing.ci_hi / copies, 3),
            "n": timing.n,
            "method": built.method if timing.quiet else f"{built.method}/disturbed",
            "slowdown": round(timing.slowdown, 3),
            "tactic": built.tactic,
            "time": int(time.time()),
            "env": environment.get("id") or environment_id(environment),
            "role": job.role,
            **self.backend.state(),
        }
        if timing.contention is not None:
            cell["contention"] = round(timing.contention, 3)
        if job.op.reads_image:
            cell["image"] = True
        if job.steps is not None:
            cell["steps"] = list(job.steps.steps)
            if any(job.steps.pattern):
                cell["pattern"] = [list(p) if p else None for p in job.steps.pattern]
            if any(job.steps.slow):
                cell["slow"] = [list(p) if p else None for p in job.steps.slow]
        return cell

    def _tell(self) -> None:
        if self._told is not None:
            self._told(self.done, max(self.total, 1))


def memory_of(backend: Backend, ops: Iterable[Op], environment: Mapping[str, Any]) -> Memory | None:
    """Returns which weights of a network are cold, where a backend can empty the caches; else None."""
    return Memory.of(ops, environment) if backend.evicts else None
