"""Whether an op finds its weights in a cache, and what a profile makes of cells of both kinds."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

import latency
from latency.backends import Built
from latency.device import TimingPolicy
from latency.op import Op, weight_bytes
from latency.profile_io import Journal
from latency.profiles import COLD, WARM, Profile
from latency.sweeping import LazySweep
from latency.sweeping.cold_weights import ColdWeights
from latency.sweeping.schedule import Measurer, Schedule
from latency.timing import Anchor
from latency.timing.timer import Precision, Sampling, interleave

from .fakes import FakeBackend, FakeClock, conv

FEW = {"h": 4, "w": 4}
"""16 positions: each weight is used 16 times."""

MANY = {"h": 64, "w": 64}


class Cached(FakeBackend):
    """Ops of 100 µs, and 130 where the caches were emptied since their last run."""

    def __init__(self) -> None:
        super().__init__(lambda op: 100.0)
        self.emptied = 0

    def build(self, op: Op) -> Built:
        self.built.append(op)
        last = self.emptied

        def run() -> None:
            nonlocal last
            self.time.passes(135.0 if last < self.emptied else 105.0)
            last = self.emptied

        return Built(run=run, minus=lambda: self.time.passes(5.0), method="twin")


def measured(
    backend: Cached,
    *ops: Op,
    tables: tuple[Op, ...] = (),
    distance: int = 96 << 20,
    read: Callable[[int], object] = lambda size: None,
) -> list[dict[str, Any]]:
    def evict(size: int) -> None:
        backend.emptied += 1
        read(size)

    memory = ColdWeights({op.table_key(): op for op in tables}, distance, evict)
    measurer = Measurer(backend, Journal(None, backend.environment()), memory=memory)
    return measurer.measure([(op, "sweep", None) for op in ops], Precision())


def test_an_op_whose_weights_come_from_memory_is_timed_so_at_every_width_with_more_than_a_few() -> None:
    # 40 × 40 channels of 3×3 are 57,600 bytes, 48 × 40 are 69,120: 64 KiB lie in between.
    few = conv(64, 64, **FEW)
    narrow = [few.with_channels(40, 40), few.with_channels(48, 40)]
    cells = measured(Cached(), few, *narrow, conv(64, 64, **MANY), tables=(few,))
    assert {(c["h"], c["c_in"], c["us"], c["cache"]) for c in cells} == {
        (4, 64, 130.0, COLD),
        (4, 48, 130.0, COLD),
        (4, 40, 100.0, WARM),
        (64, 64, 100.0, WARM),
    }


@pytest.mark.parametrize(("again", "builds"), [(0.0, 2), (1.0, 6)])
def test_builds_that_differ_with_the_caches_emptied_are_two_more_at_each_visit(
    again: float, builds: int
) -> None:

    class Placed(Cached):
        builds = 2

        def build(self, op: Op) -> Built:
            built = super().build(op)
            slow = 1.0 if len(self.built) % 2 else 2.0

            def run() -> None:
                self.time.passes(100.0 * slow)
                built.run()

            return Built(run=run, minus=built.minus)

    backend = Placed()
    backend.policy = TimingPolicy(again_share=again, again_seconds=0.0)
    (cell,) = measured(backend, conv(64, 64, **FEW), tables=(conv(64, 64, **FEW),))
    assert sum(op.c_in == 64 for op in backend.built) == builds
    assert cell["us"] == pytest.approx(130.0 + 150.0)


@pytest.mark.parametrize(("distance", "sizes"), [(96 << 20, [3, 3, 3]), (0, [1] * 9)])
def test_cells_whose_builds_differ_are_visited_again_in_turns(
    distance: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = Schedule._visit
    visited: list[int] = []

    def counted(self: Schedule, jobs: Any, precision: Precision) -> None:
        visited.append(len(jobs))
        visit(self, jobs, precision)

    monkeypatch.setattr(Schedule, "_visit", counted)

    class Placed(Cached):
        """Every second build of an op takes three times as long as the others."""

        builds = 2

        def build(self, op: Op) -> Built:
            built = super().build(op)
            slow = 3.0 if sum(o == op for o in self.built) % 2 else 1.0

            def run() -> None:
                self.time.passes(100.0 * slow)
                built.run()

            return Built(run=run, minus=built.minus)

    ops = [conv(64, width, **FEW) for width in (48, 56, 64)]
    backend = Placed()
    backend.policy = TimingPolicy(again_share=1e9)
    cells = measured(backend, *ops, tables=(ops[-1],), distance=distance)
    assert visited == sizes
    assert [c["us"] for c in cells] == [pytest.approx(130.0 + 200.0)] * 3


def test_a_narrow_op_runs_between_emptying_the_caches_and_a_turn() -> None:
    happened: list[object] = []

    class Told(FakeBackend):
        def build(self, op: Op) -> Built:
            return Built(
                run=lambda: happened.append((op.c_in, op.c_out, op.groups)), minus=None, method="alone"
            )

    memory = ColdWeights({}, 100, happened.append)
    for op in (conv(64, 32), conv(8, 64), conv(64, 32, groups=4)):
        memory.before(Told(lambda op: 1.0), op)(30)
    assert happened == [70, (16, 16, 1), 70, (8, 16, 1), 70, (16, 8, 1)]


def test_a_cell_of_warm_weights_is_measured_again_with_cold_ones() -> None:
    backend = Cached()
    journal = Journal(None, backend.environment())
    op = conv(64, 64, **FEW)
    Measurer(backend, journal).measure([(op, "sweep", None)], Precision())
    measurer = Measurer(backend, journal, memory=ColdWeights({op.table_key(): op}, 0, lambda size: None))
    assert measurer.known(op, "sweep") is None
    assert len(measurer.measure([(op, "sweep", None)], Precision())) == 1
    assert measurer.known(op, "sweep") is not None


BIG = conv(512, 512, **FEW)
"""9 MiB of weights, each used 16 times."""

CACHES = {"cpu_caches": {"L1": "32K", "L2": "1024K", "L3": "8192K"}}


def test_weights_come_from_memory_where_they_are_many_and_used_seldom() -> None:
    linear = Op(kind="linear", c_in=512, c_out=1000)  # 2 MB, each used once
    small = conv(128, 128, **FEW)  # 0.56 MiB
    often = conv(512, 512, **MANY)  # each used 4,096 times
    pool = Op(kind="max_pool", c_in=512, c_out=512, h=2, w=2, kernel=(2, 2))
    narrow = BIG.with_channels(256, 512)  # the table of BIG, which is the widest of it
    memory = ColdWeights.of([BIG, linear, narrow, small, often, pool], CACHES)
    assert memory is not None
    assert memory.widest == {BIG.table_key(): BIG, linear.table_key(): linear}
    assert [memory.streams(op) for op in (BIG, linear, small)] == [False, True, False]
    assert ColdWeights.of([small, often, pool], CACHES) is None


def test_a_weight_is_used_positions_times_batch_times() -> None:
    # 24 × 25 positions are 600, one more row too many; a stride of 2 leaves a quarter of them.
    def comes(**shape: object) -> bool:
        return ColdWeights.of([conv(512, 512, **shape)], CACHES) is not None

    assert comes(h=24, w=25)
    assert not comes(h=25, w=25)
    assert not comes(h=24, w=25, batch=2)
    assert comes(h=48, w=50, stride=(2, 2))


def test_bytes_of_weights_by_hand() -> None:
    assert weight_bytes(conv(8, 16, groups=4)) == 8 // 4 * 16 * 9 * 4
    assert weight_bytes(Op(kind="linear", c_in=10, c_out=5, dtype="float16")) == 100
    assert weight_bytes(Op(kind="max_pool", c_in=8, c_out=8, h=2, w=2, kernel=(2, 2))) == 0


@pytest.mark.parametrize(
    ("layers", "caches", "bytes_read"),
    [
        (1, {"L1": "32K", "L2": "1024K", "L3": "32768K"}, 9 << 20),
        (3, {"L1": "32K", "L2": "1024K", "L3": "32768K"}, 27 << 20),
        (4, {"L1": "32K", "L2": "1024K", "L3": "32768K"}, 32 << 20),
        (4, {"L1": "32K", "L2": "1024K", "L3": "40M"}, 36 << 20),
        (1, {"L2": "2M"}, 2 << 20),
        (3, {"L2": "2M", "L3": "108M"}, 8 << 20),  # four times 27
        (3, {"L2": "2M", "L3": "107M"}, 27 << 20),
        (3, {"L2": "8M", "L3": "108M"}, 27 << 20),
        (3, {}, 27 << 20),
        (4, {}, 32 << 20),
    ],
)
def test_as_much_is_read_as_the_network_has_weights_or_the_last_cache_holds(
    layers: int, caches: dict[str, str], bytes_read: int
) -> None:
    tracemalloc.start()
    try:
        memory = ColdWeights.of([BIG] * layers, {"cpu_caches": caches})
        held = tracemalloc.get_traced_memory()[0]
        assert memory is not None
        assert memory.evict(0) == 1  # the largest of ones: they were all read
    finally:
        tracemalloc.stop()
    assert held == pytest.approx(bytes_read, rel=0.01, abs=20_000)
    assert memory.distance == bytes_read
    assert memory.evict(2 * bytes_read) == 1  # of none


def test_a_turn_that_reads_much_itself_needs_less_besides() -> None:
    read: list[int] = []
    memory = ColdWeights({}, 1000, read.append)
    for size in (0, 300, 1000, 1200):
        memory.evict(size)
    assert read == [1000, 700, 0, 0]


def test_from_one_use_of_a_weight_to_the_next_as_much_is_read_as_the_network_has() -> None:
    # A build's graphs hold two copies of the op and one: of 64 → 64 channels of 3×3, 0.14 MiB each, in two builds.
    few = conv(64, 64, **FEW)
    read: list[int] = []
    backend = Cached()
    backend.builds = 2
    measured(backend, few, tables=(few,), distance=1 << 20, read=read.append)
    assert set(read) == {(1 << 20) - 2 * 3 * 64 * 64 * 9 * 4}


@pytest.mark.parametrize(("evicts", "state"), [(True, COLD), (False, WARM)])
def test_a_sweep_empties_the_caches_where_its_backend_can(evicts: bool, state: str) -> None:
    backend = FakeBackend(lambda op: 100.0)
    backend.evicts = evicts
    profile = latency.sweep([BIG] * 4, backend=backend, fixed={BIG: (True, True)})
    assert {c["cache"] for c in profile.cells if c["c_in"] == 512} == {state}
    with LazySweep([BIG] * 4, backend=backend, fixed={BIG: (True, True)}) as lazy:
        assert {c["cache"] for c in lazy.profile.cells if c["c_in"] == 512} == {state}


def test_a_dry_run_knows_that_cold_cells_take_longer() -> None:
    def seconds(evicts: bool) -> float:
        backend = FakeBackend(lambda op: 100.0)
        backend.evicts = evicts
        return latency.sweep([BIG], backend=backend, fixed={BIG: (True, True)}, dry_run=True).seconds

    # One cell, and a fifth of a second more for it; two of five are measured again or lead to others.
    assert seconds(True) - seconds(False) == pytest.approx(0.2 * 1.4)


def test_of_a_table_with_cells_of_both_kinds_the_cold_ones_count_and_those_of_few_weights() -> None:
    few, many = conv(64, 64, **FEW), conv(64, 64, **MANY)
    cells = [
        {**few.key(), "us": 100.0, "cache": WARM},
        {**few.with_channels(32, 64).key(), "us": 50.0, "cache": WARM},
        {**few.with_channels(8, 8).key(), "us": 2.0, "cache": WARM},
        {**few.key(), "us": 130.0, "cache": COLD},
        {**many.key(), "us": 900.0},  # without a word, as early profiles have it: warm
    ]
    profile = Profile({}, cells)
    assert [c["us"] for c in profile.cells] == [2.0, 130.0, 900.0]  # 8 × 8 are few
    assert float(profile.table(few).lookup(64, 64)) == 130.0
    assert len(Profile({}, cells[:3]).cells) == 3


def test_what_empties_the_caches_runs_before_each_turn_and_anchors_between_all_runs() -> None:
    clock = FakeClock()
    log: list[str] = []

    def call(name: str, us: float) -> Callable[[], None]:
        def run() -> None:
            log.append(name)
            clock.passes(us)

        return run

    anchor = Anchor(call("anchor", 10.0), clock)
    anchor.find_floor(seconds=0.0)
    samplings = []
    for name, us, n in (("a", 30.0, 3), ("b", 50.0, 2)):
        sampling = Sampling(clock=clock, anchor=anchor, precision=Precision(n_min=n, n_max=n))
        sampling.begin(call(name, us), call(f"{name} minus", 10.0), warm_up=0)
        samplings.append(sampling)
    log.clear()
    interleave(samplings, lambda reads: call("evict", 1000.0)())
    assert [s.timing().us for s in samplings] == [20.0, 40.0]  # the eviction is in no time
    assert [s.timing().n for s in samplings] == [3, 2]
    turn = ["evict", "a", "a minus", "b", "b minus"]
    untimed = turn * 16
    assert log[: len(untimed)] == untimed
    log = log[len(untimed) :]
    assert [name for name in log if name != "anchor"] == turn * 2 + turn[:3]
    around = [(log[k - 1], log[k + 1]) for k, name in enumerate(log) if name not in ("anchor", "evict")]
    assert set(around) == {("anchor", "anchor")}


def test_cells_are_timed_in_turns_as_long_as_their_weights_are_not_more_than_the_networks() -> None:
    # 64 → 64 channels of 3×3 are 0.14 MiB, 512 → 512 are 9 MiB: three copies of two are beyond 48 MiB.
    order: list[int] = []

    class Told(Cached):
        def build(self, op: Op) -> Built:
            built = super().build(op)
            told = order if op.c_in > TimingPolicy().narrow else []

            def run() -> None:
                told.append(op.c_out)
                built.run()

            return Built(run=run, minus=built.minus)

        def reads(self, op: Op) -> int:
            return 3 * weight_bytes(op)

    widths = [(c_in, c_out) for c_in in (504, 512) for c_out in (64, 512)]
    ops = [conv(512, 512, **FEW).with_channels(*pair) for pair in widths]
    backend = Told()
    cells = measured(backend, *ops, tables=(ops[-1],), distance=48 << 20)
    assert {(c["c_in"], c["c_out"], c["us"]) for c in cells} == {(*pair, 130.0) for pair in widths}
    turns = [tuple(order[k : k + 2]) for k in range(len(order) - 1)]
    assert (64, 64) in turns
    assert (64, 512) in turns  # the three smallest together
    alone = "".join("b" if width == 512 else "s" for width in order)
    assert "b" * 11 in alone  # two runs of warm-up, nine that count: the largest by itself
