"""Latency of counts, candidate widths and the grid, on a network priced by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from halpiee.errors import ProfileError, UsageError
from halpiee.selection.cost import LatencyCost
from halpiee.selection.grid import FloatArray
from halpiee.selection.solve import solve_grid
from halpiee.structure.groups import Structure
from latency.predict import Calibration

from .fakes import FormulaProfile, conv, group, other, residual, structure


def product(c_in: FloatArray, c_out: FloatArray) -> FloatArray:
    return c_in * c_out


@pytest.fixture
def cost() -> LatencyCost:
    """Stem 3·s, conv1 s·a, conv2 a·s, add s, head 10·s; s = 8, a = 8 when dense."""
    return LatencyCost(residual(), FormulaProfile(step=4, conv=product, linear=product, add=lambda i, o: i))


def test_the_dense_cost_is_the_sum_of_all_ops(cost: LatencyCost) -> None:
    assert cost.dense_us == 3 * 8 + 8 * 8 + 8 * 8 + 8 + 10 * 8


def test_a_width_is_priced_on_both_sides_of_every_op(cost: LatencyCost) -> None:
    assert cost.total_us({"stream": 5, "a": 2}) == 3 * 5 + 5 * 2 + 2 * 5 + 5 + 10 * 5


def test_groups_that_are_not_named_are_whole(cost: LatencyCost) -> None:
    assert cost.total_us({"a": 2}) == cost.total_us({"a": 2, "stream": 8})


def test_an_op_whose_side_has_vanished_costs_nothing() -> None:
    overhead = LatencyCost(residual(), FormulaProfile(conv=lambda i, o: 7 + i * o, linear=lambda i, o: i))
    assert overhead.total_us({"a": 0}) == 7 + 3 * 8 + 8


def test_calibration_moves_the_sum_and_shares_the_rest(cost: LatencyCost) -> None:
    line = cost.with_calibration(Calibration(10.0, 2.0))
    assert line.total_us({"a": 2}) == 10 + 2 * cost.total_us({"a": 2})
    assert line.dense_us == 10 + 2 * cost.dense_us
    assert line.raw({"a": 2}) == cost.total_us({"a": 2})
    assert line.candidates is cost.candidates
    assert cost.calibration is None


def test_cells_that_were_not_measured_are_named(cost: LatencyCost) -> None:
    assert cost.interpolated({}) == ("stem", "head")  # 3 and 10 are not multiples of 4
    assert "block.conv1" in cost.interpolated({"a": 6})


def test_cheap_ops_without_a_table_are_named() -> None:
    cost = LatencyCost(residual(), FormulaProfile(conv=product, linear=product))
    assert cost.not_covered == ("block.add (add)",)


def test_a_layer_without_a_table_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"no table for stem \(conv\), block\.conv1 \(conv\)"):
        LatencyCost(residual(), FormulaProfile(linear=product))


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"steam": 3}, "did you mean 'stream'"),
        ({"stream": 9}, "9 units of 'stream', which has 8"),
        ({"head": 3}, "'head', which is not prunable"),
    ],
)
def test_counts_that_do_not_fit_are_refused(cost: LatencyCost, counts: dict[str, int], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        cost.total_us(counts)


def test_candidates_are_the_right_edges_of_a_staircase() -> None:
    cost = LatencyCost(
        residual({"stream": 64, "a": 48}),
        FormulaProfile(
            conv=lambda i, o: np.ceil(i / 16) * np.ceil(o / 16), linear=lambda i, o: np.ceil(i / 16)
        ),
    )
    assert cost.candidates == {"stream": (16, 32, 48, 64), "a": (0, 16, 32, 48)}


def test_a_width_that_is_slower_than_a_wider_one_is_no_candidate() -> None:
    # 1 2 3 4 5 6 7 8 units cost 10 30 20 25 24 50 60 55 per stem channel: only widths cheaper than all wider
    # ones.
    curve = np.array([0, 10, 30, 20, 25, 24, 50, 60, 55])
    cost = LatencyCost(
        structure(
            [group("input", 3, prunable=False), group("g", 8)],
            [conv("stem", (("input", 1),), (("g", 1),), {"input": 3, "g": 8})],
        ),
        FormulaProfile(conv=lambda i, o: curve[o.astype(int)]),
    )
    assert cost.candidates == {"g": (1, 3, 5, 6, 8)}


def test_a_smooth_table_offers_at_most_128_widths() -> None:
    cost = LatencyCost(residual({"stream": 1000}), FormulaProfile(conv=product, linear=product))
    candidates = cost.candidates["stream"]
    assert len(candidates) <= 128
    assert candidates[-1] == 1000
    assert all(k % 8 == 0 for k in candidates[1:])


def concat_network() -> Structure:
    """Two branches into a concat that a conv and a flattened linear read, plus a depthwise conv on one branch."""
    sizes = {"input": 3, "a": 4, "b": 6, "c": 5, "head": 2}
    one = {n: ((n, 1),) for n in sizes}
    both = (("a", 1), ("b", 1))
    return structure(
        [
            group("input", 3, prunable=False),
            group("a", 4),
            group("b", 6),
            group("c", 5),
            group("head", 2, prunable=False),
        ],
        [
            conv("a", one["input"], one["a"], sizes),
            conv("b", one["input"], one["b"], sizes),
            conv("dw", one["b"], one["b"], sizes),
            other("concat", "cat", both, both, sizes),
            conv("c", both, one["c"], sizes),
            other("linear", "fc", (("c", 9),), one["head"], sizes),
            other("linear", "aux", (("a", 2), ("c", 4)), one["head"], sizes),
        ],
    )


def test_the_grid_costs_what_the_cost_says() -> None:
    def jagged(c_in: FloatArray, c_out: FloatArray) -> FloatArray:
        return np.asarray(c_in * c_out + 3 * np.sin(c_in + 2 * c_out) + 5)

    profile = FormulaProfile(conv=jagged, depthwise=jagged, linear=jagged, concat=lambda i, o: np.sqrt(i))
    cost = LatencyCost(concat_network(), profile, Calibration(4.0, 1.5))
    options = {"a": [1, 3, 4], "b": [2, 6], "c": [5]}
    terms = cost.grid(options)
    for choice in itertools.product(range(3), range(2)):
        counts = {"a": options["a"][choice[0]], "b": options["b"][choice[1]], "c": 5}
        pinned = [
            [0.0 if k == j else -100.0 for k in range(n)]
            for j, n in zip((*choice, 0), (3, 2, 1), strict=True)
        ]
        found = solve_grid(pinned, terms, 1e9, widths=list(options.values()))
        assert found.cost == pytest.approx(cost.raw(counts))
        assert 4.0 + 1.5 * found.cost == pytest.approx(cost.total_us(counts))


def test_the_grid_of_other_options_does_not_remember_the_first() -> None:
    def jagged(c_in: FloatArray, c_out: FloatArray) -> FloatArray:
        return np.asarray(c_in * c_out + 3 * np.sin(c_in + 2 * c_out) + 5)

    profile = FormulaProfile(conv=jagged, depthwise=jagged, linear=jagged, concat=lambda i, o: np.sqrt(i))
    cost = LatencyCost(concat_network(), profile)
    for options in ({"a": [1, 4], "c": [2, 5]}, {"a": [2, 3], "c": [1, 3, 4]}, {"b": [1, 5], "c": [1, 2, 5]}):
        terms = cost.grid(options)
        names = list(options)
        found = solve_grid(
            [[1.0, *[0.0] * (len(k) - 1)] for k in options.values()],
            terms,
            1e9,
            widths=list(options.values()),
        )
        counts = {n: options[n][k] for n, k in zip(names, found.choice, strict=True)}
        assert found.cost == pytest.approx(cost.total_us(counts))


def test_what_no_free_group_touches_is_a_term_with_two_fixed_sides(cost: LatencyCost) -> None:
    *varying, (ins, outs, constant) = cost.grid({"a": [0, 8]})
    assert (ins, outs) == (None, None)
    assert constant.tolist() == [[3 * 8 + 8 + 10 * 8]]
    assert len(varying) == 2


def test_a_step_costs_the_difference_of_two_totals(cost: LatencyCost) -> None:
    line = cost.with_calibration(Calibration(10.0, 2.0))
    expected = line.total_us({"stream": 5, "a": 4}) - line.total_us({"stream": 5, "a": 2})
    assert line.step({"stream": 5, "a": 2}, "a", 4) == pytest.approx(expected)


def test_a_measured_profile_is_priced_at_its_cells() -> None:
    # Cells of every op at multiples of 4 and at 3 and 10, with jittered times; between cells the table rounds up.
    from latency import Profile

    net = residual()
    rng = np.random.default_rng(0)
    cells = []
    for timed in net.ops:
        ins = [3] if timed.op.c_in == 3 else [4, 8]
        outs = [10] if timed.op.c_out == 10 else [4, 8]
        for i, o in itertools.product(ins, outs):
            if not timed.op.diagonal or i == o:
                key = timed.op.with_channels(i, o).key()
                cells.append({**key, "us": float(i * o + rng.random()), "steps": [4, 4]})
    cost = LatencyCost(net, Profile({}, cells))
    by_kind = {(c["op"], c["c_in"], c["c_out"]): c["us"] for c in cells}

    def expected(s: int, a: int) -> float:
        return float(
            by_kind["conv", 3, s]
            + by_kind["conv", s, a]
            + by_kind["conv", a, s]
            + by_kind["add", s, s]
            + by_kind["linear", s, 10]
        )

    for s, a in itertools.product((4, 8), (4, 8)):
        assert cost.total_us({"stream": s, "a": a}) == pytest.approx(expected(s, a))
        assert cost.interpolated({"stream": s, "a": a}) == ()
    # All convs share a table, and 3 was measured in it, for the stem.
    assert cost.candidates == {"stream": (3, 4, 8), "a": (0, 3, 4, 8)}
    assert cost.interpolated({"stream": 5}) != ()
    found = solve_grid(
        [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]],
        cost.grid(cost.candidates),
        1e9,
        widths=list(cost.candidates.values()),
    )
    assert found.cost == pytest.approx(cost.dense_us)


def test_candidates_can_be_restricted(cost: LatencyCost) -> None:
    assert cost.candidates == {"stream": (1, 2, 3, 4, 5, 6, 7, 8), "a": (0, 1, 2, 3, 4, 5, 6, 7, 8)}
    assert cost.restricted(multiple=4).candidates == {"stream": (4, 8), "a": (0, 4, 8)}
    assert cost.restricted(least=0.7, vanish=False).candidates == {"stream": (6, 7, 8), "a": (6, 7, 8)}
    assert cost.restricted(multiple=3).candidates == {"stream": (3, 6, 8), "a": (0, 3, 6, 8)}
    assert cost.restricted(multiple=3).dense_us == cost.dense_us
    with pytest.raises(UsageError, match="a share below 1 or a number of units as the least"):
        cost.restricted(least=-0.5)
