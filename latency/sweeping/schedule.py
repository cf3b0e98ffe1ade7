"""Which cell is measured when, and in how many builds? In random order, each stored before the next.

One order over all tables, so that drift of the machine does not become a slope of a table. Contended cells wait for a
quiet moment and are measured again, the most uncertain first; after three visits, or where that takes too long, a
cell's result is final, and its method says that it is contended (0065).

Cells with cold weights are timed in turns (`latency.sweeping.cold_weights`). Where a backend asks for several builds of
a cell, two that agree are averaged; otherwise more are made (0050).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from latency.backends import Backend, Built
from latency.device import TimingPolicy, environment_id
from latency.errors import UnsupportedOpError, out_of_memory
from latency.op import Op, in_words, weight_bytes
from latency.profile_io import Journal
from latency.profiles import COLD, WARM, cell_key
from latency.sweeping.cold_weights import ColdWeights, Rate, round_bytes, warm_and_cold
from latency.sweeping.steps import Steps
from latency.timing import Anchor
from latency.timing.timer import Precision, Sampling, Timing, agree, interleave, joined


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

    def done(self, policy: TimingPolicy) -> bool:
        """Returns whether its result is final."""
        return self.timing is None or (self.timing.quiet and self.agreed) or self.visits >= policy.visits

    @property
    def uncertainty_us(self) -> float:
        """Possible error in µs where every run was contended: as if each was slowed as the anchor was."""
        if self.timing is None:
            return 0.0
        if self.timing.quiet:
            return float(self.cell["ci_hi"] - self.cell["ci_lo"]) / 2
        return abs(float(self.cell["us"])) * (1.0 - 1.0 / self.timing.slowdown)


class Schedule:
    """Measures cells, one or a group at a time; ``store`` takes each, ``failed`` an op that cannot be built or run."""

    def __init__(
        self,
        backend: Backend,
        anchor: Anchor | None,
        memory: ColdWeights,
        rng: np.random.Generator,
        store: Callable[[Job, Sequence[Timing], Built], None],
        failed: Callable[[Op, Exception], None],
    ) -> None:
        self._backend, self._anchor, self._memory, self._rng = backend, anchor, memory, rng
        self._store, self._failed = store, failed
        self._least_builds, self._policy = backend.builds, backend.policy
        self._seconds = self._again_s = self._longest_us = 0.0

    def visited(self, jobs: Sequence[Job], precision: Precision) -> Iterator[Job]:
        """Measures cells, contended ones again while time is left; yields each job once its result is final."""
        waiting: list[Job] = []
        together, share = self._policy.together, self._policy.uncertain_share
        for start in range(0, len(jobs), together):
            groups = self._groups(jobs[start : start + together])
            for k in self._rng.permutation(len(groups)):
                self._visit(groups[k], precision)
                for job in groups[k]:
                    enough_us = max(precision.absolute_us, share * self._longest_us)
                    if job.done(self._policy) or job.uncertainty_us <= enough_us:
                        yield job
                    else:
                        waiting.append(job)
            yield from self._again(waiting, precision, last=start + together >= len(jobs))

    def _again(self, waiting: list[Job], precision: Precision, *, last: bool) -> Iterator[Job]:
        """Measures waiting cells while the machine is calm, those with fewest visits first, then the most uncertain.

        Where caches are emptied for one, others go with it in turns. Yields those that are final; of the others the
        least uncertain where too many wait, and all of them at last.
        """
        policy = self._policy
        while waiting:
            waiting.sort(key=lambda job: (-job.visits, job.uncertainty_us))
            in_time = self._again_s < policy.again_share * self._seconds + policy.again_seconds
            if in_time and self._calm():
                group = self._most_uncertain(waiting)
                self._visit(group, precision)
                yield from (job for job in group if job.done(policy))
                waiting += [job for job in group if not job.done(policy)]
            elif in_time and last:
                time.sleep(policy.pause_seconds)
                self._again_s += policy.pause_seconds
            elif last or len(waiting) > policy.together:
                yield waiting.pop(0)
            else:
                break

    def _calm(self) -> bool:
        """Returns whether the machine is uncontended now."""
        return self._anchor is None or self._anchor.calm(self._policy.calm_samples)

    def _groups(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Returns the cells that are visited at once: some of similar size where caches are emptied, else one."""
        groups = [[job] for job in jobs if not self._memory.empties(job.op)]
        group: list[Job] = []
        for job in sorted(
            (job for job in jobs if self._memory.empties(job.op)), key=lambda job: job.op.weights
        ):
            if not self._fits([*group, job]):
                groups.append(group)
                group = []
            group.append(job)
        return [group for group in [*groups, group] if group]

    def _most_uncertain(self, waiting: list[Job]) -> list[Job]:
        """Takes the last cell; with cold weights also the last others that have them."""
        group = [waiting.pop()]
        if self._memory.empties(group[0].op):
            for job in reversed(waiting.copy()):
                if self._memory.empties(job.op) and self._fits([*group, job]):
                    group.append(job)
                    waiting.remove(job)
        return group

    def _fits(self, group: Sequence[Job]) -> bool:
        """Returns whether cells can go in turns: one always, more if they read no more than the network has."""
        read = self._least_builds * sum(self._backend.reads(job.op) for job in group)
        return len(group) == 1 or (len(group) <= self._policy.group and read <= self._memory.distance)

    def _visit(self, jobs: Sequence[Job], precision: Precision) -> None:
        """Times a cell, or some whose weights come from memory; one that cannot be measured is written down as such."""
        begun = time.perf_counter()
        again = jobs[0].visits > 0
        for job in jobs:
            job.timing = None
        if self._memory.empties(jobs[0].op):
            self._together(jobs, precision)
        else:
            try:
                self._alone(jobs[0], precision)
            except Exception as error:
                self._failed(jobs[0].op, error)
        self._seconds += (spent := time.perf_counter() - begun)
        self._again_s += spent if again else 0.0

    def _together(self, jobs: Sequence[Job], precision: Precision) -> None:
        """Times cells alternately, and empties the caches before each run."""
        ready: list[tuple[Job, Built]] = []
        for job in jobs:
            made = len(job.samplings)
            contended = [number for number in range(made) if not job.samplings[number].timing().quiet]
            try:
                numbers = contended or range(made, made + self._least_builds)
                builts = [self._begun(job, number, precision) for number in numbers]
            except Exception as error:
                self._failed(job.op, error)
            else:
                ready.append((job, builts[0]))
        if not ready:
            return
        begun = [sampling for job, _ in ready for sampling in job.samplings if sampling.begun]
        interleave(begun, self._memory.before(self._backend, ready[0][0].op))
        for job, built in ready:
            timings = [sampling.timing() for sampling in job.samplings]
            job.agreed = len(timings) == 1 or agree(timings, self._policy)
            self._take(job, timings, built)

    def _alone(self, job: Job, precision: Precision) -> None:
        """Times one cell, in as many builds as it needs."""
        timings: list[Timing] = []
        end = time.perf_counter() + self._policy.builds_seconds
        while True:
            built = self._begun(job, len(timings), precision)
            sampling = job.samplings[len(timings)]
            interleave([sampling])
            timings.append(sampling.timing())
            over = len(timings) > 2 and time.perf_counter() > end
            # what differs without a quiet moment says nothing of where memory lies
            final = self._least_builds == 1 or not all(t.quiet for t in timings)
            final = final or over or len(timings) >= self._policy.most_builds
            if len(timings) >= self._least_builds and (final or agree(timings, self._policy)):
                break
        self._take(job, timings, built)

    def _begun(self, job: Job, number: int, precision: Precision) -> Built:
        """Builds a cell for one of its samplings and warms it up."""
        if number == len(job.samplings):
            clock, policy = self._backend.clock(), self._policy
            sampling = Sampling(clock=clock, anchor=self._anchor, precision=precision, policy=policy)
            job.samplings.append(sampling)
        built = self._backend.build(job.op)
        job.samplings[number].begin(built.run, built.minus, reads=round_bytes(job.op, built))
        return built

    def _take(self, job: Job, timings: Sequence[Timing], built: Built) -> None:
        self._store(job, timings, built)
        job.visits += 1
        self._longest_us = max(self._longest_us, float(job.cell["us"]))


