"""The first layer is the one that the forward runs first, wherever the model holds it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import halpiee
from halpiee.errors import UsageError
from halpiee.methods.allocator import LayerPools
from halpiee.sparsity import Filters, Uniform, Weights
from halpiee.sparsity.granularity import example_input


class Backwards(nn.Module):
    """Holds its layers from the last to the first: head, attention, second, first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.unused = nn.Linear(3, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.second = nn.Conv2d(6, 8, 3)
        self.first = nn.Conv2d(3, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x)))).flatten(2).transpose(1, 2)
        found: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
        return found


@pytest.fixture
def net() -> Backwards:
    torch.manual_seed(0)
    return Backwards().train()


def test_units_are_in_the_order_in_which_the_forward_uses_them(net: Backwards) -> None:
    order = Weights(net).order
    assert order == (
        "first.weight",
        "second.weight",
        "attention.out_proj.weight",
        "head.weight",
        "unused.weight",
    )
    assert Filters(net).order == ("first", "second")
    assert net.training


def test_a_uniform_budget_keeps_the_first_layer_of_the_forward_dense(net: Backwards) -> None:
    counts = halpiee.prune_once(
        net, "magnitude", Uniform(0.25, first=1.0), units=Weights(net, pinned={"unused"})
    ).counts
    assert counts["first.weight"] == net.first.weight.numel()
    assert counts["head.weight"] == net.head.weight.numel() // 4
    last = halpiee.prune_once(
        net, "magnitude", Uniform(0.25, first=1.0, last=0.5), units=Weights(net, pinned={"unused"})
    ).counts
    assert last["head.weight"] == net.head.weight.numel() // 2
    filters = LayerPools(Filters(net), Uniform(0.5, first=1.0))
    assert filters.start(torch.Generator()).counts == {"first": 6, "second": 4}


def test_an_input_is_found_whichever_layer_the_model_holds_first(net: Backwards) -> None:
    assert tuple(example_input(net).shape) == (1, 3, 32, 32)


class Words(nn.Module):
    """Runs on numbers of words only."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)
        self.words = nn.Embedding(5, 6)
        self.hidden = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.hidden(self.words(x))).mean(1))
        return found


def test_a_model_that_runs_on_no_usual_input_asks_for_one() -> None:
    torch.manual_seed(0)
    net = Words()
    with pytest.raises(
        UsageError, match=r"an input for Words was needed.*pass one batch or an example input"
    ):
        halpiee.prune_once(net, "magnitude", Uniform(0.5, first=1.0))
    units = Weights(net, example_input=torch.zeros(1, 3, dtype=torch.long))
    counts = halpiee.prune_once(net, "magnitude", Uniform(0.5, first=1.0), units=units).counts
    assert counts == {"hidden.weight": 36, "head.weight": 6}
    assert halpiee.prune_once(net, "magnitude", Uniform(0.5)).density == 0.5  # no order is needed
