"""What hangs on no input, parameter or buffer has its values in a trace, and stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halpiee.structure import forward, trace, verify
from halpiee.structure.state import ConstantError, Constants

from .corners import Net

X = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
KEEP = {"a": torch.arange(8) > 2, "b": torch.arange(6) > 1}


def net(factor: Callable[[Any, Tensor], Any]) -> Net:
    """A convolution a, times a factor that the module works out of its table (1, 2, 3); a convolution b; a head."""

    def run(m: Any, x: Tensor) -> Any:
        x = m.a(x).relu()
        return m.h(m.b(x * factor(m, x)).mean((2, 3)))

    torch.manual_seed(0)
    made = Net(run, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 6, 3), h=nn.Linear(6, 5)).eval()
    made.__dict__["table"] = torch.tensor([1.0, 2.0, 3.0])
    return made


def summed(m: Any, x: Tensor) -> float:
    grid = m.table.clone()
    grid[1:] *= 2  # written through a view of memory of its own
    return float(grid.sum())


READ: dict[str, Callable[[Any, Tensor], Any]] = {
    "an item": lambda m, x: m.table[1].item(),
    "a list": lambda m, x: m.table.tolist()[1],
    "a sum of a copy that was written into": summed,
    "a full tensor of it": lambda m, x: torch.full((1, 1, 1, 1), float(m.table[2])),
}


@pytest.mark.parametrize("factor", READ.values(), ids=READ.keys())
def test_a_constant_read_in_python_needs_no_forward_on_real_tensors(
    factor: Callable[[Any, Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the model ran on real tensors")

    monkeypatch.setattr(forward, "observed", never)
    model = net(factor)
    structure = trace(model, X)
    assert {g.name for g in structure.prunable} == {"a", "b"}
    assert structure.details["real"] is False
    assert verify(model, structure, KEEP, X, tolerance=1e-5) < 1e-5


WRITTEN: dict[str, Callable[[Any, Tensor], Any]] = {
    "the module's own": lambda m, x: m.table.add_(1)[0],
    "a copy, by what is computed": lambda m, x: m.table.clone().add_(m.h.bias.sum() * 0)[1],
    "the module's own, by what is computed": lambda m, x: m.table.add_(m.h.bias.sum() * 0)[1],
}


@pytest.mark.parametrize("factor", WRITTEN.values(), ids=WRITTEN.keys())
def test_a_constant_that_is_written_into_is_none_and_keeps_its_values(
    factor: Callable[[Any, Tensor], Any],
) -> None:
    model = net(factor)
    structure = trace(model, X)
    assert {g.name for g in structure.prunable} == {"a", "b"}
    assert model.table.tolist() == [1.0, 2.0, 3.0]


def test_constants_are_those_of_ops_whose_tensors_all_have_values() -> None:
    add, values, nothing = torch.ops.aten.add.Tensor, torch.ones(2), torch.ones(2, device="meta")
    constants = Constants()
    assert constants.run(add, (values, nothing), {}) is None
    assert constants.run(add, (nothing, values), {}) is None
    found = constants.run(add, (values, values), {})
    assert found is not None
    assert found[0].tolist() == [2.0, 2.0]
    written = constants.run(torch.ops.aten.add_.Tensor, (found[0], values), {})
    assert written is not None
    assert found[0].tolist() == [3.0, 3.0]
    with pytest.raises(ConstantError):
        constants.run(torch.ops.aten.add_.Tensor, (values, values), {})
    with pytest.raises(ConstantError):
        constants.run(torch.ops.aten.add_.Tensor, (found[0], nothing), {})
    assert values.tolist() == [1.0, 1.0]
