"""Whole branches go where a parallel path stays; what is left is their constant output, exactly."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halpiee import zoo
from halpiee.errors import StructureError
from halpiee.structure import Plan, masked, shrink, trace, verify

from . import corners, nets


def vanishing(model: nn.Module, shape: tuple[int, ...]) -> list[str]:
    structure = trace(model, (torch.zeros(shape),), vanish=True)
    return [g.name for g in structure.groups if g.may_vanish]


def test_the_inner_channels_of_a_residual_block_may_all_go() -> None:
    assert vanishing(nets.Residual(), nets.IMAGE) == ["conv1"]


def test_a_plain_chain_may_lose_no_layer() -> None:
    assert vanishing(nets.Depthwise(), nets.IMAGE) == []
    assert vanishing(nets.Flatten(), nets.IMAGE) == []


def test_nothing_may_vanish_unless_asked() -> None:
    structure = trace(nets.Residual(), (torch.zeros(nets.IMAGE),))
    assert not any(g.may_vanish for g in structure.groups)


def test_every_block_of_a_resnet_may_go_but_not_its_streams() -> None:
    names = vanishing(zoo.resnet20(width=0.25), (1, 3, 8, 8))
    assert names == [f"layers.{stage}.{block}.conv1" for stage in range(3) for block in range(3)]


def test_an_emptied_branch_is_its_constant_by_hand() -> None:
    model = nets.randomise(nets.Residual()).double().eval()
    x = torch.randn(nets.IMAGE, dtype=torch.float64)
    structure = trace(model, (x,), vanish=True)
    keep = {"conv1": torch.zeros(6, dtype=torch.bool)}
    with torch.no_grad():
        y = torch.sigmoid(F.conv2d(x, model.stem.weight, model.stem.bias, padding=1))
        y = torch.sigmoid(y + model.conv2.bias[:, None, None])
        expected = F.linear(y.mean((2, 3)), model.head.weight, model.head.bias)
        for pruned in (shrink(model, structure, keep), masked(model, structure, keep)):
            assert (pruned(x) - expected).norm() / expected.norm() < 1e-12


@pytest.mark.parametrize("side", [1, 8])
def test_a_constant_that_is_written_into_in_place_is_no_layers_bias(side: int) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
            self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            return self.head((x + self.relu(self.b(self.relu(self.a(x))))).mean((2, 3)))

    torch.manual_seed(0)
    model: Any = InPlace().eval()
    x = torch.randn(1, 3, side, side)
    structure = trace(model, (x,), vanish=True)
    assert [g.name for g in structure.groups if g.may_vanish] == ["a"]
    pruned: Any = shrink(model, structure, {"a": torch.zeros(6, dtype=torch.bool)})
    with torch.no_grad():
        expected = model.head((model.stem(x) + model.b.bias.clamp(min=0)[:, None, None]).mean((2, 3)))
        for _ in range(2):
            torch.testing.assert_close(pruned(x), expected)
    assert torch.equal(pruned.b.bias, model.b.bias)
    torch.autograd.backward(pruned(x).sum())


def test_a_network_without_a_layer_is_cut_to_itself() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).eval()
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(shrink(model, trace(model, (x,)), {})(x), model(x))


def test_a_norm_behind_the_branch_keeps_its_constant() -> None:
    model = nets.randomise(zoo.resnet20(width=0.25)).double().eval()
    x = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    structure = trace(model, (x,), vanish=True)
    keep = nets.random_keep(structure, 1)
    for name in ("layers.0.1.conv1", "layers.1.0.conv1", "layers.2.2.conv1"):
        keep[name] = torch.zeros_like(keep[name])
    assert verify(model, structure, keep, (x,), tolerance=1e-12) <= 1e-12
    everything = {g.name: torch.zeros(g.size, dtype=torch.bool) for g in structure.groups if g.may_vanish}
    assert verify(model, structure, everything, (x,), tolerance=1e-12) <= 1e-12


def test_one_of_two_parallel_branches_may_go_but_not_both() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.a1, self.a2 = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
            self.b1, self.b2 = nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1)
            self.head = nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Any:
            x = torch.relu(self.stem(x))
            return self.head(torch.relu(self.a2(torch.relu(self.a1(x))) + self.b2(torch.relu(self.b1(x)))))

    assert vanishing(Parallel(), nets.IMAGE) == ["a1"]


def test_a_gate_that_is_only_multiplied_stays() -> None:
    assert vanishing(nets.Gate(), nets.IMAGE) == []


def test_a_gate_summed_over_the_channels_stays() -> None:
    """Without a's channels it would be 0, and so would all that it multiplies."""
    model = corners.ab(
        lambda m, x: m.b(m.c(x) * torch.relu(m.a(x)).sum(1, keepdim=True)), c=nn.Conv2d(3, 8, 1)
    )
    assert vanishing(model.eval(), nets.IMAGE) == []


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_channels_that_are_resized_stay(mode: str) -> None:
    """Torch resizes no tensor without channels, though its fake tensors do."""

    def forward(m: Any, x: Tensor) -> Any:
        small = torch.relu(m.a(x))
        return m.h(m.c(x) + m.b(F.interpolate(small, scale_factor=2, mode=mode)))

    parts = {"c": nn.Conv2d(3, 5, 1), "h": nn.Conv2d(5, 4, 1)}
    model = corners.Net(forward, a=nn.Conv2d(3, 8, 2, 2), b=nn.Conv2d(8, 5, 1), **parts).eval()
    with pytest.raises(RuntimeError, match="Non-empty"):
        F.interpolate(torch.zeros(2, 0, 2, 2), scale_factor=2, mode=mode)
    assert vanishing(model, nets.IMAGE) == []


