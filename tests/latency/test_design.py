"""Which cells are measured."""

from __future__ import annotations

from latency.op import Op
from latency.profiles import Profile
from latency.sweeping.design import crossings, design, edges, refined, specs
from latency.sweeping.steps import Steps

from .fakes import conv

EIGHT = Steps((8, 8))


def test_edges_are_multiples_of_the_step_and_the_built_widths() -> None:
    assert edges((20,), 8) == [8, 16, 20]
    assert edges((12, 20), 8) == [8, 12, 16, 20]
    assert edges((6,), 8) == [6]


def test_edges_of_a_grouped_op_are_whole_groups() -> None:
    assert edges((48,), 8, unit=12) == [24, 48]


def test_ops_that_differ_in_width_alone_share_a_table() -> None:
    (spec,) = specs([conv(16, 32), conv(32, 16), conv(16, 32)])
    assert (spec.op.c_in, spec.op.c_out) == (32, 32)
    assert (spec.ins, spec.outs) == ((16, 32), (16, 32))


def test_an_image_keeps_its_channels() -> None:
    first, second = specs([conv(3, 32), conv(32, 32)])
    assert (first.fixed_in, second.fixed_in) == (True, False)
    assert {i for i, _ in design(first, EIGHT, holdout=0, seed=0).sweep} == {3}


def test_no_cell_of_a_conv_of_features_is_as_narrow_as_an_image() -> None:
    spec = specs([conv(16, 16)])[0]
    found = design(spec, Steps((2, 8)), holdout=100, seed=0)
    assert {i for i, _ in (*found.sweep, *found.holdout)} <= {6, 8, 10, 12, 14, 16}
    assert {i for i, _ in crossings(spec, Steps((2, 8)))} == {6, 8, 10, 12, 14, 16}


def test_a_side_may_be_told_to_be_fixed() -> None:
    op = Op(kind="linear", c_in=64, c_out=10)
    (spec,) = specs([op], {op: (False, True)})
    assert {o for _, o in design(spec, EIGHT, holdout=0, seed=0).sweep} == {10}


def test_a_small_grid_is_measured_whole() -> None:
    (spec,) = specs([conv(32, 32)])
    assert len(design(spec, EIGHT, holdout=6, seed=0).sweep) == 16


def test_of_a_large_grid_full_rows_and_columns_are_measured() -> None:
    (spec,) = specs([conv(256, 256)])
    found = design(spec, EIGHT, holdout=6, seed=0)
    ins, outs = {i for i, _ in found.sweep}, {o for _, o in found.sweep}
    full_rows = [i for i in ins if {o for k, o in found.sweep if k == i} == outs]
    full_columns = [o for o in outs if {i for i, k in found.sweep if k == o} == ins]
    assert len(full_rows) == len(full_columns) == 3
    assert 256 in full_rows
    assert 256 in full_columns
    assert len(found.sweep) < 0.05 * found.candidates
    assert found.candidates == 32 * 32


def test_held_out_cells_are_none_of_the_swept_ones() -> None:
    (spec,) = specs([conv(128, 128)])
    found = design(spec, EIGHT, holdout=6, seed=0)
    assert len(found.holdout) == 6
    assert not set(found.holdout) & set(found.sweep)
    assert all(i % 8 == 0 and o % 8 == 0 for i, o in found.holdout)


def test_other_seeds_hold_out_other_cells() -> None:
    (spec,) = specs([conv(128, 128)])
    one, same, other = (design(spec, EIGHT, holdout=6, seed=s).holdout for s in (0, 0, 1))
    assert one == same != other


def test_a_depthwise_op_is_measured_along_its_diagonal() -> None:
    (spec,) = specs([conv(32, 32, groups=32)])
    assert design(spec, EIGHT, holdout=0, seed=0).sweep == ((8, 8), (16, 16), (24, 24), (32, 32))


def test_axes_with_a_pattern_are_measured_at_the_ends_of_periods() -> None:
    (spec,) = specs([conv(256, 256)])
    steps = Steps((8, 8), (None, (0.5, 0.7, 0.9, 1.0)))
    outs = {o for _, o in design(spec, steps, holdout=0, seed=0).sweep}
    assert all(o % 32 == 0 or o == 8 for o in outs)


def test_a_wrong_held_out_cell_gets_its_row_and_column_and_a_successor() -> None:
    spec = specs([conv(64, 64)])[0]
    found = Steps((8, 8))
    table = [(i, o) for i in (8, 64) for o in (8, 64)]
    cells = [{**conv(i, o).key(), "us": float(i + o), "steps": [8, 8], "role": "sweep"} for i, o in table] + [
        {**conv(32, 48).key(), "us": 160.0, "role": "holdout"},  # the corners say 80
        {**conv(16, 24).key(), "us": 40.0, "role": "holdout"},  # and here what was measured
    ]
    swept, held = refined(spec, found, Profile({}, cells), 0.0, seed=0)
    assert set(swept) == {(32, 8), (32, 64), (8, 48), (64, 48), (32, 48)}
    (successor,) = held
    assert successor not in {*table, *swept, (16, 24)}
    assert all(width % 8 == 0 and 8 <= width <= 64 for width in successor)
    again = [*cells[:-1], {**conv(32, 48).key(), "us": 160.0, "steps": [8, 8], "role": "sweep"}]
    assert refined(spec, found, Profile({}, again), 0.0, seed=0) == ([], [])


def test_a_cell_of_a_line_is_added_however_short_and_a_row_and_column_where_time_is_saved() -> None:
    pool = Op(kind="max_pool", c_in=64, c_out=64, h=8, w=8, kernel=(2, 2), stride=(2, 2))
    found = Steps((8, 8))
    line = [{**pool.with_channels(c, c).key(), "us": c / 64, "steps": [8, 8]} for c in (8, 64)]
    bent = {**pool.with_channels(32, 32).key(), "us": 0.4, "role": "holdout"}  # the ends say 0.5
    swept, held = refined(specs([pool])[0], found, Profile({}, [*line, bent]), 0.2, seed=0)
    assert swept == [(32, 32)]
    assert len(held) == 1
    corners = [{**conv(i, o).key(), "us": i * o / 4096, "steps": [8, 8]} for i in (8, 64) for o in (8, 64)]
    wrong = {**conv(32, 32).key(), "us": 0.2, "role": "holdout"}  # the corners say 0.25
    assert refined(specs([conv(64, 64)])[0], found, Profile({}, [*corners, wrong]), 0.2, seed=0) == ([], [])
    assert refined(specs([conv(64, 64)])[0], found, Profile({}, [*corners, wrong]), 0.04, seed=0) != ([], [])


def test_a_disturbed_held_out_cell_asks_for_nothing() -> None:
    table = [{**conv(i, o).key(), "us": float(i + o), "steps": [8, 8]} for i in (8, 64) for o in (8, 64)]
    wrong = {**conv(32, 48).key(), "us": 160.0, "role": "holdout", "method": "twin"}  # the corners say 80
    spec = specs([conv(64, 64)])[0]
    assert refined(spec, EIGHT, Profile({}, [*table, wrong]), 0.0, seed=0) != ([], [])
    disturbed = {**wrong, "method": "twin/disturbed"}
    assert refined(spec, EIGHT, Profile({}, [*table, disturbed]), 0.0, seed=0) == ([], [])
