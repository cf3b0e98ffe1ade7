"""Models that keep tensors of their forward are traced, masked, cut, scored and exported like others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import halpiee
from halpiee.deploy import export_onnx
from halpiee.saliency import Taylor
from halpiee.structure import masked, relative_error, shrink, trace, verify

from . import nets
from .corners import Net


def attribute(m: Net, x: Tensor) -> Any:
    m.features = torch.relu(m.a(x))
    return m.b(m.features)


def in_a_list(m: Net, x: Tensor) -> Any:
    h = torch.relu(m.a(x))
    m.kept.append(h)
    return m.b(h)


def in_a_dict(m: Net, x: Tensor) -> Any:
    h = torch.relu(m.a(x))
    m.kept[len(x)] = {"h": h}
    return m.b(h)


def state(m: Net, x: Tensor) -> Any:
    """A hidden state of the network's width, made by the first forward and carried on, without its history."""
    h = torch.tanh(m.a(x)) + (0 if m.hidden is None else m.hidden)
    m.hidden = h.detach()
    return m.b(h)


def network(forward: Any) -> Any:
    model: Any = nets.randomise(Net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 5, 1))).double()
    model.kept = [] if forward is in_a_list else {}
    model.hidden = None
    return model


@pytest.mark.parametrize("forward", [attribute, in_a_list, in_a_dict, state])
def test_a_model_that_keeps_activations_is_cut_after_training(forward: Any) -> None:
    model, x = network(forward), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    structure = trace(model, (x,))
    assert [(g.name, g.size) for g in structure.prunable] == [("a", 8)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    keep = {"a": torch.arange(8) % 2 == 0}
    at = keep["a"].nonzero().flatten()
    h = F.conv2d(x, model.a.weight[at], model.a.bias[at])
    by_hand = F.conv2d(h.tanh() if forward is state else h.relu(), model.b.weight[:, at], model.b.bias)
    compact, sliced = halpiee.shrink(model, structure, keep, optimizer)
    assert relative_error(compact(x), by_hand) <= 1e-12
    assert [p.shape for p in sliced.param_groups[0]["params"]] == [p.shape for p in compact.parameters()]
    assert relative_error(masked(model, structure, keep)(x), by_hand) <= 1e-12
    assert verify(model, structure, keep, (x,), tolerance=1e-12) <= 1e-12
    assert {g.name for g in trace(model, (x,)).prunable} >= ({"a"} if forward is not state else set())


class Keeps(nn.Module):
    """Keeps its features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.features = torch.relu(self.a(x))
        found: Tensor = self.b(self.features)
        return found


def test_scores_iee_and_export_take_a_model_that_keeps_an_activation(tmp_path: Any) -> None:
    model = nets.randomise(Keeps())
    x, y = torch.randn(2, 3, 4, 4), torch.zeros(2, 5, 4, 4)
    structure = trace(model, (x,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    iee = halpiee.IEE(
        model,
        optimizer,
        budget=halpiee.Uniform(0.5),
        units=halpiee.sparsity.Channels(model, structure),
        criterion=Taylor(),
        structure=structure,
        total_steps=4,
        h=1,
        j=1,
        q=1,
    )
    for _ in range(4):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    scores = halpiee.score(model, [(x, y)], Taylor(), units=structure, loss_fn=F.mse_loss)
    assert scores["a"].shape == (8,)
    compact: Any = iee.shrink()[0]
    assert compact.a.weight.shape[0] == 4
    export_onnx(compact, (x,), tmp_path / "net.onnx")


class Cached(nn.Module):
    """Attention biases picked once and kept for evaluation, as LeViT keeps them: training makes them anew."""

    picked: Tensor

    def __init__(self, by_device: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(8, 4))
        self.by_device, self.cache = by_device, dict[Any, Tensor]()

    def train(self, mode: bool = True) -> Cached:
        super().train(mode)
        if mode and self.by_device:
            self.cache.clear()
        elif mode and hasattr(self, "picked"):
            del self.picked
        elif not mode and not self.by_device:
            self.picked = self.bias[:, torch.tensor([0, 2, 1, 3])]
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x + self.bias[:, torch.tensor([0, 2, 1, 3])]
        if not self.by_device:
            return x + self.picked
        if x.device not in self.cache:
            self.cache[x.device] = self.bias[:, torch.tensor([0, 2, 1, 3])]
        return x + self.cache[x.device]


@pytest.mark.parametrize("by_device", [True, False])
@pytest.mark.parametrize("validated", ["before the trace", "after the trace"])
def test_what_is_kept_for_evaluation_follows_the_width(by_device: bool, validated: str) -> None:
    def forward(m: Net, x: Tensor) -> Any:
        return m.b(m.c(m.a(x).transpose(1, 2)).transpose(1, 2))

    model = Net(forward, a=nn.Linear(3, 8), c=Cached(by_device), b=nn.Linear(8, 5)).eval()
    x = torch.randn(2, 4, 3)
    with torch.no_grad():
        if validated == "before the trace":
            model(x)
        structure = trace(model, (x,))
        model(x)
    if not by_device:  # picked before the forward that is traced, so a constant in it
        assert [g.reason for g in structure.groups if g.name == "a"] == [
            "add in c with a constant of the same width"
        ]
        return
    assert [g.name for g in structure.prunable] == ["a"]
    keep = {"a": torch.arange(8) < 5}
    h = F.linear(x, model.a.weight[:5], model.a.bias[:5]) + model.c.bias[:5, torch.tensor([0, 2, 1, 3])].T
    by_hand = F.linear(h, model.b.weight[:, :5], model.b.bias)
    assert relative_error(shrink(model, structure, keep)(x), by_hand) <= 1e-6
    assert relative_error(masked(model, structure, keep)(x), by_hand) <= 1e-6
