"""How long does a whole network take, and how much faster is one than another? In µs, end to end.

Two networks are compared in turns within one run, A B A B …, because the machine's speed drifts by more than they
differ. In its turn a network runs until its data is back in the caches, then eight times that count (0066). The ratio
is the median of the rounds' ratios with its distribution-free 95 % interval.

An anchor runs before and after every run (`latency.timing`). Where every network finds enough uncontended runs, only
those count, stated at one speed; else, for every network, its fastest twentieth. (Beside other work, ratios of plain
medians were off by 10 %, these by 2 %.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from latency.backends import Backend, Runner, adopted, is_module
from latency.device import TimingPolicy, pinned, policy_for
from latency.errors import UsageError, need
from latency.timing import Anchor, Clock, checksum, share_lost
from latency.timing.timer import median_interval, warm_caches

if TYPE_CHECKING:
    import onnx
    from torch import nn

    Model = nn.Module | onnx.ModelProto | str | Path | Runner


ENOUGH = 9
"""So many uncontended runs give a median an interval."""

RUNS = 8
"""Runs of a network in one turn that count."""

WARM_UP, SETTLED, WARM_UP_SECONDS = 5, 1.05, 2.0
"""Runs before the first that counts, at least; until the last three agree to this, or so long under contention."""


@dataclass(frozen=True)
class Measurement:
    """Latency of one network.

    Attributes:
        median_us: median of the runs that count.
        iqr_us: distance of their quartiles.
        n: runs that count.
        clock: ``cpu`` (time of the calling thread) or ``wall``.
        contention: share of the wall time in which the thread did not run; ``None`` where it was not measured, as by
            the wall clock.
        p10_us: a tenth of all runs was faster.
        p50_us: half of all runs was.
        p90_us: a tenth was slower.
        p99_us: a hundredth was.
        mean_us: mean of all runs.
        ci_lo_us: lower end of the median's 95 % interval.
        ci_hi_us: its upper end.
        contended: share of the runs that do not count because something else slowed them.
    """

    median_us: float
    iqr_us: float
    n: int
    clock: str
    contention: float | None
    p10_us: float = float("nan")
    p90_us: float = float("nan")
    ci_lo_us: float = float("nan")
    ci_hi_us: float = float("nan")
    contended: float = 0.0
    p50_us: float = float("nan")
    p99_us: float = float("nan")
    mean_us: float = float("nan")

    @classmethod
    def of(
        cls,
        runs_us: NDArray[np.float64],
        us: NDArray[np.float64],
        clock: str,
        contention: float | None = None,
    ) -> Measurement:
        """Summarises all runs, and the runs that count, which are stated at one clock speed."""
        q1, q3 = np.percentile(us, [25, 75])
        p10, p50, p90, p99 = np.percentile(runs_us, [10, 50, 90, 99])
        median, lo, hi = median_interval(us)
        return cls(
            median_us=median,
            iqr_us=float(q3 - q1),
            n=len(us),
            clock=clock,
            contention=contention,
            p10_us=float(p10),
            p90_us=float(p90),
            ci_lo_us=lo,
            ci_hi_us=hi,
            contended=1.0 - len(us) / len(runs_us),
            p50_us=float(p50),
            p99_us=float(p99),
            mean_us=float(runs_us.mean()),
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust it, one sentence each."""
        found: list[str] = []
        if self.iqr_us > 0.1 * self.median_us:
            found.append(f"spread: the quartiles are {self.iqr_us / self.median_us:.0%} apart; measure again")
        if self.contention is not None and self.contention > 0.1:
            found.append(f"contention: {self.contention:.0%} of the time went to others; stop other work")
        if self.contended > 0.9:
            found.append(
                f"contended: {self.contended:.0%} of the runs were slowed by others; measure again later"
            )
        return tuple(found)


@dataclass(frozen=True)
class Ratio:
    """Median of the rounds' ratios of two latencies, and its 95 % interval."""

    median: float
    lo: float
    hi: float


