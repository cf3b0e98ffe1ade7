"""A proof of a cut has to be able to fail: noise from one state, and weights that let the network be seen."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from halpiee.errors import MismatchError
from halpiee.structure import shrink, trace, verify

from .corners import Net

X = (torch.zeros(2, 3, 8, 8),)
KEEP = {"a": torch.arange(8) % 3 > 0}


def net(forward: Any, **parts: Any) -> Net:
    torch.manual_seed(0)
    modules = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 6, 3), "h": nn.Linear(6, 5)} | parts
    return Net(forward, **modules).eval()


def plain(m: Any, x: Tensor) -> Any:
    return m.h(m.b(m.a(x).relu()).relu().mean((2, 3)))


def refuses_a_wrong_cut(model: nn.Module) -> None:
    """The true cut passes; one that keeps other channels of the first layer is refused."""
    structure = trace(model, X)
    assert structure.by_name["a"].prunable
    compact = shrink(model, structure, KEEP)
    assert verify(model, structure, KEEP, X) < 1e-5
    assert verify(model, structure, KEEP, X, compact=compact) < 1e-5
    wrong: Any = shrink(model, structure, KEEP)
    with torch.no_grad():
        wrong.a.weight.mul_(1.5)
    with pytest.raises(MismatchError):
        verify(model, structure, KEEP, X, compact=wrong)


def test_a_head_that_begins_at_zero_hides_no_wrong_cut() -> None:
    model = net(plain)
    nn.init.zeros_(model.h.weight)
    nn.init.zeros_(model.h.bias)
    refuses_a_wrong_cut(model)
    assert not model.h.weight.any()  # the model keeps its own


def test_a_head_that_begins_at_zero_with_a_bias_hides_no_wrong_cut() -> None:
    model = net(plain)
    nn.init.zeros_(model.h.weight)
    refuses_a_wrong_cut(model)


def test_integers_that_have_an_order_are_not_turned() -> None:
    """The first offset of an embedding bag is 0; torch refuses others."""
    model = Net(
        lambda m, tokens, offsets: m.b(m.a(m.table(tokens, offsets)).relu()),
        table=nn.EmbeddingBag(10, 6),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 3),
    ).eval()
    inputs = (torch.arange(7) % 10, torch.tensor([0, 3]))
    structure = trace(model, inputs)
    assert verify(model, structure, KEEP, inputs) < 1e-5


@pytest.mark.parametrize("scale", [0.0, 1e-6])
def test_a_branch_scaled_by_next_to_nothing_hides_no_wrong_cut(scale: float) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.h(m.s(x).mean((2, 3)) + m.gamma * m.b(m.a(x).relu()).mean((2, 3)))

    model = net(forward, s=nn.Conv2d(3, 6, 1))
    model.gamma = nn.Parameter(torch.full((6,), scale))
    refuses_a_wrong_cut(model)


def test_outputs_that_hang_on_no_input_prove_nothing_and_are_refused() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.h(m.b(m.a(x).relu()).mean((2, 3))).detach() * 0 + m.h.bias

    model = net(forward)
    structure = trace(model, X)
    with pytest.raises(
        MismatchError, match="the outputs are the same for every input, with other weights too"
    ):
        verify(model, structure, KEEP, X)


def noisy(draw: Any, at: str) -> Any:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.a(x if at != "input" else x + draw(x)).relu()
        x = m.b(x if at != "channels" else x + draw(x)).relu().mean((2, 3))
        return m.h(x if at != "features" else x + draw(x))

    return forward


def drawn_in_place(x: Tensor) -> Tensor:
    return torch.empty_like(x).normal_()


@pytest.mark.parametrize("at", ["input", "channels", "features"])
@pytest.mark.parametrize("draw", [torch.randn_like, torch.rand_like, drawn_in_place])
def test_a_network_that_draws_noise_in_evaluation_draws_alike_on_both_sides(draw: Any, at: str) -> None:
    model = net(noisy(draw, at))
    structure = trace(model, X)
    assert structure.by_name["a"].prunable
    assert verify(model, structure, KEEP, X, sizes=(1, 3)) < 1e-5
    refuses_a_wrong_cut(model)


def test_noise_of_numpy_and_python_is_alike_on_both_sides_and_their_states_stay() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        noise = torch.from_numpy(np.random.randn(8, 8).astype(np.float32)) * random.random()
        return plain(m, x + noise)

    model = net(forward)
    structure = trace(model, X)

    def state_of_numpy() -> Any:
        found: Any = np.random.get_state()
        return found[1].tolist()

    states = torch.get_rng_state(), random.getstate(), state_of_numpy()
    assert verify(model, structure, KEEP, X) < 1e-5
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), state_of_numpy())
