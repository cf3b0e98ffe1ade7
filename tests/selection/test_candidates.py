"""Fewest and most units, multiples, frozen groups, and groups that vanish only when that is asked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from halpiee.errors import UsageError
from halpiee.selection.candidates import restrict
from halpiee.selection.choose import choose, select
from halpiee.selection.cost import LatencyCost

from .fakes import FormulaProfile, residual

WIDTHS = {"stream": tuple(range(1, 9)), "a": tuple(range(9))}
SIZES = {"stream": 8, "a": 8}


@pytest.fixture
def cost() -> LatencyCost:
    """14·s + 2·s·a µs, as in test_choose; a may vanish."""
    return LatencyCost(
        residual(), FormulaProfile(conv=lambda i, o: i * o, linear=lambda i, o: i * o, add=lambda i, o: i)
    )


def scores_of(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(8, generator=generator) for name in SIZES}


def best_of(
    scores: dict[str, torch.Tensor], budget: float, allowed_s: Sequence[int], allowed_a: Sequence[int]
) -> float:
    tops: dict[str, list[float]] = {
        n: [0.0, *v.double().sort(descending=True).values.cumsum(0).tolist()] for n, v in scores.items()
    }
    return max(
        tops["stream"][s] + tops["a"][a]
        for s, a in itertools.product(allowed_s, allowed_a)
        if 14 * s + 2 * s * a <= budget
    )


def test_every_group_keeps_its_least_share() -> None:
    assert restrict(WIDTHS, SIZES, least=6, vanish=False) == {"stream": (6, 7, 8), "a": (6, 7, 8)}
    assert restrict(WIDTHS, SIZES, least=100, vanish=False) == {"stream": (8,), "a": (8,)}
    assert restrict(WIDTHS, SIZES, least=0.5) == {"stream": (4, 5, 6, 7, 8), "a": (0, 4, 5, 6, 7, 8)}


def test_every_group_keeps_at_most_its_largest_share() -> None:
    assert restrict(WIDTHS, SIZES, most=0.5) == {"stream": (1, 2, 3, 4), "a": (0, 1, 2, 3, 4)}


def test_a_group_without_a_width_so_narrow_keeps_its_narrowest() -> None:
    assert restrict({"stream": (4, 8), "a": (0, 6, 8)}, SIZES, most=0.25) == {"stream": (4,), "a": (0, 6)}


def test_widths_that_are_no_multiples_fall_to_the_next_multiple_below() -> None:
    # Steps of 6 and multiples of 4: 6 → 4, 12 → 12, 18 → 16; the dense 21 stays.
    assert restrict({"g": (6, 12, 18, 21)}, {"g": 21}, multiple=4) == {"g": (4, 12, 16, 21)}


def test_a_width_below_the_first_multiple_is_not_offered() -> None:
    assert restrict({"g": (1, 2, 3, 5, 8)}, {"g": 8}, multiple=4) == {"g": (4, 8)}


def test_a_group_is_emptied_only_where_that_is_asked() -> None:
    assert restrict(WIDTHS, SIZES, vanish=False)["a"] == tuple(range(1, 9))
    assert restrict(WIDTHS, SIZES, vanish=True)["a"] == tuple(range(9))


def test_one_group_can_have_a_range_of_its_own() -> None:
    assert restrict(WIDTHS, SIZES, between={"a": (2, 4)}) == {"stream": tuple(range(1, 9)), "a": (2, 3, 4)}


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"between": {"steam": (1, 2)}}, "a range was asked for 'steam'.*did you mean 'stream'"),
        (
            {"between": {"a": (9, 12)}},
            "9 … 12 units of 'a' were asked; its widths are 0, 1, 2, 3, 4, 5, 6, 7, 8",
        ),
        ({"least": 0.7, "most": 0.5}, "a share below 1 or a number of units as the least"),
        ({"multiple": 0}, "multiples of 0"),
    ],
)
def test_restrictions_that_leave_nothing_are_refused(asked: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        restrict(WIDTHS, SIZES, **asked)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("asked", "allowed_s", "allowed_a"),
    [
        ({"least": 0.5}, range(4, 9), (0, 4, 5, 6, 7, 8)),
        ({"most": 0.5}, range(1, 5), range(5)),
        ({"multiple": 4}, (4, 8), (0, 4, 8)),
        ({"vanish": False}, range(1, 9), range(1, 9)),
        ({"between": {"stream": (3, 5), "a": (1, 2)}}, (3, 4, 5), (1, 2)),
    ],
)
def test_the_answer_is_the_best_of_the_widths_allowed(
    cost: LatencyCost, seed: int, asked: dict[str, Any], allowed_s: Sequence[int], allowed_a: Sequence[int]
) -> None:
    scores = scores_of(seed)
    for budget in (70.0, 120.0, 200.0):
        found = select(scores, cost.restricted(**asked), budget, gap=0.0)
        assert found.counts["stream"] in allowed_s
        assert found.counts["a"] in allowed_a
        assert found.value == pytest.approx(best_of(scores, budget, allowed_s, allowed_a))
        assert found.latency_us <= budget


def test_a_frozen_group_stays_whole_whatever_its_scores(cost: LatencyCost) -> None:
    scores = {"stream": torch.ones(8), "a": torch.full((8,), 1e-9)}
    found = choose(scores, cost, 150.0, protect={"a"}, gap=0.0)
    assert found.counts == {"stream": 5, "a": 8}  # 14·5 + 16·5 = 150


def test_a_branch_vanishes_only_where_the_structure_was_traced_for_it() -> None:
    net = residual()
    whole = type(net)(
        layers=(),
        groups=tuple(type(g)(g.name, g.size, 0, g.prunable, False, g.reason) for g in net.groups),
        ops=net.ops,
        slots=(),
    )
    profile = FormulaProfile(conv=lambda i, o: i * o, linear=lambda i, o: i * o)
    assert LatencyCost(net, profile).candidates["a"][0] == 0
    assert LatencyCost(whole, profile).candidates["a"][0] == 1