def test_the_compact_network_trains_copies_and_steps() -> None:
    model = nets.randomise(nets.Residual())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(nets.IMAGE)).sum().backward()
    optimizer.step()
    structure = trace(model, (torch.zeros(nets.IMAGE),), vanish=True)
    keep = {"conv1": torch.zeros(6, dtype=torch.bool)}
    compact: Any
    compact, smaller = shrink(model, structure, keep, optimizer)
    before = compact.head.weight.clone()
    compact.train()(torch.ones(nets.IMAGE)).square().sum().backward()
    smaller.step()
    assert not torch.equal(compact.head.weight, before)
    assert isinstance(compact.conv1, nn.Conv2d)
    assert compact.conv2.weight.shape == (8, 0, 3, 3)
    copied = copy.deepcopy(compact)
    copied.load_state_dict(compact.state_dict())


def test_a_plan_empties_a_branch_too(tmp_path: object) -> None:
    from types import SimpleNamespace

    model = nets.randomise(nets.Residual()).eval()
    x = torch.ones(nets.IMAGE)
    structure = trace(model, (x,), vanish=True)
    keep = {"conv1": torch.zeros(6, dtype=torch.bool)}
    chosen: Any = SimpleNamespace(keep=keep, latency_us=1.0)
    plan = Plan.from_selection(structure, chosen)
    with torch.no_grad():
        assert torch.equal(plan.apply(model)(x), shrink(model, structure, keep)(x))


def test_a_group_without_a_parallel_path_is_refused() -> None:
    model = nets.Residual()
    structure = trace(model, (torch.zeros(nets.IMAGE),), vanish=True)
    with pytest.raises(StructureError, match="keep empties 'stem', which may not vanish"):
        shrink(model, structure, {"stem": torch.zeros(8, dtype=torch.bool)})


@pytest.mark.parametrize("gone", [("a", "b"), ("b",), ("a",)])
def test_both_groups_of_a_bottleneck_may_go_together_or_alone(gone: tuple[str, ...]) -> None:
    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
            self.b, self.nb = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
            self.c, self.head = nn.Conv2d(6, 8, 1), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(self.stem(x))
            y = self.c(torch.sigmoid(self.nb(self.b(torch.sigmoid(self.a(x))))))
            found: Tensor = self.head(torch.sigmoid(x + y).mean((2, 3)))
            return found

    model: Any = nets.randomise(Bottleneck()).double().eval()
    x = torch.randn(nets.IMAGE, dtype=torch.float64)
    structure = trace(model, (x,), vanish=True)
    assert [g.name for g in structure.groups if g.may_vanish] == ["a", "b"]
    keep = {name: torch.zeros(6, dtype=torch.bool) for name in gone}
    assert verify(model, structure, keep, (x,), tolerance=1e-12) <= 1e-12
    if "b" in gone:  # nothing of the branch is left but the bias of its last layer
        with torch.no_grad():
            stream = torch.sigmoid(F.conv2d(x, model.stem.weight, model.stem.bias, padding=1))
            y = torch.sigmoid(stream + model.c.bias[:, None, None])
            expected = F.linear(y.mean((2, 3)), model.head.weight, model.head.bias)
            assert (shrink(model, structure, keep)(x) - expected).norm() / expected.norm() < 1e-12
