"""Schedules the cells: which is measured when, and in how many builds, within the limit of time.

Cells that found no quiet moment wait for one and are visited again, the one first that may be off the most; after
three visits, or where too much time goes into it, a cell stands as it is, and says so.

Where an op uses its weights seldom, they are read from memory, as in a network (`latency.sweeping.cold_weights`), and
cells are timed in turns.

Where memory happens to lie changes a time as well, for as long as a build lives. So a backend may ask for several
builds of a cell. Two that agree are averaged; otherwise more are made, until their mean is known as well: in a
network, too, memory lies where it happens to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latency.backends import Backend, Built
from latency.op import Op
from latency.sweeping.cold_weights import Memory, turn_bytes
from latency.sweeping.steps import Steps
from latency.timing.contention import Anchor
from latency.timing.timer import Precision, Sampling, Timing, agree, in_turns

__all__ = ["MOST_BUILDS", "Job", "Visits"]


MOST_BUILDS = 16

MOST_SECONDS = 0.6
"""Spent on the builds of one cell, from the third on."""

VISITS = 3
"""How often a cell without a quiet moment, or a cold one whose builds differ, is measured before it stands as it is."""

AGAIN, PATIENCE = 0.25, 15.0
"""Visits beyond the first, and waiting for them, take no more than this share of all time, and so many seconds besides.

Where nothing is quiet, they find nothing else. The seconds are for the first cells, which tell the steps of all: one of
them that a neighbour's burst slowed by a sixth hid a pattern, and cost a MobileNet-V2 9 %.
"""

GROUP = 16
"""So many cells at most are timed in turns where weights come from memory, of as many bytes as the network has.

Each finds its own weights gone, and what a call needs besides them still there, as in a network.
"""

WORTH = 0.001
"""What may be wrong by less than this share of the longest cell is not visited again."""

TOGETHER = 100
"""After so many cells the disturbed ones are visited again, and no more of them wait: what is lost with the process."""

SAMPLES, PAUSE = 20, 0.1
"""Of the anchor, before a cell is visited again, and seconds until the next where only such cells are left.

A neighbour's work comes in bursts of up to ten seconds: visited at once, cells met the same one again.
"""


@dataclass
class Job:
    """A cell to be measured."""

    op: Op
    role: str
    steps: Steps | None
    samplings: list[Sampling] = field(default_factory=list)
    visits: int = 0
    timing: Timing | None = None
    agreed: bool = True
    cell: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether another visit would tell nothing."""
        return self.timing is None or (self.timing.quiet and self.agreed) or self.visits >= VISITS

    @property
    def doubt_us(self) -> float:
        """Possible error in µs where every run was contended: as if each was slowed as the anchor was."""
        if self.timing is None:
            return 0.0
        if self.timing.quiet:
            return float(self.cell["ci_hi"] - self.cell["ci_lo"]) / 2
        return abs(float(self.cell["us"])) * (1.0 - 1.0 / self.timing.slowdown)


