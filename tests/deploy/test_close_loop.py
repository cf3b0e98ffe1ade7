"""The closed loop under several limits: each is measured, corrected and kept, against a clock that is a formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import halpiee
from halpiee.deploy.calibrate import close_loop, meet, timed
from halpiee.deploy.target import Target
from halpiee.errors import UsageError
from halpiee.methods.method import Method
from halpiee.selection.choose import choose
from halpiee.selection.cost import Also, LatencyCost
from halpiee.structure.plan import Selection
from halpiee.structure.shrink import keep_first
from latency.timing.benchmark import Comparison


class Product:
    def __init__(self, rate: float) -> None:
        self.rate = rate

    def table(self, op: Any) -> Any:
        return self if op.kind in ("conv", "linear") else None

    def lookup(self, c_in: Any, c_out: Any) -> Any:
        return self.rate * (c_in * c_out + 0.0)

    def measured(self, c_in: Any, c_out: Any) -> Any:
        return c_in * c_out >= 0


class Clock:
    """Stands for a target on which a network takes ``us`` of its widths."""

    def __init__(self, us: Any) -> None:
        self.us = us

    def ready(self, model: nn.Module, example: Any) -> nn.Module:
        return model

    def compare(self, networks: Mapping[str, nn.Module], example: Any, *, rounds: int) -> Comparison:
        return Comparison({name: [self.us(net)] * 30 for name, net in networks.items()}, "cpu", {})


class Chosen:
    """A solver's selection as the loop sees it."""

    def __init__(self, cost: LatencyCost, budget_us: float, scores: dict[str, Tensor]) -> None:
        self.budget_us, self.scores = budget_us, scores
        self.turns: list[Selection] = []
        self.solve_again(cost)

    def solve_again(self, cost: LatencyCost) -> None:
        self.turns.append(choose(self.scores, cost, self.budget_us, gap=0.0))

    def go_back(self, turn: int) -> None:
        self.turns.append(self.turns[turn])

    @property
    def counts(self) -> dict[str, int]:
        return self.turns[-1].counts

    @property
    def keep(self) -> Mapping[str, Tensor]:
        return self.turns[-1].keep

    @property
    def next_step_us(self) -> float:
        return self.turns[-1].next_step_us


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 40, 1), nn.ReLU(), nn.Conv2d(40, 40, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(40, 4),
    )  # fmt: skip


def products(model: nn.Module) -> float:
    return float(sum(m.weight.shape[0] * m.weight.shape[1] for m in model if hasattr(m, "weight")))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("share", "absolute"), [(0.4, False), (0.4, True)])
def test_a_second_device_that_its_tables_misjudge_is_met_as_it_is_measured(
    share: float, absolute: bool
) -> None:
    torch.manual_seed(0)
    model = net()
    example = (torch.zeros(1, 3, 4, 4),)
    structure = halpiee.trace(model, example)
    cost = LatencyCost(structure, cast(Any, Product(1.0)))
    other = LatencyCost(structure, cast(Any, Product(2.0)))
    # the second device takes 300 µs beside its ops, which its tables do not know
    second = Clock(lambda m: 300.0 + 2.0 * products(m))
    dense = second.us(model)

    def measure(keep: Mapping[str, Tensor]) -> tuple[float, float]:
        return dense, second.us(halpiee.shrink(model, structure, keep))

    most = share * (dense if absolute else other.dense)
    also = Also("second", other, most, share=None if absolute else share, measure=measure)
    scores = {g.name: torch.rand(g.size) for g in structure.prunable}
    limited = cost.limited(also)
    chosen = Chosen(limited, 0.7 * cost.dense, scores)
    first = second.us(halpiee.shrink(model, structure, chosen.keep))
    assert first > 1.02 * share * dense  # what the tables allow is over the limit
    found, turns = close_loop(
        model,
        limited,
        example,
        chosen,
        budget_us=0.7 * cost.dense,
        target=cast(Target, Clock(products)),
        rounds=3,
    )
    assert len(turns) > 1
    took = second.us(halpiee.shrink(model, structure, chosen.keep))
    assert took <= 1.02 * share * dense
    assert took >= 0.9 * share * dense  # and the limit is used
    (after,) = found.also
    assert after.measured == pytest.approx(took)
    assert after.most == pytest.approx(share * dense)
    assert (
        products(halpiee.shrink(model, structure, keep_first(structure, chosen.counts)))
        <= 0.7 * cost.dense * 1.02
    )


