"""Tables that are measured where they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from latency.errors import UsageError
from latency.op import Op
from latency.profiles import Profile
from latency.sweeping import LazySweep

from .fakes import FakeBackend, conv, staircase

WIDE = conv(64, 64)


def test_it_opens_with_the_four_corners_of_a_dense_table() -> None:
    with LazySweep([WIDE], backend=FakeBackend(staircase(8))) as tables:
        swept = {(c["c_in"], c["c_out"]) for c in tables.profile.cells if c["role"] == "sweep"}
    assert swept == {(8, 8), (8, 64), (64, 8), (64, 64)}


def test_a_cell_that_is_asked_for_is_measured_at_the_edge_above_it() -> None:
    with LazySweep([WIDE], backend=FakeBackend(staircase(8))) as tables:
        assert tables.measure([(WIDE, 17, 33)]) == 1
        table = tables.profile.table(WIDE)
    assert bool(table.measured(24, 40))
    assert float(table.lookup(17, 33)) == pytest.approx(2 + 5 + 0.3 * 3 * 5)


def test_what_is_known_is_not_measured_again() -> None:
    backend = FakeBackend(staircase(8))
    with LazySweep([WIDE], backend=backend) as tables:
        tables.measure([(WIDE, 17, 33), (WIDE, 24, 40)])
        built = len(backend.built)
        assert tables.measure([(WIDE, 18, 39), (WIDE, 64, 64)]) == 0
    assert len(backend.built) == built


def test_depthwise_and_fixed_sides_stay_on_their_line() -> None:
    depthwise, head = conv(64, 64, groups=64), Op(kind="linear", c_in=64, c_out=10)
    tables = LazySweep(
        [WIDE, depthwise, head], backend=FakeBackend(staircase(8)), fixed={head: (False, True)}
    )
    with tables:
        tables.measure([(depthwise, 30, 30), (head, 30, 10)])
        cells = [c for c in tables.profile.cells if c["role"] == "sweep"]
    assert {c["c_out"] for c in cells if c["op"] == "linear"} == {10}
    assert all(c["c_in"] == c["c_out"] == c["groups"] for c in cells if c["groups"] > 1)


def test_ops_that_cannot_be_built_and_empty_cells_are_left_out() -> None:
    pool = Op(kind="max_pool", c_in=64, c_out=64, h=8, w=8, kernel=(2, 2))
    with LazySweep([WIDE, pool], backend=FakeBackend(staircase(8), refused=("max_pool",))) as tables:
        assert tables.measure([(pool, 8, 8), (WIDE, 0, 8)]) == 0


def test_a_second_opening_goes_on_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lazy.jsonl"
    with LazySweep([WIDE], backend=FakeBackend(staircase(8)), path=path) as tables:
        tables.measure([(WIDE, 24, 40)])
    backend = FakeBackend(staircase(8))
    with LazySweep([WIDE], backend=backend, path=path) as tables:
        assert tables.measure([(WIDE, 24, 40)]) == 0
    assert backend.built == [WIDE]  # asked whether it can be built, nothing more
    assert len([c for c in Profile.load(path).cells if c["role"] == "sweep"]) == 5


def test_asking_before_opening_says_how_to_open() -> None:
    with pytest.raises(UsageError, match="with LazySweep"):
        LazySweep([WIDE], backend=FakeBackend(staircase(8))).measure([])
