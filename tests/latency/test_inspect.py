"""What a profile says of itself."""

from __future__ import annotations

import math
from typing import Any

import pytest

from latency.inspect import inspect
from latency.profiles import Profile


def cell(c_out: int, us: float, **fields: Any) -> dict[str, Any]:
    return {"op": "linear", "c_in": 8, "c_out": c_out, "us": us, "steps": [8, 8], **fields}


def test_coverage_spread_contention_and_age_are_counted() -> None:
    cells = [
        cell(8, 10.0, ci_lo=9.0, ci_hi=11.0, contention=0.1, time=0),
        cell(24, 20.0, ci_lo=19.0, ci_hi=21.0, contention=0.3, time=86400, method="twin/disturbed"),
        cell(16, 12.5, role="holdout", time=86400),  # the line between the two says 15
        cell(24, 99.0, role="holdout", time=86400),  # measured for the table as well: judges nothing
        cell(64, 1.0, role="probe"),
    ]
    found = inspect(Profile({"device": "this"}, cells), now=10 * 86400)
    assert found.roles == {"sweep": 2, "holdout": 2, "probe": 1}
    (table,) = found.ops
    assert (table.cells, table.edges, table.steps, table.dense_us) == (2, 3, (8, 8), 20.0)
    judged: tuple[int, object, float] = (1, pytest.approx(0.2), 0.5)
    assert (table.holdout, table.holdout_worst, table.contended) == judged
    assert found.spread_median == pytest.approx(0.075)
    contention: tuple[object, float] = (pytest.approx(0.2), 0.3)
    assert (found.contention_median, found.contention_worst) == contention
    assert (found.oldest_days, found.newest_days) == (10.0, 9.0)
    assert found.environment == {"device": "this"}


def test_a_sweep_that_goes_on_is_judged_by_what_its_tables_hold_so_far() -> None:
    cells = [cell(8, 10.0), cell(24, 20.0), cell(16, 12.5, role="holdout"), cell(32, 30.0, role="holdout")]
    (table,) = inspect(Profile({}, cells)).ops
    judged: tuple[int, object] = (1, pytest.approx(0.2))
    assert (table.holdout, table.holdout_worst) == judged


def test_what_speaks_against_a_profile_is_said() -> None:
    cells = [
        cell(8, 10.0, ci_lo=5.0, ci_hi=15.0, contention=0.4, time=0),
        cell(24, 10.0, ci_lo=5.0, ci_hi=15.0, contention=0.4, time=0),
        cell(16, 20.0, role="holdout", time=0),
    ]
    words = [w.split(":")[0] for w in inspect(Profile({}, cells), now=400 * 86400).warnings]
    assert words == ["spread", "contention", "holdout", "age"]


def test_the_errors_of_held_out_cells_count_by_time_and_alike() -> None:
    # Between 10 µs at 8 and 90 µs at 88 channels the table says the width + 2.
    cells = [
        cell(8, 10.0),
        cell(88, 90.0),
        cell(16, 12.0, role="holdout"),  # 18 is 50 % more
        cell(80, 82.0, role="holdout"),  # and here it is right
    ]
    found = inspect(Profile({}, cells))
    assert found.holdout_median == pytest.approx(0.25)
    assert found.holdout_p95 == pytest.approx(0.5)  # 82 of 94 µs are right, less than 95 %
    assert found.holdout_p95_cells == pytest.approx(0.475)  # 95 % of the way from 0 to 50 %
    many = [
        *cells[:2],
        *(cell(w, w + 2.0, role="holdout") for w in (24, 32, 40, 48, 56, 64, 72, 80)),
        cells[2],
    ]
    found = inspect(Profile({}, many))
    assert found.holdout_p95 == 0.0  # 12 of 444 µs are wrong
    assert found.holdout_p95_cells == pytest.approx(0.3)  # of nine the last counts six tenths


def test_a_profile_of_bare_cells_can_be_inspected() -> None:
    found = inspect(Profile({}, [cell(8, 10.0)]))
    assert math.isnan(found.spread_median)
    assert math.isnan(found.oldest_days)
    assert found.warnings == ()


def test_contention_of_several_threads_was_not_measured_whatever_older_profiles_say() -> None:
    from math import isnan

    cells = [cell(8, 10.0, contention=0.0, time=0), cell(24, 20.0, time=0)]
    assert inspect(Profile({"threads": 1}, cells)).contention_median == 0.0
    assert isnan(inspect(Profile({"threads": 2}, cells)).contention_median)
    assert isnan(inspect(Profile({"threads": 1}, cells[1:])).contention_worst)