@pytest.mark.parametrize(("spreads", "tried"), [((200, 20, 100), 3), ((200, 0, 100), 2), ((0,), 1)])
def test_what_is_timed_on_a_noisy_machine_is_timed_again_and_the_surest_ratio_is_taken(
    spreads: tuple[int, ...], tried: int
) -> None:
    asked: list[int] = []

    class Noisy:
        def compare(self, networks: Mapping[str, Any], example: Any, *, rounds: int) -> Comparison:
            off = spreads[len(asked)]
            asked.append(rounds)
            dense = [400.0 + off, 400.0 - off] * 15  # the ratio is 4 ± off / 100
            return Comparison({"dense": dense, "pruned": [100.0] * 30}, "cpu", {})

    said: list[str] = []
    both = {"dense": None, "pruned": None}
    found = timed(cast(Target, Noisy()), both, (), rounds=10, progress=said.append)
    ratio = found.ratio("dense", "pruned")
    assert (ratio.lo, ratio.hi) == pytest.approx((4 - min(spreads) / 100, 4 + min(spreads) / 100))
    assert asked == [10, 20, 30][:tried]
    assert [one.split(";")[0] for one in said] == [
        "the ratio is only known to ±50.0%",
        "the ratio is only known to ±5.0%",
    ][: tried - 1]


def test_a_limit_that_is_not_timed_here_holds_as_predicted() -> None:
    model = net()
    structure = halpiee.trace(model, (torch.zeros(1, 3, 4, 4),))
    cost, other = (LatencyCost(structure, cast(Any, Product(rate))) for rate in (1.0, 2.0))
    limited = cost.limited(Also("elsewhere", other, 0.4 * other.dense, share=0.4))
    scores = {g.name: torch.rand(g.size) for g in structure.prunable}
    chosen = Chosen(limited, 0.7 * cost.dense, scores)
    clock = cast(Target, Clock(products))
    found, turns = close_loop(
        model, limited, (torch.zeros(1, 3, 4, 4),), chosen, budget_us=0.7 * cost.dense, target=clock, rounds=3
    )
    assert len(turns) == 1  # below the budget, as the other limit holds it back
    assert found.also[0].measured is None
    assert other.total(chosen.counts) <= 0.4 * other.dense * (1 + 1e-9)


def trained(make: Any, steps: int = 12) -> Method:
    """A method after some steps of a small training in a loop of one's own."""
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method: Method = make(model, optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.randn(8, 3, 4, 4)), torch.randint(4, (8,)))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return method


def to_latency(model: nn.Module, optimizer: torch.optim.Optimizer) -> halpiee.IEE:
    structure = halpiee.trace(model, EXAMPLE)
    cost = LatencyCost(structure, cast(Any, Product(1.0)))
    limit: dict[str, Any] = {"budget": "60%", "structure": structure, "cost": cost}
    return halpiee.IEE(model, optimizer, total_steps=12, end=0.75, h=3, j=1, q=2, **limit)


EXAMPLE = (torch.zeros(1, 3, 4, 4),)


def test_a_method_in_a_loop_of_ones_own_meets_its_latency_as_it_is_measured() -> None:
    iee = trained(to_latency)
    # a call takes 300 µs beside its ops: 60 % of the sums is 65 % of the dense network's whole latency
    clock = Clock(lambda m: 300.0 + products(m))
    dense = clock.us(net())
    assert (
        clock.us(halpiee.shrink(iee.model, halpiee.trace(iee.model, EXAMPLE), iee.keep)) > 1.02 * 0.6 * dense
    )
    turns = meet(iee, EXAMPLE, target=cast(Target, clock), rounds=3)
    assert len(turns) > 1
    compact, _ = iee.shrink()
    assert 0.57 * dense <= clock.us(compact) <= 1.02 * 0.6 * dense


def test_only_a_finished_method_of_a_latency_is_measured() -> None:
    with pytest.raises(UsageError, match="IEE was to meet a latency, and has not finished"):
        meet(trained(to_latency, steps=2), EXAMPLE)
    with pytest.raises(UsageError, match="RigL was to meet a latency, and its budget is none"):
        meet(trained(lambda m, o: halpiee.RigL(m, o, budget=0.5, total_steps=12, interval=2)), EXAMPLE)
