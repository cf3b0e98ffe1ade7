"""Linear layers whose weights come from memory: their time in the cache, and so much a byte."""

from __future__ import annotations

import numpy as np
import pytest

from latency.backends import Built
from latency.device import TimingPolicy
from latency.op import Op, weight_bytes
from latency.profile_io import Journal
from latency.profiles import COLD, WARM
from latency.sweeping.cold_weights import ColdWeights, Rate
from latency.sweeping.schedule import Measurer
from latency.timing.timer import Precision, Timing

from .fakes import FakeBackend

HEAD = Op(kind="linear", c_in=1024, c_out=1024)
"""4 MiB of weights, each used once."""

WARM_US, COLD_US = 20.0, 50.0
"""Of a MiB: 30 µs longer from memory."""

MIB = 1 << 20


class Streams(FakeBackend):
    """Linear layers that read their weights from the cache, and from memory once it was emptied.

    From memory every second build is slower by 2·``spread``, the others are faster by it; from the cache all are equal.
    """

    def __init__(self, spread: float = 0.0) -> None:
        super().__init__(lambda op: 0.0)
        self.emptied = 0
        self.spread = spread

    def evict(self, size: int) -> None:
        self.emptied += 1

    def build(self, op: Op) -> Built:
        self.built.append(op)
        mib = weight_bytes(op) / MIB
        lies = 1.0 + self.spread * (-1) ** len(self.built)
        last = self.emptied

        def run() -> None:
            nonlocal last
            a_mib = COLD_US * lies if last < self.emptied else WARM_US
            last = self.emptied
            self.time.passes(5.0 + 2 * mib * a_mib)

        return Built(run=run, minus=lambda: self.time.passes(5.0), copies=2, method="twin")


def measurer_of(backend: Streams, journal: Journal, *tables: Op) -> Measurer:
    memory = ColdWeights({op.table_key(): op for op in tables}, 64 << 20, backend.evict)
    return Measurer(backend, journal, memory=memory)


@pytest.mark.parametrize("spread", [0.0, 0.25])
def test_cells_are_as_in_the_cache_plus_the_mean_rate_of_many_builds(spread: float) -> None:
    backend = Streams(spread)
    journal = Journal(None, backend.environment())
    widths = [1024, 512, 128, 16]
    todo = [(HEAD.with_channels(c_in, 1024), "sweep", None) for c_in in widths]
    cells = {c["c_in"]: c for c in measurer_of(backend, journal, HEAD).measure(todo, Precision())}
    # 1024 columns of 4 bytes: 4 KiB for each channel in; 16 of them are 64 KiB, few enough to stay in the cache
    assert {c_in: cells[c_in]["us"] for c_in in widths} == {
        1024: pytest.approx(4 * COLD_US, abs=2e-3),
        512: pytest.approx(2 * COLD_US, abs=2e-3),
        128: pytest.approx(0.5 * COLD_US, abs=2e-3),
        16: pytest.approx(WARM_US / 16, abs=2e-3),
    }
    assert [cells[c_in]["cache"] for c_in in widths] == [COLD, COLD, COLD, WARM]
    assert [cells[c_in]["method"] for c_in in widths] == ["twin+memory"] * 3 + ["twin"]
    # one to ask what a turn reads, one that runs between emptying the caches and a turn
    assert len(backend.built) == 2 + TimingPolicy().rate_builds + len(widths)
    # Builds of ±25 %: their standard deviation is that times √(24/23), of 100 µs at 2 MiB, the mean's a √24th.
    half = 2 * 100.0 * spread * np.sqrt(24 / 23) / np.sqrt(24)
    assert [(cells[c]["ci_hi"] - cells[c]["ci_lo"]) / 2 for c in widths[:3]] == [
        pytest.approx(share * half, abs=2e-3) for share in (2.0, 1.0, 0.25)
    ]


def test_the_rate_is_in_the_file_and_is_not_measured_again() -> None:
    backend = Streams(0.25)
    journal = Journal(None, backend.environment())
    measurer_of(backend, journal, HEAD).measure([(HEAD, "sweep", None)], Precision())
    told = {c["cache"]: (c["c_in"], c["us"]) for c in journal.cells if c["role"] == "probe"}
    assert told == {WARM: (512, 2 * WARM_US), COLD: (512, 2 * COLD_US)}  # 2 MiB
    built = len(backend.built)
    narrow = HEAD.with_channels(256, 1024)
    (cell,) = measurer_of(backend, journal, HEAD).measure([(narrow, "sweep", None)], Precision())
    assert len(backend.built) == built + 1
    assert cell["us"] == pytest.approx(COLD_US, abs=2e-3)


def test_each_table_has_a_rate_of_its_own_and_only_linear_layers_of_few_images_have_one() -> None:
    backend = Streams()
    journal = Journal(None, backend.environment())
    other = Op(kind="linear", c_in=1024, c_out=1024, batch=8)
    many = Op(kind="linear", c_in=1024, c_out=1024, batch=9)
    deep = Op(kind="conv", c_in=1024, c_out=1024, h=1, w=1, kernel=(1, 1))
    tables = (HEAD, other, many, deep)
    measurer_of(backend, journal, *tables).measure([(op, "sweep", None) for op in tables], Precision())
    rated = {(c["op"], c["batch"]) for c in journal.cells if c["role"] == "probe"}
    assert rated == {("linear", 1), ("linear", 8)}
    assert {c["us"] for c in journal.cells if c["role"] == "sweep"} == {4 * COLD_US}


def test_a_rate_by_hand() -> None:
    rate = Rate.of(
        {"us": 20.0, "ci_lo": 19.0, "ci_hi": 21.0}, {"us": 60.0, "ci_lo": 57.0, "ci_hi": 63.0}, 1000
    )
    assert rate.us == 0.04
    assert rate.half == pytest.approx(np.sqrt(1 + 9) / 1000)
    timing = rate.onto(Timing(us=10.0, ci_lo=8.0, ci_hi=12.0, n=9, contention=0.0), 500)
    assert timing.us == 30.0
    assert (timing.us - timing.ci_lo, timing.ci_hi - timing.us) == pytest.approx((np.sqrt(6.5), np.sqrt(6.5)))
    # Where the cache is no faster, or a slower one by chance, nothing is added.
    assert (
        Rate.of({"us": 61.0, "ci_lo": 61.0, "ci_hi": 61.0}, {"us": 60.0, "ci_lo": 60.0, "ci_hi": 60.0}, 9).us
        == 0.0
    )


def test_the_op_that_tells_a_rate_has_two_mebibytes_or_all_there_are() -> None:
    small = Op(kind="linear", c_in=300, c_out=1000, batch=2)
    memory = ColdWeights({op.table_key(): op for op in (HEAD, small)}, 64 << 20, lambda size: None)
    assert memory.sample(HEAD.with_channels(8, 1024)) == HEAD.with_channels(512, 1024)
    assert memory.sample(small.with_channels(8, 1000)) == small
