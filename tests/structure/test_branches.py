"""What runs in training alone: coupled with what an evaluation runs, whole within, and exact both ways."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halpiee.structure import Plan, explain, masked, relative_error, shrink, trace, verify
from halpiee.structure.state import branches_by_mode, take_training_branches

from . import nets


class Aided(nn.Module):
    """A chain with an auxiliary head that runs in training alone, behind a layer norm over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 6, 3), nn.Linear(6, 4)
        self.aid = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))

    def forward(self, x: Tensor) -> Any:
        x = torch.sigmoid(self.norm(self.a(x)))
        y = self.c(torch.sigmoid(self.b(x)).mean((2, 3)))
        if self.training:
            return y, self.aid(x.mean((2, 3)))
        return y


class Regularised(nn.Module):
    """Hands the mode on to a dropout, and does no more with it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.b(F.dropout(torch.relu(self.a(x)), 0.5, training=self.training))


class Coupled(nn.Module):
    """Adds two streams in training, which an evaluation keeps apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(i, o) for i, o in ((3, 8), (3, 8), (8, 4), (8, 4)))

    def forward(self, x: Tensor) -> Any:
        y, z = torch.tanh(self.a(x)), torch.tanh(self.b(x))
        return self.c(y) + self.d(y + z if self.training else z)


class Wanting(nn.Module):
    """Wants targets where it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        if self.training:
            if target is None:
                raise ValueError("no target")
            return F.mse_loss(self.b(self.a(x)), target)
        return self.b(self.a(x))


def in_both(structure: Any, model: nn.Module, x: Tensor) -> None:
    """Asserts that masked and compact agree in an evaluation and in the branches of training, and that it trains."""
    for seed in range(3):
        keep = nets.random_keep(structure, seed)
        assert verify(model, structure, keep, (x,), tolerance=1e-12, seed=seed) <= 1e-12
        full, compact = masked(model, structure, keep), shrink(model, structure, keep)
        take_training_branches(full)
        take_training_branches(compact)
        with torch.no_grad():
            expected = list(compact(x))
            assert relative_error(list(full(x)), expected) <= 1e-12
        outputs = compact.train()(x)
        shapes = [tensor.shape for tensor in copy.deepcopy(model).train()(x)]
        assert [tensor.shape for tensor in outputs] == shapes
        sum(tensor.sum() for tensor in outputs).backward()
        assert all(p.grad is not None for p in compact.parameters())


def test_an_auxiliary_head_goes_with_what_it_reads() -> None:
    model = nets.randomise(Aided()).double().eval()
    x = torch.rand(nets.IMAGE, dtype=torch.float64)
    structure = trace(model, (x,))
    assert [(g.name, g.size) for g in structure.prunable] == [("a", 8), ("b", 6)]
    in_both(structure, model, x)


def test_what_runs_in_training_alone_is_whole_within_and_not_timed() -> None:
    structure = trace(Aided(), (torch.zeros(nets.IMAGE),))
    assert structure.by_name["aid.1"].reason == "runs in training alone"
    assert structure.by_name["aid.3"].reason == "feeds an output in training"
    assert {timed.layer for timed in structure.ops if timed.op.kind in ("conv", "linear")} == {"a", "b", "c"}
    found = explain(structure)
    assert (found.training_alone, found.unread) == (("aid",), ())
    assert found.prunable_macs_share == 1


def test_the_trace_does_not_hang_on_the_mode_of_the_model() -> None:
    x = torch.zeros(nets.IMAGE)
    model = Aided()
    assert trace(model.train(), (x,)).groups == trace(model.eval(), (x,)).groups


def test_streams_that_meet_in_training_alone_are_one() -> None:
    model = nets.randomise(Coupled()).double().eval()
    x = torch.rand(2, 3, dtype=torch.float64)
    structure = trace(model, (x,))
    assert [(g.name, g.size) for g in structure.prunable] == [("a", 8)]
    in_both(structure, model, x)


def test_a_plan_cuts_the_head_of_a_fresh_model_too() -> None:
    model = nets.randomise(Aided()).eval()
    structure = trace(model, (torch.zeros(nets.IMAGE),))
    keep = nets.random_keep(structure)
    plan = Plan.from_selection(structure, type("Chosen", (), {"keep": keep, "latency_us": 1.0})())
    assert {n: t.shape for n, t in plan.apply(Aided()).state_dict().items()} == {
        n: t.shape for n, t in shrink(model, structure, keep).state_dict().items()
    }


def test_a_forward_that_wants_targets_is_traced_as_it_evaluates() -> None:
    structure = trace(Wanting(), (torch.zeros(2, 3),))
    assert [(g.name, g.size) for g in structure.prunable] == [("a", 8)]
    assert structure.details["training_alone"] == ()


def test_a_mode_that_is_handed_on_to_a_dropout_is_no_branch() -> None:
    assert not branches_by_mode(Regularised())
    assert branches_by_mode(nn.Sequential(Coupled()))


@pytest.mark.slow  # two networks of ten million parameters, forwards in both modes
@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 299)])
def test_networks_with_auxiliary_heads_train_after_the_cut(name: str, size: int) -> None:
    models = pytest.importorskip("torchvision.models")
    model = nets.randomise(models.get_model(name, weights=None, init_weights=False)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # so that the signal neither vanishes nor grows
                parameter.mul_(2 / parameter[0].numel() ** 0.5)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    structure = trace(model, (x,))
    assert explain(structure).unread == ()
    keep = nets.random_keep(structure, 1)
    full, compact = masked(model, structure, keep), shrink(model, structure, keep)
    take_training_branches(full)
    take_training_branches(compact)
    with torch.no_grad():
        assert relative_error(list(full(x)), list(compact(x))) <= 1e-5
    sum(tensor.sum() for tensor in compact.train()(x)).backward()
