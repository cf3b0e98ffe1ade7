"""A history of masks: what goes in comes out, and what it says about a training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from halpiee.analysis import History, densities, distance, distances, exploration, overlaps, survival_rates
from halpiee.errors import OutputInUseError, UsageError
from halpiee.methods.dynamic import RigL
from halpiee.sparsity import Mask, Uniform


def mask(*on: int, size: int = 10) -> Mask:
    units = torch.zeros(size, dtype=torch.bool)
    units[list(on)] = True
    return Mask({"w": units.reshape(2, -1)})


@pytest.fixture
def history() -> History:
    """Two cycles: 0–3 active; 3 goes, 4 comes; 0 and 4 go, 5 and 0 come; 5 goes."""
    h = History()
    h.add(0, "init", mask(0, 1, 2, 3))
    h.add(10, "prune", mask(0, 1, 2))
    h.add(15, "grow", mask(0, 1, 2, 4))
    h.add(25, "prune", mask(1, 2))
    h.add(30, "grow", mask(1, 2, 5, 0))
    h.add(40, "prune", mask(0, 1, 2))
    return h


def test_packed_masks_come_back_bit_for_bit(history: History, tmp_path: Path) -> None:
    torch.manual_seed(0)
    big = Mask({"a": torch.rand(3, 5, 7) < 0.3, "b": torch.rand(11) < 0.5})
    other = History()
    other.add(1, "init", big)
    other.add(2, "grow", ~big)
    other.save(tmp_path / "h.npz")
    loaded = History.load(tmp_path / "h.npz")
    assert [(e.step, e.event) for e in loaded.entries] == [(1, "init"), (2, "grow")]
    assert loaded.mask(0).digest() == big.digest()
    assert loaded.mask(1).digest() == (~big).digest()
    assert sum(bits.nbytes for bits in loaded.entries[0].packed.values()) == 14 + 2  # 105 and 11 bits
    with pytest.raises(OutputInUseError, match="give another name"):
        other.save(tmp_path / "h.npz")


def test_overlap_is_that_of_consecutive_masks_of_one_event(history: History) -> None:
    assert overlaps(history, "prune") == [(25, 2 / 3), (40, 2 / 3)]
    assert overlaps(history, "grow") == [(30, 3 / 5)]


def test_survival_is_the_share_of_grown_units_that_the_next_prune_leaves(history: History) -> None:
    # at 15 unit 4 is grown and goes at 25; at 30 units 5 and 0 are grown, 0 stays at 40
    assert survival_rates(history) == [(15, 0.0), (30, 0.5)]
    # unit 0 was active right before it was pruned at 25: without such units only 5 was grown
    assert survival_rates(history, regrown=False) == [(15, 0.0), (30, 0.0)]


def test_exploration_counts_every_unit_that_was_ever_active(history: History) -> None:
    assert exploration(history) == 6 / 10


def test_distance_is_the_share_of_units_that_differ(history: History) -> None:
    assert distance(mask(0, 1), mask(1, 2, 3)) == 3 / 10
    # ends of epochs of 20 steps: at 0 {0,1,2,3}, at 20 {0,1,2,4}, at 40 {0,1,2}
    assert distances(history, [0, 20, 40]) == [(20, 0.2), (40, 0.1)]


def test_densities_follow_the_masks() -> None:
    h = History()
    h.add(
        0,
        "init",
        Mask({"a.weight": torch.tensor([True, False]), "b.weight": torch.ones(4, dtype=torch.bool)}),
    )
    assert densities(h.mask(0)) == {"a.weight": 0.5, "b.weight": 1.0}


def test_masks_of_another_training_are_refused(history: History) -> None:
    with pytest.raises(UsageError, match="one history holds one training"):
        history.add(50, "grow", mask(1, size=12))


def test_a_history_listens_to_a_method() -> None:
    from torch import nn
    from torch.nn.functional import cross_entropy

    from halpiee import RigL, Uniform

    torch.manual_seed(0)
    net = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    method = RigL(net, optimizer, budget=Uniform(0.5), total_steps=8, interval=2, fraction=0.5)
    h = History.of(method)
    for _ in range(8):
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(net(torch.randn(4, 6)), torch.tensor([0, 1, 2, 0])))
        optimizer.step()
    assert [(e.step, e.event) for e in h.entries] == [
        (0, "init"),
        (2, "drop"),
        (2, "grow"),
        (4, "drop"),
        (4, "grow"),
    ]
    assert h.mask(-1).digest() == method.alive.digest()


def trained_by() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    return net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, n: int, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x, y = torch.randn(8, 8, generator=generator), torch.randint(0, 3, (8,), generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net(x), y))
        optimizer.step()


def test_every_masked_training_records_the_survival_that_its_history_finds() -> None:
    net, optimizer = trained_by()
    method = RigL(net, optimizer, budget=Uniform(0.4), total_steps=12, interval=2, end=1.0)
    history = History.of(method)
    steps(net, optimizer, 6, seed=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    again = RigL(net, optimizer, budget=Uniform(0.4), total_steps=12, interval=2, end=1.0)
    again.load_state_dict(method.state_dict())
    steps(net, optimizer, 6, seed=2)
    told = [e.survival for e in method.reports if e.event == "drop" and not math.isnan(e.survival)]
    assert told == [share for _, share in survival_rates(history)]
    assert len([e for e in again.reports if not math.isnan(e.survival)]) > len(
        told
    )  # it goes on where it was saved
