"""Random small networks and random keeps: the masked network equals the compact one, whatever is combined."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from halpiee.structure import trace, verify

from . import nets

KINDS = (
    "chain",
    "residual",
    "concat",
    "depthwise",
    "grouped",
    "gate",
    "shared",
    "shuffled",
    "halves",
    "unit norm",
)
ACTIVATIONS = (torch.relu, torch.sigmoid, torch.tanh)


class Assembled(nn.Module):
    """Stages between a stem and a head; a stage is a kind, a width and an activation."""

    def __init__(self, stages: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.stages = stages
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.parts = nn.ModuleList()
        width = 8
        for kind, wanted, _ in stages:
            parts: list[nn.Module] = [nn.BatchNorm2d(width)]
            if kind == "chain":
                parts.append(nn.Conv2d(width, wanted, 3, padding=1))
                width = wanted
            elif kind in ("residual", "gate"):
                parts += [nn.Conv2d(width, wanted, 1), nn.Conv2d(wanted, width, 1)]
            elif kind == "concat":
                parts.append(nn.Conv2d(width, wanted, 1))
                width += wanted
            elif kind == "halves":
                parts.append(nn.Conv2d(width, 2 * wanted, 1))
                width = wanted
            elif kind == "unit norm":
                parts += [nn.GroupNorm(1, width), nn.Conv2d(width, wanted, 1)]
                width = wanted
            elif kind in ("depthwise", "grouped"):
                groups = width if kind == "depthwise" else 2 if width % 2 == 0 else 1
                parts.append(nn.Conv2d(width, width, 3, padding=1, groups=groups))
            else:
                parts.append(nn.Conv2d(width, width, 1))
            self.parts.append(nn.ModuleList(parts))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        parts: Any
        for (kind, _, number), parts in zip(self.stages, self.parts, strict=True):
            y = ACTIVATIONS[number](parts[0](x))
            if kind == "residual":
                x = x + parts[2](torch.sigmoid(parts[1](y)))
            elif kind == "gate":
                x = x * torch.sigmoid(parts[2](torch.relu(parts[1](y.mean((2, 3), keepdim=True)))))
            elif kind == "concat":
                x = torch.cat([x, parts[1](y)], 1)
            elif kind == "shuffled":
                n, c, h, w = y.shape
                parted = y.view(n, 2 if c % 2 == 0 else 1, -1, h, w).transpose(1, 2)
                x = x + parts[1](parted.reshape(n, c, h, w))
            elif kind == "halves":
                value, gate = parts[1](y).chunk(2, 1)
                x = value * torch.sigmoid(gate)
            elif kind == "unit norm":
                x = parts[2](parts[1](y))
            elif kind == "shared":
                x = parts[1](torch.tanh(parts[1](y)))
            else:
                x = parts[1](y)
        return self.head(torch.sigmoid(x).mean((2, 3)))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    stages=st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(2, 7), st.integers(0, 2)), min_size=1, max_size=5
    ),
    seed=st.integers(0, 1000),
    share=st.floats(0.1, 0.9),
)
def test_masked_equals_compact_in_every_combination(
    stages: list[tuple[str, int, int]], seed: int, share: float
) -> None:
    model = nets.randomise(Assembled(stages), seed).double().eval()
    x = torch.ones(2, 3, 4, 4, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    structure = trace(model, (x,))
    keep = nets.random_keep(structure, seed, share)
    assert verify(model, structure, keep, (x,), tolerance=1e-10, seed=seed) <= 1e-10
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