Progress = Callable[[int, int], None]
Cell = tuple[Op, str, Steps | None]
"""An op at its widths, the role its time will play, and the steps of its axes as far as they are known."""

REFERENCE = (
    "anchor_us"  # field of the environment: µs of the anchor at the speed that all times are stated at
)


class _FirstFloorContended(Exception):  # noqa: N818 - nothing went wrong for good
    """The floor of the anchor fell so far that the cells until now were measured under contention."""


class Measurer:
    """Measures cells that a journal does not hold yet."""

    def __init__(
        self,
        backend: Backend,
        journal: Journal,
        *,
        memory: ColdWeights | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.backend, self.journal, self._progress = backend, journal, progress
        self.done = self.total = 0
        self._rng = np.random.default_rng(seed)
        self._known = {cell_key(c): c for c in journal.cells}
        self._memory = memory or ColdWeights({}, 0, lambda size: None)
        self._rates: dict[str, Rate] = {}
        call = backend.anchor()
        self._anchor = Anchor(call, backend.clock(), backend.policy) if call is not None else None
        if self._anchor is not None:
            self._anchor.find_floor(backend.policy.anchor_seconds)
            if REFERENCE not in journal.environment:
                journal.state({REFERENCE: round(self._anchor.reference_us, 3)})
            self._anchor.reference_us = journal.environment[REFERENCE]
        self._fresh = not journal.cells
        self._visits = Schedule(backend, self._anchor, self._memory, self._rng, self._take, self._left_out)

    def from_the_start(self, work: Callable[[], object]) -> None:
        """Runs some work, and repeats it if the anchor's first floor was measured under contention.

        What was measured in this process is forgotten then; a journal that held cells before is only continued.
        """
        while True:
            try:
                work()
            except _FirstFloorContended:
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
        self._report()

    def measure(self, todo: Sequence[Cell], precision: Precision) -> list[dict[str, Any]]:
        """Measures the cells that are not known yet, in random order; returns what was appended."""
        jobs = [Job(op, role, steps) for op, role, steps in todo if self.known(op, role) is None]
        self.done += len(todo) - len(jobs)
        self.backend.prepare([job.op for job in jobs])
        if (n := self.backend.builds) > 1:  # of a mean of so many
            n_min, seconds = max(5, -(-precision.n_min // n)), precision.seconds / n
            precision = replace(
                precision, relative=precision.relative * math.sqrt(n), n_min=n_min, seconds=seconds
            )
        shuffled = [jobs[k] for k in self._rng.permutation(len(jobs))]
        appended: list[dict[str, Any]] = []
        self._report()
        for job in self._visits.visited(shuffled, precision):
            if job.timing is not None:
                self.journal.append(job.cell)
                self._known[cell_key(job.cell)] = job.cell
                appended.append(job.cell)
            self.done += 1
            self.total = max(self.total, self.done)
            self._report()
            if self._fresh and self._anchor is not None and self._anchor.first_floor_contended:
                raise _FirstFloorContended
        return appended

    def _take(self, job: Job, timings: Sequence[Timing], built: Built) -> None:
        """Stores a job's result as a cell, without the builds, which hold the op's weights."""
        job.timing = joined(timings)
        if self._memory.streams(job.op):
            job.timing = self._rate(job.op).onto(job.timing, built.copies * weight_bytes(job.op))
            built = replace(built, method=f"{built.method}+memory")
        job.cell = self._cell(job, job.timing, built)

    def _state(self, op: Op) -> str:
        """Returns whether an op finds its weights in a cache."""
        return COLD if self._memory.has(op) else WARM

    def _rate(self, op: Op) -> Rate:
        """Returns what a byte of the weights of a table's ops takes longer from memory, from two cells of one op."""
        name = op.table_key()
        if name not in self._rates:
            sample = self._memory.sample(op)
            keys = [cell_key({**sample.key(), "cache": state, "role": "probe"}) for state in (WARM, COLD)]
            if not all(key in self._known for key in keys):
                *timings, built = warm_and_cold(self.backend, sample, self._anchor, self._memory)
                for key, state, timing in zip(keys, (WARM, COLD), timings, strict=True):
                    self._known[key] = self._cell(Job(sample, "probe", None), timing, built, state)
                    self.journal.append(self._known[key])
            warm, cold = (self._known[key] for key in keys)
            self._rates[name] = Rate.of(warm, cold, weight_bytes(sample))
        return self._rates[name]

    def _left_out(self, op: Op, error: Exception) -> None:
        """Records an op that cannot be built or does not fit in memory; raises any other error."""
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
        return cell | (job.steps.fields() if job.steps is not None else {})

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self.done, max(self.total, 1))