class Comparison(dict[str, Measurement]):
    """Measurements of one interleaved run, by name.

    Args:
        runs_us: µs of every round, by name.
        clock: ``cpu`` or ``wall``.
        contention: of every network, where it was measured.
        slower: for every round, by name, how much slower than usual the processor was; NaN where it was contended.
        policy: which runs count.

    Attributes:
        runs_us: µs of every round, by name, as they were.
        quiet: whether only uncontended rounds count.
    """

    def __init__(
        self,
        runs_us: Mapping[str, Sequence[float]],
        clock: str,
        contention: Mapping[str, float | None],
        slower: Mapping[str, Sequence[float] | NDArray[np.float64]] | None = None,
        policy: TimingPolicy | None = None,
    ) -> None:
        burst = (policy or policy_for("cpu")).burst
        self.runs_us = {name: np.asarray(us, dtype=np.float64) for name, us in runs_us.items()}
        clocks = {n: np.asarray((slower or {}).get(n, np.ones(len(us)))) for n, us in self.runs_us.items()}
        counts = {name: _uncontended(us, clocks[name], burst) for name, us in self.runs_us.items()}
        self.quiet = all(mask is not None for mask in counts.values())
        self._counts: dict[str, NDArray[np.bool_]] = {
            name: _fastest(us) if (mask := counts[name]) is None or not self.quiet else mask
            for name, us in self.runs_us.items()
        }
        self._stated = {n: us / clocks[n] if self.quiet else us for n, us in self.runs_us.items()}
        super().__init__(
            (name, Measurement.of(us, self._stated[name][self._counts[name]], clock, contention.get(name)))
            for name, us in self.runs_us.items()
        )

    def ratio(self, over: str, under: str) -> Ratio:
        """Returns the latency of ``over`` divided by that of ``under``: how much faster ``under`` is."""
        both = self._counts[over] & self._counts[under]
        if self.quiet and both.sum() >= ENOUGH:
            return Ratio(*median_interval(self._stated[over][both] / self._stated[under][both]))
        a, b = self[over], self[under]
        widths = [(m.ci_hi_us - m.ci_lo_us) / (2.0 * m.median_us) for m in (a, b)]
        middle, half = a.median_us / b.median_us, math.hypot(*widths)
        parts = self._parts(over, under)
        return Ratio(middle, min([middle * (1.0 - half), *parts]), max([middle * (1.0 + half), *parts]))

    def _parts(self, over: str, under: str) -> list[float]:
        """Returns the ratio in each quarter of the rounds: its drift, where no round was uncontended."""
        quarters = np.array_split(np.arange(len(self.runs_us[over])), 4)
        if len(quarters[-1]) < ENOUGH:
            return []
        fastest = [
            [np.median(np.sort(self.runs_us[name][q])[: max(3, len(q) // 10)]) for q in quarters]
            for name in (over, under)
        ]
        return [float(a / b) for a, b in zip(*fastest, strict=True)]


def _uncontended(
    us: NDArray[np.float64], slower: NDArray[np.float64], burst: float
) -> NDArray[np.bool_] | None:
    """Returns which runs were uncontended, with no burst between their anchors; None where they are too few."""
    quiet = ~np.isnan(slower)
    if (slower == 1.0).all():  # without an anchor
        return quiet
    if quiet.sum() < ENOUGH:
        return None
    scaled = us / slower
    uncontended = np.asarray(quiet & (scaled <= burst * scaled[quiet].min()))
    return uncontended if uncontended.sum() >= ENOUGH else None


def _fastest(us: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns which runs are the fastest twentieth, at least nine."""
    return np.asarray(us <= np.sort(us)[min(len(us) - 1, max(ENOUGH, len(us) // 20) - 1)])


def measure(
    model: Model,
    example_inputs: Sequence[Any] | None = None,
    *,
    backend: str | Backend = "onnxruntime",
    device: str = "auto",
    threads: int = 1,
    rounds: int = 100,
    seconds: float = 20.0,
    batch: int | None = None,
) -> Measurement:
    """Measures a network end to end.

    Args:
        model: a module, an ONNX model, or the path of one.
        example_inputs: its inputs; for an ONNX model without them, random ones.
        backend: the runtime: a name, or a backend itself.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ONNX Runtime is measured on the CPU.
        threads: threads of the runtime.
        rounds: runs that count.
        seconds: fewer runs, but nine, where they would take longer than this.
        batch: images per call where there are no example inputs; by default the model's own, else 1.

    Raises:
        UsageError: a backend or a model of another kind.
        MissingError: a device that is not there.
    """
    how: CompareOptions = {"rounds": rounds, "seconds": seconds, "batch": batch}
    where: dict[str, Any] = {"backend": backend, "device": device, "threads": threads}
    return compare({"model": model}, example_inputs=example_inputs, **where, **how)["model"]


class CompareOptions(TypedDict, total=False):
    """How networks are measured alternately; all are optional.

    Attributes:
        rounds: runs of each that count, eight to a turn; by default 30.
        seconds: fewer rounds, but nine, where they would take longer than this; by default 60.
        batch: images per call where there are no example inputs; by default the model's own, else 1.
        clock: what times a run; by default as the backend or the runner does.
        warm_up: runs of each before the first that counts; by default until three in a row agree.
        policy: which runs count; by default that of the backend's device.
    """

    rounds: int
    seconds: float
    batch: int | None
    clock: Clock | None
    warm_up: int | None
    policy: TimingPolicy | None


def compare(
    models: Mapping[str, Model | Callable[[], object]],
    *,
    example_inputs: Sequence[Any] | None = None,
    backend: str | Backend = "onnxruntime",
    device: str = "auto",
    threads: int = 1,
    **how: Unpack[CompareOptions],
) -> Comparison:
    """Measures networks alternately.

    Args:
        models: by name: modules, ONNX models, paths of ones, runners, or calls without arguments.
        example_inputs: what all of them read; without it every ONNX model reads random inputs.
        backend: the runtime: a name, or a backend itself.
        device: as in ``measure``.
        threads: threads of the runtime.
        **how: such as ``rounds=100``; see `CompareOptions`.

    Raises:
        UsageError: a backend or a model of another kind.
        MissingError: a device that is not there.
    """
    if strange := how.keys() - CompareOptions.__annotations__.keys():
        raise TypeError(f"compare takes no {', '.join(strange)}; see latency.timing.benchmark.CompareOptions")
    need(example_inputs, (Sequence, type(None)), "example inputs", "give a tuple, as in (x,)")
    if not models:
        raise UsageError("no networks were given to compare; give {name: model}, one or more")
    need(threads, int, "a number of threads", "give a whole number of at least 1")
    runtime = adopted(backend, threads=threads, settings={} if device == "auto" else {"device": device})
    clock = how.get("clock")
    own = clock is None
    clocks: dict[str, Clock] = dict.fromkeys(models, clock or runtime.clock())
    with ExitStack() as opened:
        calls: dict[str, Callable[[], object]] = {}
        for name, model in models.items():
            if callable(model) and not is_module(model):
                calls[name] = model
                continue
            runner = model
            if not isinstance(runner, Runner):
                runner = runtime.network(model, example_inputs, batch=how.get("batch"))
            if not runner.is_ready:
                opened.enter_context(runner)
            # a clock of the device waits for it by itself
            calls[name] = runner.start if own else runner.run
            clocks[name] = (runner.clock() if own else None) or clocks[name]
        on_cpu = all(clock.kind == "cpu" for clock in clocks.values())
        policy = how.get("policy") or runtime.policy
        anchor = Anchor(checksum(), runtime.clock(), policy) if own and on_cpu else None
        if threads > 1:
            for call in calls.values():  # worker threads inherit the cores of the thread that starts them
                call()
        opened.enter_context(pinned(threads))
        for name, call in calls.items():
            _warm(call, clocks[name], how.get("warm_up"))
        return _interleaved(calls, clocks, how.get("rounds", 30), how.get("seconds", 60.0), anchor, policy)


def _warm(call: Callable[[], object], clock: Clock, runs: int | None) -> None:
    """Runs a call a number of times, by default until its last three runs agree."""
    end = time.perf_counter() + WARM_UP_SECONDS
    seen: list[float] = []
    while len(seen) < (WARM_UP if runs is None else runs) or (
        runs is None and max(seen[-3:]) > SETTLED * min(seen[-3:]) and time.perf_counter() < end
    ):
        seen.append(clock.time_us(call)[0])


def _interleaved(
    calls: Mapping[str, Callable[[], object]],
    clocks: Mapping[str, Clock],
    rounds: int,
    seconds: float,
    anchor: Anchor | None,
    policy: TimingPolicy,
) -> Comparison:
    runs: dict[str, list[float]] = {name: [] for name in calls}
    around: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    walls = dict.fromkeys(calls, 0.0)
    if anchor is not None:
        anchor.find_floor()

    def quiet(name: str) -> int:
        """Returns the uncontended rounds of a network."""
        if anchor is None:
            return len(runs[name])
        return int((~np.isnan(anchor.slower(np.array(around[name])))).sum())

    names = list(calls)
    end = time.perf_counter() + seconds
    done = 0
    # A contended machine gets up to four times the rounds to find as many quiet ones.
    while done < ENOUGH or (
        time.perf_counter() < end
        and (done < rounds or (done < 4 * rounds and min(map(quiet, calls)) < rounds))
    ):
        count = min(RUNS, max(ENOUGH, rounds) - done) if done < max(ENOUGH, rounds) else RUNS
        for name in names if done // RUNS % 2 == 0 else reversed(names):
            if len(names) > 1:
                warm_caches(calls[name], clocks[name], policy=policy)
            before = anchor.sample() if anchor else 0.0
            for _ in range(count):
                us, wall = clocks[name].time_us(calls[name])
                after = anchor.sample() if anchor else 0.0
                runs[name].append(us)
                around[name].append((before, after))
                walls[name] += wall
                before = after
        done += count
    contention = {name: share_lost(clocks[name], sum(us), walls[name]) for name, us in runs.items()}
    kind = "cpu" if all(clock.kind == "cpu" for clock in clocks.values()) else "wall"
    if anchor is None:
        return Comparison(runs, kind, contention, policy=policy)
    slower = {name: anchor.slower(np.array(pairs)) for name, pairs in around.items()}
    found = np.concatenate(list(slower.values()))
    usual = float(np.nanmedian(found)) if not np.isnan(found).all() else 1.0
    return Comparison(runs, kind, contention, {name: s / usual for name, s in slower.items()}, policy)
