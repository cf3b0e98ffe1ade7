"""Weights of another moment are cut by the mask that belongs to them, or not at all."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import halpiee
from halpiee.errors import UsageError
from halpiee.methods.method import Method
from halpiee.saliency import Taylor
from halpiee.sparsity import Channels
from halpiee.structure import relative_error

STEPS = 20


@cache
def traced() -> halpiee.Structure:
    return halpiee.trace(network(), (torch.zeros(1, 3, 6, 6),))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def started(kind: str = "iee") -> tuple[nn.Module, torch.optim.Optimizer, Method]:
    structure, model = traced(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    method: Method
    if kind == "filter":
        method = halpiee.FilterPruning(
            model,
            optimizer,
            budget=halpiee.Global(0.5),
            total_steps=STEPS,
            structure=structure,
            rounds=3,
            interval=4,
            criterion="l1",
        )
    else:
        method = halpiee.IEE(
            model,
            optimizer,
            budget=halpiee.Uniform(0.5),
            units=Channels(model, structure),
            criterion=Taylor(),
            total_steps=STEPS,
            h=2,
            j=2,
            q=2,
            end=1.0,
            omega=0.5,
        )
    return model, optimizer, method


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, y = torch.randn(6, 3, 6, 6, generator=generator), torch.randint(0, 4, (6,), generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model(x), y))
        optimizer.step()


def validated(model: nn.Module, method: Method, x: Tensor) -> Tensor:
    """Returns the outputs that a validation at this moment sees."""
    was = model.training
    with torch.no_grad(), method.evaluating():
        found: Tensor = model.eval()(x).clone()
    model.train(was)
    return found


@pytest.mark.parametrize("kind", ["iee", "filter"])
@pytest.mark.parametrize("at", [3, 5, 7, 11])  # after a prune, exploring, after a grow …
def test_the_best_checkpoint_is_cut_as_it_was_validated(kind: str, at: int) -> None:
    model, optimizer, method = started(kind)
    x = torch.randn(5, 3, 6, 6)
    trained(model, optimizer, at)
    best: dict[str, Any] = copy.deepcopy({"model": model.state_dict(), "method": method.state_dict()})
    seen = validated(model, method, x)
    trained(model, optimizer, STEPS - at, seed=1)
    assert method.finished
    model.load_state_dict(best["model"])
    method.load_mask(best["method"])
    compact, _ = method.shrink()
    assert relative_error(compact.eval()(x), seen) <= 1e-6
    kept = {name: int(mask.sum()) for name, mask in best["method"]["alive"].items()}
    assert method.reports[-1].event == "shrink"
    assert method.reports[-1].counts == kept
    assert method.reports[-1].used == method.pool.used(method.alive)


@pytest.mark.parametrize("kind", ["iee", "filter"])
def test_without_its_mask_a_best_checkpoint_is_refused_or_cut_to_the_same_network(kind: str) -> None:
    refused = 0
    for at in range(1, STEPS):
        model, optimizer, method = started(kind)
        x = torch.randn(5, 3, 6, 6)
        trained(model, optimizer, at)
        best, seen = copy.deepcopy(model.state_dict()), validated(model, method, x)
        trained(model, optimizer, STEPS - at, seed=1)
        model.load_state_dict(best)
        try:
            compact, _ = method.shrink()
        except UsageError:
            refused += 1
            continue
        assert relative_error(compact.eval()(x), seen) <= 1e-6
    assert refused > 5


def test_averaged_weights_of_several_masks_are_refused_with_and_without_a_mask() -> None:
    model, optimizer, method = started()
    average = torch.optim.swa_utils.AveragedModel(model)
    for seed in range(STEPS):
        trained(model, optimizer, 1, seed=seed)
        average.update_parameters(model)
    state = copy.deepcopy(method.state_dict())
    for own, mean in zip(model.parameters(), average.module.parameters(), strict=True):
        own.data.copy_(mean)
    with pytest.raises(UsageError, match="average once"):
        method.shrink()
    with pytest.raises(UsageError, match="an average over steps with other masks has no mask of its own"):
        method.load_mask(state)


def test_weights_averaged_under_the_final_mask_are_cut() -> None:
    model, optimizer, method = started()
    trained(model, optimizer, STEPS)
    average = torch.optim.swa_utils.AveragedModel(model)
    for seed in range(3):
        trained(model, optimizer, 1, seed=seed)
        average.update_parameters(model)
    for own, mean in zip(model.parameters(), average.module.parameters(), strict=True):
        own.data.copy_(mean)
    x = torch.randn(5, 3, 6, 6)
    compact, _ = method.shrink()
    assert relative_error(compact.eval()(x), model.eval()(x)) <= 1e-6


def test_weights_loaded_while_the_method_explores_are_refused() -> None:
    model, optimizer, method = started()
    best = copy.deepcopy(model.state_dict())
    trained(model, optimizer, 5)
    assert method.memory.everything
    model.load_state_dict(best)
    with pytest.raises(UsageError, match=r"other weights since: .*load_mask\(state\)"):
        method.shrink()


def test_a_mask_of_other_units_is_refused() -> None:
    _, _, method = started()
    state = method.state_dict()
    state["alive"] = {"another": torch.ones(3, dtype=torch.bool)}
    with pytest.raises(UsageError, match="masks 1 groups"):
        method.load_mask(state)
