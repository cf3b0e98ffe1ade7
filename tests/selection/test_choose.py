"""choose and select: which units, on networks small enough to enumerate."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from halpiee.errors import BudgetError, UsageError
from halpiee.selection.choose import choose, select
from halpiee.selection.cost import LatencyCost
from halpiee.selection.grid import FloatArray
from latency.predict import Calibration

from .fakes import FormulaProfile, residual


def product(c_in: FloatArray, c_out: FloatArray) -> FloatArray:
    return c_in * c_out


@pytest.fixture
def cost() -> LatencyCost:
    """3·s + s·a + a·s + s + 10·s µs; s = a = 8 when dense, all widths are candidates, a may vanish."""
    return LatencyCost(residual(), FormulaProfile(conv=product, linear=product, add=lambda i, o: i))


def scores_of(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(8, generator=generator) for name in ("stream", "a")}


def mask(*units: int) -> torch.Tensor:
    result = torch.zeros(8, dtype=torch.bool)
    result[list(units)] = True
    return result


def latency(s: int, a: int) -> float:
    return 14 * s + 2 * s * a


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.2, 0.45, 0.7, 0.95])
def test_select_is_the_best_of_all_selections(cost: LatencyCost, seed: int, share: float) -> None:
    scores = scores_of(seed)
    budget = share * cost.dense_us
    found = select(scores, cost, budget, gap=0.0)
    tops = {
        n: torch.cat([torch.zeros(1), v.double().sort(descending=True).values.cumsum(0)])
        for n, v in scores.items()
    }
    best = max(
        float(tops["stream"][s] + tops["a"][a])
        for s, a in itertools.product(range(1, 9), range(9))
        if latency(s, a) <= budget
    )
    assert found.value == pytest.approx(best)
    assert found.latency_us == latency(found.counts["stream"], found.counts["a"]) <= budget
    assert found.slack_us == pytest.approx(budget - found.latency_us)
    for name, keep in found.keep.items():
        assert keep.dtype == torch.bool
        assert int(keep.sum()) == found.counts[name]
        assert set(scores[name].argsort(descending=True)[: found.counts[name]].tolist()) == set(
            keep.nonzero().flatten().tolist()
        )


def test_a_large_budget_keeps_everything(cost: LatencyCost) -> None:
    found = select(scores_of(0), cost, cost.dense_us)
    assert found.counts == {"stream": 8, "a": 8}
    assert math.isnan(found.next_step_us)
    assert found.gap == 0


def test_the_next_step_is_the_cheapest_next_width(cost: LatencyCost) -> None:
    found = select(scores_of(0), cost, 0.5 * cost.dense_us)
    s, a = found.counts["stream"], found.counts["a"]
    steps = [latency(s + 1, a) - latency(s, a)] * (s < 8) + [latency(s, a + 1) - latency(s, a)] * (a < 8)
    assert found.next_step_us == min(steps) > found.slack_us


@pytest.mark.parametrize("seed", range(20))
def test_no_next_width_fits_even_where_scores_are_zero(cost: LatencyCost, seed: int) -> None:
    scores = scores_of(seed)
    scores["a"][:] = 0
    found = select(scores, cost, (0.15 + 0.04 * seed) * cost.dense_us, gap=0.2)
    for name in ("stream", "a"):
        if found.counts[name] < 8:
            counts = {**found.counts, name: found.counts[name] + 1}
            assert latency(counts["stream"], counts["a"]) > found.budget_us


def test_must_is_kept_and_only_may_is_added(cost: LatencyCost) -> None:
    must = {"stream": mask(6, 7), "a": mask(0)}
    may = {"stream": mask(0, 1, 2), "a": mask(4, 5)}
    for share in (0.3, 0.5, 0.7):
        found = choose(scores_of(1), cost, share * cost.dense_us, must=must, may=may)
        for name in ("stream", "a"):
            assert bool(found.keep[name][must[name]].all())
            assert not bool(found.keep[name][~(must[name] | may[name])].any())


def test_units_of_must_do_not_compete_by_score(cost: LatencyCost) -> None:
    scores = {"stream": torch.arange(8.0), "a": torch.arange(8.0)}
    must, may = {"stream": mask(0, 1), "a": mask(0)}, {"a": mask(7)}
    found = choose(scores, cost, latency(3, 2), must=must, may=may)
    assert found.keep["stream"].tolist() == mask(0, 1, 7).tolist()
    assert found.keep["a"].tolist() == mask(0, 7).tolist()
    assert found.value == 14.0


def test_pruning_then_growing_is_the_same_call_on_complementary_sets(cost: LatencyCost) -> None:
    active = {"stream": mask(*range(6)), "a": mask(*range(6))}
    budget = latency(6, 6)
    pruned = choose(scores_of(2), cost, 0.7 * budget, may=active)
    assert pruned.latency_us <= 0.7 * budget
    assert all(not bool((pruned.keep[n] & ~active[n]).any()) for n in active)
    rest = {n: ~keep for n, keep in pruned.keep.items()}
    grown = choose(scores_of(3), cost, budget, must=pruned.keep, may=rest)
    assert 0.7 * budget < grown.latency_us <= budget
    assert all(bool(grown.keep[n][pruned.keep[n]].all()) for n in active)


def test_ties_go_to_the_lower_index(cost: LatencyCost) -> None:
    found = choose({"stream": torch.ones(8), "a": torch.ones(8)}, cost, latency(3, 3), gap=0.0)
    for name, keep in found.keep.items():
        assert keep.tolist() == [i < found.counts[name] for i in range(8)]


def test_groups_without_scores_and_protected_groups_stay_whole(cost: LatencyCost) -> None:
    found = choose({"stream": torch.ones(8)}, cost, 0.6 * cost.dense_us)
    assert found.counts["a"] == 8
    found = choose(scores_of(0), cost, 0.6 * cost.dense_us, protect={"stream"})
    assert found.counts["stream"] == 8
    found = choose(scores_of(0), cost, 1e9, protect={"a"}, must={"a": mask(1)}, may={"a": mask(1, 2)})
    assert found.keep["a"].tolist() == mask(1, 2).tolist()


def test_a_group_vanishes_only_where_it_may(cost: LatencyCost) -> None:
    scores = {"stream": torch.rand(8) + 1, "a": torch.full((8,), 1e-6)}
    found = select(scores, cost, latency(8, 0))
    assert found.counts == {"stream": 8, "a": 0}
    scores = {"stream": torch.full((8,), 1e-6), "a": torch.rand(8) + 1}
    assert select(scores, cost, latency(1, 8)).counts == {"stream": 1, "a": 8}


def test_counts_are_candidates_or_the_size_of_must() -> None:
    import numpy as np

    def steps(c_in: FloatArray, c_out: FloatArray) -> FloatArray:
        return np.ceil(c_in / 4) * np.ceil(c_out / 4)

    stairs = LatencyCost(residual(), FormulaProfile(conv=steps, linear=steps, add=lambda i, o: i * 0))
    assert stairs.candidates == {"stream": (4, 8), "a": (0, 4, 8)}
    found = choose(scores_of(0), stairs, stairs.dense_us, must={"a": mask(0, 1, 2)}, may={"a": mask()})
    assert found.counts == {"stream": 8, "a": 3}
    found = choose(scores_of(0), stairs, stairs.dense_us, must={"a": mask(0, 1, 2)}, may={"a": mask(4, 5)})
    assert found.counts == {"stream": 8, "a": 4}


def test_the_calibrated_latency_meets_the_budget(cost: LatencyCost) -> None:
    line = cost.with_calibration(Calibration(20.0, 1.3))
    found = select(scores_of(0), line, 0.5 * line.dense_us)
    expected = 20 + 1.3 * latency(found.counts["stream"], found.counts["a"])
    assert found.latency_us == pytest.approx(expected)
    assert expected <= 0.5 * line.dense_us


def test_a_budget_that_is_too_small_names_the_smallest_latency(cost: LatencyCost) -> None:
    line = cost.with_calibration(Calibration(20.0, 1.0))
    with pytest.raises(BudgetError, match=r"takes 34\.0 µs; ask for at least 34\.0 µs") as error:
        select(scores_of(0), line, 30.0)
    assert error.value.minimum == 20 + latency(1, 0)
    with pytest.raises(BudgetError) as error:
        choose(scores_of(0), cost, 10.0, must={"stream": mask(0, 1, 2), "a": mask(0)})
    assert error.value.minimum == latency(3, 1)


def test_the_linear_solver_misses_what_the_next_layer_saves(cost: LatencyCost) -> None:
    # Priced by its output sides alone around dense: stem 3 and conv2 8 per stream unit plus add 1, conv1 8
    # per a
    # unit. The linear answer to 0.5 leaves latency unused that the joint one spends.
    linear = choose(scores_of(4), cost, 0.6 * cost.dense_us, solver="linear", gap=0.0)
    joint = choose(scores_of(4), cost, 0.6 * cost.dense_us, gap=0.0)
    s, a = linear.counts["stream"], linear.counts["a"]
    own = cost.dense_us - 12 * (8 - s) - 8 * (8 - a)
    assert own <= 0.6 * cost.dense_us
    assert linear.latency_us < joint.latency_us
    assert linear.value < joint.value


def test_growing_linearly_starts_from_must(cost: LatencyCost) -> None:
    # Around s = a = 2: a stream unit 3 + 2 + 1 (its readers are not charged), an a unit 2.
    must = {"stream": mask(0, 1), "a": mask(0, 1)}
    budget = latency(2, 2) + 12.0
    found = choose(scores_of(5), cost, budget, must=must, solver="linear", gap=0.0)
    s, a = found.counts["stream"], found.counts["a"]
    assert 6 * (s - 2) + 2 * (a - 2) <= 12.0
    assert found.latency_us > budget


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ({"stream": torch.ones(8)}, "1 are missing: 'a'"),
        (
            {"stream": torch.ones(8), "a": torch.ones(7)},
            r"scores\['a'\] must have shape \(8,\), found \(7,\)",
        ),
        (
            {"stream": torch.ones(8), "a": torch.tensor([1.0] * 6 + [math.nan, 1])},
            r"scores\['a'\] holds nan at unit 6",
        ),
        ({"stream": torch.ones(8), "a": torch.ones(8), "steam": torch.ones(8)}, "did you mean 'stream'"),
    ],
)
def test_scores_that_do_not_fit_are_refused_by_group(
    cost: LatencyCost, scores: dict[str, torch.Tensor], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        select(scores, cost, 100.0)


def test_eq_5_around_a_network_with_an_emptied_group_starts_at_that_network(cost: LatencyCost) -> None:
    """The cost at its start is the true one: 14·3 µs, with nothing left to add; a block that is gone is not dense."""
    must, may = {"stream": mask(0, 1, 2), "a": mask()}, {"stream": mask(3, 4), "a": mask(*range(8))}
    found = choose(scores_of(0), cost, latency(3, 0), must=must, may=may, solver="linear")
    assert found.counts == {"stream": 3, "a": 0}
    assert found.latency_us == latency(3, 0)


def test_no_scores_and_no_budget_are_refused_in_a_sentence(cost: LatencyCost) -> None:
    nothing: Any = None
    with pytest.raises(UsageError, match="scores of type NoneType was given"):
        select(nothing, cost, 40.0)
    with pytest.raises(BudgetError, match=r"a budget of -1\.0 µs was asked; .* ask for at least \d+\.\d µs$"):
        select(scores_of(0), cost, -1)
    assert select(scores_of(0), cost, 10**400).counts == {"stream": 8, "a": 8}


def test_masks_that_do_not_fit_are_refused_by_group(cost: LatencyCost) -> None:
    with pytest.raises(UsageError, match=r"must\['a'\] must be a bool tensor"):
        choose(scores_of(0), cost, 100.0, must={"a": torch.ones(8)})
    with pytest.raises(UsageError, match="no unit in 'stream', which may not vanish"):
        choose(scores_of(0), cost, 100.0, may={"stream": mask()})
