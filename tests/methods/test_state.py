"""What may not move does not move by one bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from halpiee.errors import UsageError
from halpiee.methods.state import Guard, fresh_state, shaped_state


def test_momentum_and_decay_cannot_move_what_is_held() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([p], lr=0.5, momentum=0.9, weight_decay=0.1)
    p.grad = torch.tensor([1.0, 1.0])
    optimizer.step()  # p = p − 0.5 (g + 0.1 p); the momentum buffer is g + 0.1 p
    held_value, held_momentum = p[1].item(), optimizer.state[p]["momentum_buffer"][1].item()
    guard = Guard({"p": p}, optimizer)
    guard.hold({"p": torch.tensor([True, False])})
    p.grad = torch.zeros(2)
    optimizer.step()
    guard.restore()
    assert p[1].item() == held_value
    assert optimizer.state[p]["momentum_buffer"][1].item() == held_momentum
    # the free one: p0 = 1 − 0.5·1.1 = 0.45; buffer = 0.9·1.1 + 0.1·0.45 = 1.035; p0 = 0.45 − 0.5·1.035
    assert p[0].item() == pytest.approx(0.45 - 0.5 * 1.035, abs=1e-6)


def test_state_made_by_the_first_step_is_fresh_where_held() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    guard = Guard({"p": p}, optimizer)
    guard.hold({"p": torch.tensor([True, False])})
    p.grad = torch.tensor([2.0, 3.0])
    optimizer.step()
    guard.restore()
    assert optimizer.state[p]["momentum_buffer"].tolist() == [2.0, 0.0]


def test_nothing_of_a_tensor_moves_when_its_mask_is_none() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([p], lr=0.1)
    guard = Guard({"p": p}, optimizer)
    guard.hold({"p": None})
    p.grad = torch.ones(2)
    optimizer.step()
    guard.restore()
    assert p.tolist() == [1.0, 2.0]


def test_a_non_finite_step_leaves_held_elements_finite() -> None:
    p = nn.Parameter(torch.tensor([1.0, 0.0]))
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    guard = Guard({"p": p}, optimizer)
    guard.hold({"p": torch.tensor([True, False])})
    p.grad = torch.tensor([0.0, float("nan")])
    optimizer.step()
    guard.restore()
    assert p.tolist() == [1.0, 0.0]
    assert optimizer.state[p]["momentum_buffer"][1].item() == 0.0


def test_fresh_state_knows_what_each_optimizer_starts_from() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    assert fresh_state(torch.optim.SGD([p], lr=0.1)) == {}
    assert fresh_state(torch.optim.AdamW([p], lr=0.1)) == {"exp_avg": 0.0, "exp_avg_sq": 0.0}
    decayed = fresh_state(torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.5))
    assert decayed == {"momentum_buffer": 0.0}
    rprop = fresh_state(torch.optim.Rprop([p], lr=0.25))
    assert rprop["step_size"] == 0.25


def test_state_of_another_shape_is_refused_by_name() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(UsageError, match=r"Adafactor keeps state 'row_var' of shape .* use SGD, AdamW"):
        fresh_state(torch.optim.Adafactor([p]))


def test_scalars_are_not_taken_for_shaped_state() -> None:
    p = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([p], lr=0.1)
    p.grad = torch.ones(1)
    optimizer.step()
    assert [key for key, _ in shaped_state(optimizer, p)] == ["exp_avg", "exp_avg_sq"]
