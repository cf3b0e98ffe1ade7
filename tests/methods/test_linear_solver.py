"""IEE with the paper's own knapsack: Eq. 5 around the present network, repeated until a prune is within its target."""

from __future__ import annotations

import pytest
import torch

from halpiee.errors import BudgetError
from halpiee.methods.allocator import LatencyPool, Solver
from halpiee.methods.iee import IEE
from halpiee.selection.choose import choose
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity import Channels, Latency, Mask
from halpiee.structure.groups import Structure

from .conftest import TinyNet
from .small import Batches, sgd, train
from .test_latency_budget import Tables, latency_by_hand, timed

__all__ = ["timed"]


def pool_of(net: TinyNet, timed: Structure, budget_us: float, solver: Solver = "linear") -> LatencyPool:
    return LatencyPool(Channels(net, timed), LatencyCost(timed, Tables()), budget_us, solver=solver)


def scores() -> dict[str, torch.Tensor]:
    return {"a": torch.tensor([4.0, 3.0, 2.0, 1.0]), "b": torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])}


def test_a_prune_goes_below_what_one_solve_around_the_dense_network_reaches(
    net: TinyNet, timed: Structure
) -> None:
    # Around the dense network (51 µs) a loses 6 of conv1, b 16 of conv2: 29 µs is the least Eq. 5 sees.
    with pytest.raises(BudgetError) as error:
        choose(scores(), LatencyCost(timed, Tables()), 20.0, solver="linear")
    assert error.value.minimum == 29.0
    pool = pool_of(net, timed, 25.0)
    nothing = Mask.full(pool.units.sizes, False)
    choice = pool.choose(scores(), must=nothing, may=~nothing, level=0.8)
    a, b = choice.counts["a"], choice.counts["b"]
    assert choice.latency_us == latency_by_hand(a, b) <= 20.0
    assert choice.slack == pytest.approx(20.0 - choice.latency_us)
    assert all(bool(mask[: int(mask.sum())].all()) for mask in choice.keep.values())  # the best of each


@pytest.mark.parametrize("budget_us", [16.0, 18.0, 22.0, 28.0, 35.0, 45.0, 50.0])
def test_every_reachable_target_is_met_by_units_that_were_there(
    net: TinyNet, timed: Structure, budget_us: float
) -> None:
    pool = pool_of(net, timed, budget_us)
    may = Mask({"a": torch.tensor([True, True, False, True]), "b": torch.ones(6, dtype=torch.bool)})
    nothing = Mask.full(pool.units.sizes, False)
    for level in (1.0, 0.7, 0.3):
        choice = pool.choose(scores(), must=nothing, may=may, level=level)
        assert choice.latency_us <= max(level * budget_us, pool.smallest_us) * (1 + 1e-9)
        assert (Mask.of(choice.keep) & ~may).density == 0


def test_iee_runs_to_its_end_and_within_the_budget(timed: Structure, net: TinyNet, batches: Batches) -> None:
    optimizer = sgd(net)
    method = IEE(
        net,
        optimizer,
        budget=Latency(fraction=0.4),
        total_steps=20,
        end=0.75,
        structure=timed,
        cost=LatencyCost(timed, Tables()),
        h=2,
        j=1,
        q=2,
        solver="linear",
    )
    for _ in train(net, optimizer, batches[:20]):
        pass
    assert method.finished
    prunes = [e for e in method.reports if e.event == "prune"]
    assert len(prunes) == 3
    for event in prunes:
        target = max(event.budget - event.omega, 13.0)  # the narrowest network takes 13 µs
        assert event.used <= target * (1 + 1e-9)
    last = method.reports[-1]
    assert last.used == latency_by_hand(last.counts["a"], last.counts["b"]) <= 0.4 * 51


def test_what_no_network_reaches_is_refused_at_once(timed: Structure, net: TinyNet) -> None:
    with pytest.raises(BudgetError, match="the smallest network that training can reach needs"):
        pool_of(net, timed, 8.0)
