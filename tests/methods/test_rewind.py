"""Pruning after training: which weights are taken, which steps are trained again, by hand on four weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from halpiee import zoo
from halpiee.errors import UsageError
from halpiee.methods.one_shot import prune_once
from halpiee.methods.rewind import (
    LEARNING_RATE_REWINDING,
    REINIT,
    Retrain,
    draw_again,
    draw_normal,
    keeping_mask,
    rewind,
)
from halpiee.sparsity import Mask

START = [4.0, -1.0, 2.0, 0.5]
DRIFT = [-1.0, -1.0, 0.0, 1.0]  # per step, times the step's rate
RATES = [1.0, 1.0, 0.5, 0.5]  # the schedule of four steps: 3 in all


class Line(nn.Module):
    """Four weights in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([START]))


class Drifting:
    """A training without data: every step adds ``rate · drift`` to what is active, and writes down what it did."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[float], list[bool] | None, int, int]] = []

    def __call__(
        self, model: nn.Module, mask: Mask | None, first: int, last: int, done: Callable[[int], None]
    ) -> None:
        weight = model.get_parameter("layer.weight")
        active = torch.ones(1, 4) if mask is None else mask["layer.weight"].float()
        kept = None if mask is None else mask["layer.weight"][0].tolist()
        self.calls.append((weight[0].tolist(), kept, first, last))
        for step in range(first, last):
            with torch.no_grad():
                weight.add_(RATES[step] * torch.tensor([DRIFT]) * active)
            done(step + 1)


def run(retrain: Retrain, **options: object) -> tuple[Line, Drifting, Mask]:
    model, train = Line(), Drifting()
    mask = rewind(model, train, total_steps=4, budget=0.5, retrain=retrain, **options)  # type: ignore[arg-type]
    return model, train, mask


# The dense training ends at START + 3·DRIFT = [1, −4, 2, 3.5]: weights 1 and 3 are the largest.
FINAL = [1.0, -4.0, 2.0, 3.5]
KEPT = [False, True, False, True]


def test_learning_rate_rewinding_keeps_the_final_weights_and_trains_the_whole_schedule() -> None:
    model, train, mask = run(LEARNING_RATE_REWINDING)
    assert train.calls[0] == (START, None, 0, 4)
    assert train.calls[1] == ([0.0, -4.0, 0.0, 3.5], KEPT, 0, 4)
    assert model.layer.weight[0].tolist() == [0.0, -7.0, 0.0, 6.5]
    assert mask["layer.weight"][0].tolist() == KEPT


def test_lottery_ticket_rewinding_takes_the_weights_of_a_step_and_the_schedule_from_there() -> None:
    model, train, _ = run(Retrain(2, "step"))
    # after two steps at rate 1: START + 2·DRIFT = [2, −3, 2, 2.5]
    assert train.calls[1] == ([0.0, -3.0, 0.0, 2.5], KEPT, 2, 4)
    assert model.layer.weight[0].tolist() == [0.0, -4.0, 0.0, 3.5]


def test_the_schedule_may_start_again_from_rewound_weights() -> None:
    _, train, _ = run(Retrain(2, "start"))
    assert train.calls[1] == ([0.0, -3.0, 0.0, 2.5], KEPT, 0, 4)


def test_the_lottery_ticket_starts_from_the_initialisation() -> None:
    _, train, _ = run(Retrain(0, "step"))
    assert train.calls[1] == ([0.0, -1.0, 0.0, 0.5], KEPT, 0, 4)


def test_reinit_draws_other_weights_under_the_same_mask() -> None:
    def draw(model: nn.Module, seed: int) -> None:
        nn.init.constant_(model.get_parameter("layer.weight"), float(seed))

    _, train, _ = run(REINIT, draw=draw, seed=7)
    assert train.calls[1] == ([0.0, 7.0, 0.0, 7.0], KEPT, 0, 4)


def test_shuffling_keeps_the_count_at_other_places() -> None:
    masks = {
        tuple(run(Retrain(0, "step"), shuffle=True, seed=s)[2]["layer.weight"][0].tolist()) for s in range(20)
    }
    assert len(masks) > 1
    assert {sum(mask) for mask in masks} == {2}


def test_rounds_prune_and_train_in_turn_among_the_survivors() -> None:
    _, train, _ = run(Retrain(2, "step"), rounds=2)
    # round 1 keeps ρ^(1/2)·4 = 2.8 → 3 of |1, 4, 2, 3.5|: weight 0 goes; round 2 ranks |4, 2, 3.5| and drops weight 2
    assert [kept for _, kept, _, _ in train.calls] == [None, [False, True, True, True], KEPT]
    assert train.calls[1][0] == [0.0, -3.0, 2.0, 2.5]
    assert train.calls[2][0] == [0.0, -3.0, 0.0, 2.5]


def test_inverted_magnitude_keeps_the_smallest_trained_weights() -> None:
    _, _, mask = run(LEARNING_RATE_REWINDING, criterion="inverted-magnitude")
    assert mask["layer.weight"][0].tolist() == [not kept for kept in KEPT]


def test_a_step_that_training_never_reports_is_refused() -> None:
    def silent(
        model: nn.Module, mask: Mask | None, first: int, last: int, done: Callable[[int], None]
    ) -> None:
        pass

    with pytest.raises(UsageError, match=r"train did not call done\(2\)"):
        rewind(Line(), silent, total_steps=4, budget=0.5, retrain=Retrain(2, "step"))
    with pytest.raises(UsageError, match="weights of step 9 were asked of a training of 4 steps"):
        run(Retrain(9, "step"))


def test_a_schedule_needs_a_numbered_step_to_go_on_from() -> None:
    with pytest.raises(UsageError, match="from the step of 'final' weights"):
        Retrain("final", "step")
    with pytest.raises(UsageError, match="steps count from 0"):
        Retrain(-1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_held_weights_stay_zero_and_active_ones_train_as_without_the_mask(optimizer: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(5, 6), torch.randint(0, 3, (5,))

    def make() -> torch.optim.Optimizer:
        if optimizer == "sgd":
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
        return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)

    def step(opt: torch.optim.Optimizer) -> None:
        opt.zero_grad()
        torch.autograd.backward(cross_entropy(model(x), y))
        opt.step()

    opt = make()
    step(opt)  # momentum of what will be pruned is not zero
    mask = prune_once(model, "magnitude", 0.4)
    mask.apply(model)
    with keeping_mask(model, opt, mask):
        for _ in range(3):
            before = model.get_parameter("0.weight").detach().clone()
            step(opt)
            for name, keep in mask.items():
                assert not dict(model.named_parameters())[name].detach()[~keep].any()
            moved = before[mask["0.weight"]] != model.get_parameter("0.weight").detach()[mask["0.weight"]]
            assert moved.float().mean() > 0.5
    step(opt)
    assert model.get_parameter("0.weight").detach()[~mask["0.weight"]].any()


def test_drawing_again_is_a_new_sample_of_the_same_initialisation() -> None:
    model = nn.Sequential(nn.Linear(100, 50), nn.BatchNorm1d(50))
    model(torch.randn(8, 100))
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(9.0)
        model.get_parameter("1.weight").fill_(9.0)
    state = torch.get_rng_state()
    draw_again(model, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.get_parameter("0.weight").detach().abs().max() <= 0.1  # U(−1/√fan_in, 1/√fan_in)
    assert model.get_parameter("0.weight").detach().std() == pytest.approx(0.1 / 3**0.5, rel=0.05)
    assert model.get_parameter("1.weight").tolist() == [1.0] * 50
    assert model.get_buffer("1.running_mean").tolist() == [0.0] * 50
    first = model.get_parameter("0.weight").detach().clone()
    draw_again(model, 3)
    assert torch.equal(model.get_parameter("0.weight"), first)
    draw_again(model, 4)
    assert not torch.equal(model.get_parameter("0.weight"), first)


def test_the_zoo_draws_its_own_initialisation_again() -> None:
    model = zoo.resnet20(width=0.5)

    def sample(seed: int) -> Tensor:
        zoo.draw(model, seed)
        return model.get_parameter("layers.2.0.conv2.weight").detach().clone()

    first, again, other = sample(1), sample(1), sample(2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert other.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.03)


def test_normal_weights_have_variance_one_in_every_layer() -> None:
    model = zoo.resnet20(width=0.5)
    draw_normal(model, 0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            assert module.weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert model.fc.bias.tolist() == [0.0] * 10


def test_a_real_training_ends_at_the_density_and_repeats_bit_by_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator))
        for _ in range(8)
    ]
    rates = torch.linspace(0.1, 0.01, 8).tolist()

    def train(
        model: nn.Module, mask: Mask | None, first: int, last: int, done: Callable[[int], None]
    ) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        with keeping_mask(model, optimizer, mask):
            for step in range(first, last):
                optimizer.param_groups[0]["lr"] = rates[step]
                optimizer.zero_grad()
                torch.autograd.backward(cross_entropy(model(data[step][0]), data[step][1]))
                optimizer.step()
                done(step + 1)

    def run() -> tuple[nn.Module, Mask]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        retrain = Retrain(3, "step")
        return model, rewind(model, train, total_steps=8, budget=0.25, retrain=retrain, rounds=3)

    model, mask = run()
    again, same = run()
    assert sum(mask.counts.values()) == round(0.25 * (48 + 24))
    assert mask.digest() == same.digest()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, dict(again.named_parameters())[name])
        if name in mask:
            assert not weight.detach()[~mask[name]].any()
            assert (weight.detach()[mask[name]] != 0).all()
