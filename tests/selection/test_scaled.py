"""Depth and width scaled down alike, against the rule carried out by hand on residual chains."""

from __future__ import annotations

import math

import pytest

from halpiee.errors import BudgetError
from halpiee.selection.choose import scaled, uniform
from halpiee.selection.cost import LatencyCost
from halpiee.structure.groups import Structure

from .fakes import FormulaProfile, conv, group, other, structure

INNER = ("a", "b", "c")


def chain(vanish: bool = True) -> Structure:
    """Stem → three blocks of two layers on one stream of 8 → head; the inner groups of 8 may vanish."""
    sizes = {"input": 3, "head": 5, "stream": 8, **dict.fromkeys(INNER, 8)}
    one = {name: ((name, 1),) for name in sizes}
    ops = [conv("stem", one["input"], one["stream"], sizes)]
    for name in INNER:
        ops += [
            conv(f"{name}.conv1", one["stream"], one[name], sizes),
            conv(f"{name}.conv2", one[name], one["stream"], sizes),
        ]
    return structure(
        [
            group("input", 3, prunable=False),
            group("stream", 8),
            *(group(name, 8, may_vanish=vanish) for name in INNER),
            group("head", 5, prunable=False),
        ],
        [*ops, other("linear", "head", one["stream"], one["head"], sizes)],
    )


def cost_of(vanish: bool = True) -> LatencyCost:
    return LatencyCost(
        chain(vanish), FormulaProfile(conv=lambda i, o: i * o, linear=lambda i, o: i * o, add=lambda i, o: i)
    )


def us(stream: int, *inner: int) -> int:
    return 3 * stream + sum(2 * stream * k for k in inner) + 5 * stream


@pytest.mark.parametrize("share", [0.2, 0.3, 0.4, 0.5, 0.6, 0.8])
def test_the_depth_is_taken_whose_share_is_nearest_to_that_of_the_width(share: float) -> None:
    cost = cost_of()
    budget = share * us(8, 8, 8, 8)
    found = scaled(cost, budget)
    kept = [name for name in INNER if found[name]]
    assert kept == list(INNER[: len(kept)])  # the last go first
    assert us(*found.values()) <= budget

    offs = {}
    for blocks in (3, 2, 1):
        # all of one width k; single steps may follow, so the mean width is at most one step more
        k = max(k for k in range(1, 9) if us(k, *[k] * blocks, *[0] * (3 - blocks)) <= budget)
        offs[blocks] = min(abs(math.log(blocks / 3) - math.log(w / 8)) for w in (k, min(k + 1, 8)))
    assert offs[len(kept)] <= min(offs.values()) + math.log(9 / 8)


def test_a_network_whose_blocks_may_not_go_is_the_uniform_one() -> None:
    cost = cost_of(vanish=False)
    budget = 0.4 * us(8, 8, 8, 8)
    assert scaled(cost, budget) == uniform(cost, budget)


def test_a_protected_block_stays_and_an_impossible_budget_is_refused() -> None:
    cost = cost_of()
    found = scaled(cost, 0.5 * us(8, 8, 8, 8), protect=("c",))
    assert found["c"] == 8
    with pytest.raises(BudgetError, match="the smallest one takes") as caught:
        scaled(cost, 5.0)
    assert caught.value.minimum == us(1, 1, 0, 0)
