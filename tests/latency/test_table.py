"""Lookups in tables of known cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latency.errors import ProfileError
from latency.op import Op
from latency.profiles import Profile
from latency.table import Table, normalised_width

CONV = {"op": "conv", "kernel": [3, 3], "stride": [1, 1], "pad": [1, 1], "dilation": [1, 1], "h": 8, "w": 8}


def op(c_in: int = 64, c_out: int = 64, **fields: Any) -> Op:
    return Op.from_key({**CONV, "c_in": c_in, "c_out": c_out, **fields})


def cell(c_in: int, c_out: int, us: float | None, **fields: Any) -> dict[str, Any]:
    return {**CONV, "groups": 1, "batch": 1, "tail": [], "c_in": c_in, "c_out": c_out, "us": us, **fields}


def table(cells: list[dict[str, Any]], asked: Op | None = None) -> Table:
    return Profile({}, cells).table(asked or op())


def test_a_full_grid_is_returned_as_it_is() -> None:
    rng = np.random.default_rng(0)
    grid = rng.uniform(1.0, 2.0, (16, 16))
    found = table([cell(i + 1, j + 1, float(grid[i, j])) for i in range(16) for j in range(16)])
    widths = np.arange(1, 17)
    np.testing.assert_array_equal(found.lookup(widths[:, None], widths[None]), grid)
    assert found.measured(widths[:, None], widths[None]).all()


def test_a_width_inside_a_step_costs_what_its_right_edge_costs() -> None:
    edges = [8, 16, 24, 32]
    found = table([cell(i, o, 100.0 * i + o) for i in edges for o in edges])
    assert found.steps == (8, 8)
    np.testing.assert_array_equal(
        found.lookup([1, 8, 9, 16, 17, 32], 32), [832.0, 832.0, 1632.0, 1632.0, 2432.0, 3232.0]
    )
    assert not found.measured(9, 32)


def test_told_steps_hold_where_an_edge_was_not_measured() -> None:
    # Edges are multiples of 8; 24 lies between the measured 16 and 32.
    found = table([cell(32, o, us, steps=[8, 8]) for o, us in ((8, 10.0), (16, 20.0), (32, 60.0))])
    np.testing.assert_array_equal(found.lookup(32, [16, 17, 20, 24, 25]), [20.0, 40.0, 40.0, 40.0, 60.0])


def test_irregular_widths_without_told_steps_are_interpolated() -> None:
    found = table([cell(5, o, float(us)) for o, us in ((1, 10), (5, 18), (17, 42), (64, 136))], op(5, 64))
    np.testing.assert_allclose(found.lookup(5, [3, 11, 40]), [14.0, 30.0, 88.0])


def test_a_cross_fills_the_grid_exactly_where_rows_differ_linearly() -> None:
    # T = f(i) + g(j) + i·h(j) with jagged g and h: linear in i.
    edges = np.arange(8, 65, 8)
    rng = np.random.default_rng(1)
    g, h = (
        dict(zip(edges, rng.uniform(5, 9, 8), strict=True)),
        dict(zip(edges, rng.uniform(1, 2, 8), strict=True)),
    )
    jagged = dict(zip(edges, rng.uniform(0, 3, 8), strict=True))
    us = {(i, j): float(jagged[i] + g[j] + i * h[j]) for i in edges for j in edges}
    cross = [key for key in us if key[0] in (8, 64) or key[1] in (8, 64)]
    found = table([cell(int(i), int(j), us[i, j]) for i, j in cross])
    for (i, j), expected in us.items():
        assert float(found.lookup(i, j)) == pytest.approx(expected)
    assert bool(found.measured(8, 40))
    assert not found.measured(24, 40)


def test_a_pattern_bends_what_lies_between_the_ends_of_periods() -> None:
    shape = [0.5, 0.7, 0.9, 1.0]
    cells = [cell(8, o, us, steps=[8, 8], pattern=[None, shape]) for o, us in ((32, 100.0), (64, 200.0))]
    found = table(cells, op(8, 64))
    np.testing.assert_allclose(found.lookup(8, [33, 40, 48, 56, 64]), [150.0, 150.0, 170.0, 190.0, 200.0])


def test_bent_widths_equal_the_width_at_the_ends_of_periods() -> None:
    np.testing.assert_allclose(
        normalised_width(np.array([0, 8, 16, 24, 32]), 8, [0.6, 1.0]), [0.0, 9.6, 16.0, 25.6, 32.0]
    )


def test_scattered_cells_of_a_plane_give_the_plane_back() -> None:
    rng = np.random.default_rng(2)
    pairs = {(int(i), int(o)) for i, o in rng.integers(1, 33, (40, 2))} | {(32, 32)}
    found = table([cell(i, o, 3.0 + 2.0 * i + o + 0.5 * i * o) for i, o in pairs], op(32, 32))
    i, o = max(i for i, _ in pairs), min(o for _, o in pairs)
    assert float(found.lookup(i, o)) == pytest.approx(3.0 + 2.0 * i + o + 0.5 * i * o, rel=1e-6)


def test_a_depthwise_op_has_a_diagonal_only() -> None:
    cells = [cell(c, c, float(c), groups=c) for c in (8, 16, 24, 32)]
    found = table(cells, op(32, 32, groups=32))
    np.testing.assert_array_equal(found.lookup([3, 9, 32], [3, 9, 32]), [8.0, 16.0, 32.0])
    with pytest.raises(ProfileError, match="both sides of this op are the same channels"):
        found.lookup(8, 16)


def test_groups_of_a_grouped_conv_go_together() -> None:
    cells = [cell(4 * g, 8 * g, 10.0 * g, groups=g) for g in (2, 4, 8)]
    found = table(cells, op(32, 64, groups=8))
    np.testing.assert_array_equal(found.lookup([8, 16, 32], [16, 32, 64]), [20.0, 40.0, 80.0])


def test_no_channels_cost_nothing() -> None:
    found = table([cell(8, 8, 5.0)], op(8, 8))
    np.testing.assert_array_equal(found.lookup([0, 8, 0], [8, 0, 0]), [0.0, 0.0, 0.0])


def test_a_width_beyond_the_measured_ones_is_refused() -> None:
    found = table([cell(8, 8, 5.0), cell(16, 8, 6.0)], op(16, 8))
    with pytest.raises(ProfileError, match=r"C_in = 17; the profile holds 0 … 16; profile the model"):
        found.lookup(17, 8)


def test_lookup_broadcasts() -> None:
    found = table([cell(i, o, float(10 * i + o)) for i in range(5, 9) for o in range(5, 9)], op(8, 8))
    assert found.lookup(np.arange(5, 9)[:, None], np.arange(5, 8)[None]).shape == (4, 3)
    assert found.lookup(8, 8).shape == ()


def test_only_cells_of_the_sweep_are_looked_up() -> None:
    cells = [cell(8, 8, 5.0), *(cell(8, 8, 99.0, role=r) for r in ("anchor", "repeat", "holdout", "probe"))]
    assert float(table(cells, op(8, 8)).lookup(8, 8)) == 5.0


def test_a_conv_of_an_image_has_a_table_of_its_own() -> None:
    cells = [cell(3, 8, 7.0, image=True), cell(8, 8, 5.0), cell(16, 8, 9.0)]
    profile = Profile({}, cells)
    assert float(profile.table(op(3, 8)).lookup(3, 8)) == 7.0
    assert float(profile.table(op(16, 8)).lookup(3, 8)) == 5.0


@pytest.mark.parametrize("us", [-1.0, 0.0, 0, True, float("inf"), float("nan")])
def test_a_time_that_is_not_above_0_is_refused_with_its_cell(us: float) -> None:
    cells = [cell(8, 8, us), cell(16, 8, 2.0)]
    with pytest.raises(ProfileError, match=rf"the cell of conv at 8 → 8 has the time {us!r} µs; measure it"):
        Profile({}, cells)
    with pytest.raises(ProfileError, match=rf"the cell of conv 3×3 .* at 8 → 8 has the time {us!r} µs; meas"):
        Table(op(8, 8), cells)


@pytest.mark.parametrize("us", [np.float32(2.5), np.float64(2.5), np.int64(2)])
def test_a_time_may_be_a_number_of_numpy(us: float) -> None:
    assert table([cell(8, 8, us)], op(8, 8)).lookup(8, 8) == float(us)


def test_a_cell_that_no_table_reads_is_held_to_the_same() -> None:
    with pytest.raises(ProfileError, match="has the time -1 µs"):
        Profile({}, [cell(8, 8, -1, role="holdout")])


def test_a_time_that_is_no_number_is_refused() -> None:
    with pytest.raises(ProfileError, match="has the time None µs"):
        table([cell(8, 8, None)], op(8, 8))


def test_widths_off_the_alignment_cost_more_than_their_edge() -> None:
    cells = [cell(c, 8, float(c), steps=[8, 8], slow=[[4, 1.5], None]) for c in (8, 16, 18)]
    found = table(cells, op(18, 8))
    np.testing.assert_allclose(found.lookup([9, 11, 12, 15, 16, 17, 18], 8), [24, 24, 16, 24, 16, 27, 18])
