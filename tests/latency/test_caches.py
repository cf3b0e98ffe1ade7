"""Whether an op finds its weights in a cache, and what a profile makes of cells of both kinds."""

from __future__ import annotations

import tracemalloc

import pytest

import latency.measuring
from latency.backends import Built
from latency.caches import COLD, WARM, evictor, rereads, weight_bytes
from latency.journal import Journal
from latency.measuring import Measurer
from latency.op import Op
from latency.profiles import Profile
from latency.timer import Anchor, Precision, Sampling

from .fakes import FakeBackend, FakeClock, conv

FEW = {"h": 4, "w": 4}
"""16 positions: each weight is used 16 times."""

MANY = {"h": 64, "w": 64}


class Cached(FakeBackend):
    """Ops of 100 µs, and 130 where their weights come from memory."""

    evicts = True

    def __init__(self) -> None:
        super().__init__(lambda op: 100.0)
        self.cold = False

    def build(self, op: Op) -> Built:
        def run() -> None:
            self.time.passes(135.0 if self.cold else 105.0)
            self.cold = False

        def minus() -> None:
            self.time.passes(5.0)
            self.cold = False

        self.built.append(op)
        return Built(run=run, minus=minus, method="twin")


def measured(backend: Cached, monkeypatch: pytest.MonkeyPatch, *ops: Op) -> list[dict]:
    def evict() -> None:
        backend.cold = True

    monkeypatch.setattr(latency.measuring, "evictor", lambda streamed, environment: evict)
    measurer = Measurer(backend, Journal(None, backend.environment()), streamed=1)
    return measurer.measure([(op, "sweep", None) for op in ops], Precision())


def test_an_op_that_uses_its_weights_seldom_reads_them_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = measured(Cached(), monkeypatch, conv(64, 64, **FEW), conv(64, 64, **MANY))
    assert {(c["h"], c["us"], c["cache"]) for c in cells} == {(4, 130.0, COLD), (64, 100.0, WARM)}


def test_weights_stay_in_the_cache_where_nothing_else_is_read_or_the_backend_cannot_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = Cached()
    (cell,) = Measurer(backend, Journal(None, backend.environment())).measure(
        [(conv(64, 64, **FEW), "sweep", None)], Precision()
    )
    assert (cell["us"], cell["cache"]) == (100.0, WARM)
    backend.evicts = False
    (cell,) = measured(backend, monkeypatch, conv(64, 64, **FEW))
    assert (cell["us"], cell["cache"]) == (100.0, WARM)


def test_a_cell_of_warm_weights_is_measured_again_with_cold_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Cached()
    journal = Journal(None, backend.environment())
    op = conv(64, 64, **FEW)
    Measurer(backend, journal).measure([(op, "sweep", None)], Precision())
    monkeypatch.setattr(latency.measuring, "evictor", lambda streamed, environment: lambda: None)
    measurer = Measurer(backend, journal, streamed=1)
    assert measurer.known(op, "sweep") is None
    assert len(measurer.measure([(op, "sweep", None)], Precision())) == 1
    assert measurer.known(op, "sweep") is not None


def test_how_often_an_op_uses_a_weight_is_its_positions_times_the_batch() -> None:
    # 24 × 25 positions are 600, one row more is too many; a stride of 2 leaves a quarter of them.
    assert rereads(conv(8, 16, h=24, w=25))
    assert not rereads(conv(8, 16, h=25, w=25))
    assert not rereads(conv(8, 16, h=24, w=25, batch=2))
    assert rereads(conv(8, 16, h=48, w=50, stride=(2, 2)))
    assert rereads(Op(kind="linear", c_in=8, c_out=8, batch=600))
    assert not rereads(Op(kind="max_pool", c_in=8, c_out=8, h=2, w=2, kernel=(2, 2)))  # has none


def test_bytes_of_weights_are_counted_as_often_as_they_are_there() -> None:
    grouped = conv(8, 16, groups=4)  # 8/4 · 16 · 9 = 288 weights
    half = Op(kind="linear", c_in=10, c_out=5, dtype="float16")  # 50
    pool = Op(kind="max_pool", c_in=8, c_out=8, h=2, w=2, kernel=(2, 2))
    assert weight_bytes([grouped, grouped, half, pool]) == 2 * 288 * 4 + 50 * 2


@pytest.mark.parametrize(
    ("streamed", "caches", "bytes_read"),
    [
        (3 << 20, {"L1": "32K", "L2": "1024K", "L3": "8192K"}, 3 << 20),
        (2 << 20, {"L1": "32K", "L2": "1024K", "L3": "8192K"}, 0),  # a quarter of it stays in it
        (99 << 20, {"L1": "32K", "L2": "1024K", "L3": "8192K"}, 8 << 20),
        (99 << 20, {"L2": "2M"}, 2 << 20),
        (99 << 20, {}, 32 << 20),
    ],
)
def test_no_more_is_read_than_the_last_cache_holds(streamed: int, caches: dict, bytes_read: int) -> None:
    tracemalloc.start()
    try:
        evict = evictor(streamed, {"cpu_caches": caches})
        held = tracemalloc.get_traced_memory()[0]
        assert (evict is None) == (bytes_read == 0)
        assert evict is None or evict() == 1  # the largest of ones: they were all read
    finally:
        tracemalloc.stop()
    assert held == pytest.approx(bytes_read, rel=0.01, abs=20_000)


def test_of_a_table_with_cells_of_both_kinds_the_cold_ones_count() -> None:
    few, many = conv(64, 64, **FEW), conv(64, 64, **MANY)
    cells = [
        {**few.key(), "us": 100.0, "cache": WARM},
        {**few.with_channels(32, 64).key(), "us": 50.0, "cache": WARM},
        {**few.key(), "us": 130.0, "cache": COLD},
        {**many.key(), "us": 900.0},  # without a word, as early profiles have it: warm
    ]
    profile = Profile({}, cells)
    assert [c["us"] for c in profile.cells] == [130.0, 900.0]
    assert float(profile.table(few).lookup(64, 64)) == 130.0
    assert len(Profile({}, cells[:2]).cells) == 2


def test_what_empties_the_caches_runs_before_each_run_and_the_anchor_returns_in_between() -> None:
    clock, log = FakeClock(), []

    def anchor_call() -> None:
        log.append("anchor")
        clock.passes(10.0)

    def call(name: str, us: float):
        return lambda: (log.append(name), clock.passes(us))

    anchor = Anchor(anchor_call, clock)
    anchor.settle(seconds=0.0)
    log.clear()
    sampling = Sampling(clock=clock, anchor=anchor, precision=Precision(n_min=5, n_max=5))
    found = sampling.visit(call("run", 30.0), call("minus", 10.0), before=call("evict", 1000.0), warm_up=0)
    assert (found.us, found.n) == (20.0, 5)  # the eviction is in no time
    told = [name for name in log if name != "anchor"]
    assert told == ["evict", "run", "evict", "minus"] * 5
    assert all(
        log[k + 1] == "anchor" and log[k - 1] == "anchor" for k in range(1, len(log)) if log[k] == "run"
    )
