"""A cut in rounds, on a network in which the right answer is known: every unit is there twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halpiee
import latency
from halpiee.errors import BudgetError
from halpiee.reconstruction.rounds import InRounds, Rounds
from halpiee.selection.cost import LatencyCost
from latency.predict import Calibration


@pytest.fixture
def model() -> nn.Module:
    """Four units of one size, each with a twin that hears and says the same."""
    reads, writes = nn.Linear(4, 8), nn.Linear(8, 4, bias=False)
    with torch.no_grad():
        reads.bias.zero_()
        reads.weight.copy_(torch.eye(4).repeat(2, 1))
        writes.weight.copy_(torch.eye(4).repeat(1, 2))
    return nn.Sequential(reads, nn.Tanh(), writes).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(600, 4, generator=torch.Generator().manual_seed(0))


def cost_of(model: nn.Module) -> LatencyCost:
    """Ten µs for each input times output of a layer."""
    structure = halpiee.trace(model, (torch.zeros(1, 4),))
    cells = []
    for timed in structure.ops:
        op = timed.op
        linear = op.kind == "linear"
        for i in range(1, op.c_in + 1):
            for o in range(1, op.c_out + 1) if linear else (i,):
                cells.append({**op.with_channels(i, o).key(), "us": 10.0 * i * o if linear else 1e-3})
    return LatencyCost(structure, latency.Profile(latency.environment(), cells))


def cut(model: nn.Module, images: Tensor, share: float = 0.5, rounds: int = 1) -> Rounds:
    cost = cost_of(model)
    return Rounds(
        model,
        cost,
        share * cost.dense_us,
        images=images[:300],
        scored=images[300:],
        how=InRounds(rounds=rounds),
    )


def pairs_kept(found: Rounds) -> int:
    """How many of the four pairs still have a unit."""
    (mask,) = found.keep.values()
    return int((mask[:4] | mask[4:]).sum())


def test_rounds_see_that_a_unit_whose_twin_is_gone_says_twice_as_much(
    model: nn.Module, images: Tensor
) -> None:
    at_once, in_rounds = cut(model, images, rounds=1), cut(model, images, rounds=8)
    assert pairs_kept(at_once) == 2
    assert pairs_kept(in_rounds) == 4
    with torch.no_grad():
        wanted, found = model(images), in_rounds.repaired()(images)
        assert (found - wanted).norm() < 2e-3 * wanted.norm()
        assert (at_once.repaired()(images) - wanted).norm() > 0.3 * wanted.norm()


def test_a_corrected_cost_is_solved_among_what_the_rounds_kept_and_can_be_taken_back(
    model: nn.Module, images: Tensor
) -> None:
    found = cut(model, images, rounds=2)
    first = found.keep
    slower = Calibration(0.0, 1.5, ())
    found.solve_again(cost_of(model).with_calibration(slower))
    assert sum(found.counts.values()) < sum(int(m.sum()) for m in first.values())
    found.go_back(0)
    assert all(torch.equal(found.keep[name], first[name]) for name in first)


def test_a_budget_below_the_narrowest_network_is_refused(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(BudgetError, match="the narrowest network allowed takes"):
        cut(model, images, share=0.01)


def test_scores_are_those_of_the_loss_that_is_given_and_of_targets_of_any_kind(
    model: nn.Module, images: Tensor
) -> None:
    """A loss of the first two outputs alone leaves the units that feed the other two without a score."""

    def loss(outputs: Tensor, targets: Any) -> Tensor:
        wanted = torch.stack([target["wanted"] for target in targets])
        return (outputs[:, :2] - wanted).square().mean()

    cost = cost_of(model)
    found = Rounds(
        model,
        cost,
        0.5 * cost.dense_us,
        images=images[:300],
        scored=images[300:],
        labels=[{"wanted": torch.tensor([1.0, -1.0])}] * 300,
        how=InRounds(rounds=1, loss=loss),
    )
    (mask,) = found.keep.values()
    assert mask.tolist() == [True, True, False, False] * 2