class Visits:
    """Measures cells, one or a group at a time.

    Args:
        backend: builds ops.
        anchor: tells which moments are quiet; without one all are.
        memory: what of the network comes from memory; None where nothing does.
        rng: of the order.
        taken: called with a job, the timings of all its builds, and one build; stores the finished cell.
        failed: told of an op that could not be built or run, and why; raises what is an error.
    """

    def __init__(
        self,
        backend: Backend,
        anchor: Anchor | None,
        memory: Memory | None,
        rng: np.random.Generator,
        taken: Callable[[Job, Sequence[Timing], Built], None],
        failed: Callable[[Op, Exception], None],
    ) -> None:
        self._backend, self._anchor, self._memory, self._rng = backend, anchor, memory, rng
        self._taken, self._failed = taken, failed
        self._asked = backend.builds
        self._seconds = self._again_s = self._longest_us = 0.0

    def visited(self, jobs: Sequence[Job], precision: Precision) -> Iterator[Job]:
        """Measures cells, contended ones again while time is left; yields each job once its result is final."""
        waiting: list[Job] = []
        for start in range(0, len(jobs), TOGETHER):
            groups = self._groups(jobs[start : start + TOGETHER])
            for k in self._rng.permutation(len(groups)):
                self._visit(groups[k], precision)
                for job in groups[k]:
                    if job.done or job.doubt_us <= max(precision.absolute_us, WORTH * self._longest_us):
                        yield job
                    else:
                        waiting.append(job)
            yield from self._again(waiting, precision, last=start + TOGETHER >= len(jobs))

    def _again(self, waiting: list[Job], precision: Precision, *, last: bool) -> Iterator[Job]:
        """Measures waiting cells while the machine is calm, those with fewest visits first, then the most uncertain.

        Where caches are emptied for one, others go with it in turns. Yields those that are done; of the others the
        least doubtful where too many wait, and all of them at last.
        """
        while waiting:
            waiting.sort(key=lambda job: (-job.visits, job.doubt_us))
            in_time = self._again_s < AGAIN * self._seconds + PATIENCE
            if in_time and self._calm():
                group = self._most_doubtful(waiting)
                self._visit(group, precision)
                yield from (job for job in group if job.done)
                waiting += [job for job in group if not job.done]
            elif in_time and last:
                time.sleep(PAUSE)
                self._again_s += PAUSE
            elif last or len(waiting) > TOGETHER:
                yield waiting.pop(0)
            else:
                break

    def _calm(self) -> bool:
        """Returns whether the machine is uncontended now."""
        return self._anchor is None or self._anchor.calm(SAMPLES)

    def _groups(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Returns the cells that are visited at once: some of similar size where caches are emptied, else one."""
        groups = [[job] for job in jobs if not self._emptied(job.op)]
        group: list[Job] = []
        for job in sorted((job for job in jobs if self._emptied(job.op)), key=lambda job: job.op.weights):
            if not self._fits([*group, job]):
                groups.append(group)
                group = []
            group.append(job)
        return [group for group in [*groups, group] if group]

    def _most_doubtful(self, waiting: list[Job]) -> list[Job]:
        """Takes the last cell; with cold weights also the last others that have them."""
        group = [waiting.pop()]
        if self._emptied(group[0].op):
            for job in reversed(waiting.copy()):
                if self._emptied(job.op) and self._fits([*group, job]):
                    group.append(job)
                    waiting.remove(job)
        return group

    def _fits(self, group: Sequence[Job]) -> bool:
        """Returns whether cells can go in turns: one always, more if they read no more than the network has."""
        read = self._asked * sum(self._backend.reads(job.op) for job in group)
        return len(group) == 1 or (
            len(group) <= GROUP and self._memory is not None and read <= self._memory.distance
        )

    def _visit(self, jobs: Sequence[Job], precision: Precision) -> None:
        """Times a cell, or some whose weights come from memory; one that cannot be measured is written down as such."""
        begun = time.perf_counter()
        again = jobs[0].visits > 0
        for job in jobs:
            job.timing = None
        if self._memory is not None and self._emptied(jobs[0].op):
            self._together(jobs, precision, self._memory)
        else:
            try:
                self._alone(jobs[0], precision)
            except Exception as error:
                self._failed(jobs[0].op, error)
        spent = time.perf_counter() - begun
        self._seconds += spent
        self._again_s += spent if again else 0.0

    def _together(self, jobs: Sequence[Job], precision: Precision, memory: Memory) -> None:
        """Times cells alternately, and empties the caches before each run."""
        ready: list[tuple[Job, Built]] = []
        for job in jobs:
            held = len(job.samplings)
            disturbed = [number for number in range(held) if not job.samplings[number].timing().quiet]
            try:
                builts = [
                    self._begun(job, number, precision)
                    for number in disturbed or range(held, held + self._asked)
                ]
            except Exception as error:
                self._failed(job.op, error)
            else:
                ready.append((job, builts[0]))
        if not ready:
            return
        in_turns(
            [s for job, _ in ready for s in job.samplings if s.begun],
            memory.before(self._backend, ready[0][0].op),
        )
        for job, built in ready:
            timings = [sampling.timing() for sampling in job.samplings]
            job.agreed = len(timings) == 1 or agree(timings)
            self._take(job, timings, built)

    def _alone(self, job: Job, precision: Precision) -> None:
        """Times one cell, in as many builds as it needs."""
        timings: list[Timing] = []
        end = time.perf_counter() + MOST_SECONDS
        while True:
            built = self._begun(job, len(timings), precision)
            sampling = job.samplings[len(timings)]
            in_turns([sampling])
            timings.append(sampling.timing())
            spent = len(timings) >= MOST_BUILDS or (len(timings) > 2 and time.perf_counter() > end)
            # what differs without a quiet moment says nothing of where memory lies
            spent = spent or self._asked == 1 or not all(t.quiet for t in timings)
            if len(timings) >= self._asked and (spent or agree(timings)):
                break
        self._take(job, timings, built)

    def _begun(self, job: Job, number: int, precision: Precision) -> Built:
        """Builds a cell for one of its samplings and warms it up."""
        if number == len(job.samplings):
            job.samplings.append(
                Sampling(clock=self._backend.clock(), anchor=self._anchor, precision=precision)
            )
        built = self._backend.build(job.op)
        job.samplings[number].begin(built.run, built.minus, reads=turn_bytes(job.op, built))
        return built

    def _take(self, job: Job, timings: Sequence[Timing], built: Built) -> None:
        self._taken(job, timings, built)
        job.visits += 1
        self._longest_us = max(self._longest_us, float(job.cell["us"]))

    def _emptied(self, op: Op) -> bool:
        return self._memory is not None and self._memory.empties(op)
