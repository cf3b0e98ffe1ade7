"""Optimizer state is cut like its parameters, and everything else of it stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from halpiee.errors import StructureError
from halpiee.structure import shrink, trace

from . import nets

KEEP = {"stem": torch.tensor([True, False, True, True, False, False, False, True])}
STEM = [0, 2, 3, 7]


def stepped(optimizer_class: Any, **settings: Any) -> tuple[Any, Any]:
    model = nets.randomise(nets.Residual())
    optimizer = optimizer_class(model.parameters(), **settings)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(nets.IMAGE)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize(
    ("optimizer_class", "settings", "keys"),
    [
        (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}, ["momentum_buffer"]),
        (torch.optim.AdamW, {"lr": 0.01}, ["exp_avg", "exp_avg_sq"]),
        (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}, ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
        (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}, ["square_avg", "grad_avg"]),
    ],
)
def test_state_of_a_parameters_shape_is_cut_like_it(
    optimizer_class: Any, settings: Any, keys: list[str]
) -> None:
    model, optimizer = stepped(optimizer_class, **settings)
    structure = trace(model, (torch.zeros(nets.IMAGE),))
    compact: Any
    compact, smaller = shrink(model, structure, KEEP, optimizer)
    assert type(smaller) is optimizer_class
    for key in keys:
        old = optimizer.state[model.conv1.weight][key]
        new = smaller.state[compact.conv1.weight][key]
        assert torch.equal(new, old[:, STEM])
        old = optimizer.state[model.conv2.bias][key]
        assert torch.equal(smaller.state[compact.conv2.bias][key], old[STEM])
        untouched = optimizer.state[model.head.bias][key]
        copied = smaller.state[compact.head.bias][key]
        assert torch.equal(copied, untouched)
        assert copied is not untouched
    if "step" in optimizer.state[model.conv1.weight]:
        assert smaller.state[compact.conv1.weight]["step"] == optimizer.state[model.conv1.weight]["step"]
    assert smaller.defaults == optimizer.defaults


def test_groups_keep_their_order_settings_and_foreign_parameters() -> None:
    model = nets.randomise(nets.Residual())
    foreign = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD(
        [
            {"params": [model.head.weight, foreign, model.stem.bias], "lr": 0.5},
            {"params": [model.conv1.weight], "weight_decay": 0.25},
        ],
        lr=0.1,
        momentum=0.9,
    )
    structure = trace(model, (torch.zeros(nets.IMAGE),))
    compact: Any
    compact, smaller = shrink(model, structure, KEEP, optimizer)
    first, second = smaller.param_groups
    assert [id(p) for p in first["params"]] == [id(compact.head.weight), id(foreign), id(compact.stem.bias)]
    assert [id(p) for p in second["params"]] == [id(compact.conv1.weight)]
    assert (first["lr"], second["lr"], first["weight_decay"], second["weight_decay"]) == (0.5, 0.1, 0, 0.25)


def test_the_old_optimizer_and_its_state_stay() -> None:
    model, optimizer = stepped(torch.optim.AdamW, lr=0.01)
    before = {id(p): {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    structure = trace(model, (torch.zeros(nets.IMAGE),))
    shrink(model, structure, KEEP, optimizer)
    for parameter, state in optimizer.state.items():
        assert all(torch.equal(state[key], value) for key, value in before[id(parameter)].items())


def test_a_step_after_shrinking_moves_the_kept_part_alike() -> None:
    # No skip goes through removed units, so the kept part moves as it does in the masked network.
    model = nets.randomise(nets.Flatten())
    x = torch.randn(nets.IMAGE, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    structure = trace(model, (x,))
    keep = {"fc": torch.tensor([True, False, True, False, True, False, True])}
    with torch.no_grad():  # the removed units do not reach the output
        model.head.weight[:, ~keep["fc"]] = 0
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        model.head.weight[:, ~keep["fc"]] = 0
    compact: Any
    compact, smaller = shrink(model, structure, keep, optimizer)
    for net, opt in ((model, optimizer), (compact, smaller)):
        net(x).square().sum().backward()
        opt.step()
    assert torch.allclose(compact.fc.weight, model.fc.weight[keep["fc"]], atol=1e-6)
    assert torch.allclose(compact.conv.weight, model.conv.weight, atol=1e-6)


def test_state_of_another_shape_is_refused_by_name() -> None:
    model, optimizer = stepped(torch.optim.Adafactor, lr=0.01)
    structure = trace(model, (torch.zeros(nets.IMAGE),))
    with pytest.raises(
        StructureError, match=r"Adafactor keeps 'row_var' of shape .* for 'stem\.weight' of shape"
    ):
        shrink(model, structure, KEEP, optimizer)


def test_state_of_an_optimizer_of_ones_own_is_cut_where_it_has_the_parameters_shape() -> None:
    class Slow(torch.optim.Optimizer):
        """Keeps a second copy of every weight, a count, and nothing that torch knows by name."""

        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.5})

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    state.setdefault("slow weights", p.detach().clone())
                    state["count"] = state.get("count", 0) + 1

    model = nets.randomise(nets.Residual())
    optimizer = Slow(model.parameters())
    optimizer.step()
    structure = trace(model, (torch.zeros(nets.IMAGE),))
    compact: Any
    compact, smaller = shrink(model, structure, KEEP, optimizer)
    state = smaller.state[compact.conv1.weight]
    assert torch.equal(state["slow weights"], model.conv1.weight[:, STEM])
    assert state["count"] == 1
