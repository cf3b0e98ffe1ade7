"""Little networks written as a forward over their modules, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from halpiee.structure import trace, verify

from . import nets

IMAGE, TOKENS = nets.IMAGE, (2, 4, 3)


class Net(nn.Module):
    """Modules, and a forward over them."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.run = forward

    if TYPE_CHECKING:  # parts are of the kind that the test gave

        def __getattr__(self, name: str) -> Any: ...

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def ab(forward: Callable[..., Any], width: int = 8, **parts: Any) -> Net:
    """A convolution a from 3 to ``width`` channels, b from 8 to 5, and more."""
    return Net(forward, a=nn.Conv2d(3, width, 1), b=nn.Conv2d(8, 5, 1), **parts)


def number(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def traced(builder: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[Any, Tensor, Any]:
    model = nets.randomise(builder()).double().eval()
    x = torch.ones(shape, dtype=torch.float64)
    return model, x, trace(model, (x,))


def is_cut_exactly(builder: Callable[[], nn.Module], shape: tuple[int, ...], prunable: set[str]) -> None:
    """Asserts which groups are prunable and that masked and compact agree for three keeps."""
    model, x, structure = traced(builder, shape)
    assert {g.name for g in structure.prunable} == prunable
    for seed in range(3):
        keep = nets.random_keep(structure, seed)
        assert verify(model, structure, keep, (x,), tolerance=1e-12, seed=seed) <= 1e-12


def stays_and_says_why(builder: Callable[[], nn.Module], shape: tuple[int, ...], reason: str) -> None:
    """Asserts that the first group stays for a reason, and that whatever else may go goes exactly."""
    model, x, structure = traced(builder, shape)
    first = next(
        g for g in structure.groups if g.name != "input" and g.reason != "feeds the network's output"
    )
    assert not first.prunable
    assert first.reason is not None
    assert reason in first.reason
    keep = nets.random_keep(structure, 0)
    assert verify(model, structure, keep, (x,), tolerance=1e-12) <= 1e-12
