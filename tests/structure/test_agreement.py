"""What torch runs otherwise on the meta device, at every width, is no evidence that a network does not follow."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halpiee import trace
from halpiee.structure.verification import verify


class BorderMask(nn.Module):
    """Writes numbers into slices of a mask over positions, as Swin does to tell its windows apart."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x).relu()
        mask = x.new_ones(x.shape[-2:])
        mask[:1, :] = 0
        mask[:, 2:4] = 0.5
        mask[mask > 0.8] = 2
        return self.fc((self.b(x) * mask).relu().mean((2, 3)))


class Recurrent(nn.Module):
    """Convolutions, a linear layer that feeds a recurrent one, and a head."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 6, 3, padding=1)
        self.into = nn.Linear(6, 7)
        self.recurrent = kind(7, 4, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.b(self.a(x).relu()).relu().mean(2).transpose(1, 2)
        return self.out(self.recurrent(self.into(x))[0])


def test_a_number_written_into_a_slice_freezes_nothing() -> None:
    model, x = BorderMask().eval(), torch.randn(2, 3, 8, 8)
    structure = trace(model, (x,))
    assert [g.name for g in structure.prunable] == ["a", "b"]
    keep = {"a": torch.arange(8) % 3 > 0, "b": torch.arange(8) > 2}
    assert verify(model, structure, keep, (x,)) < 1e-5


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_keeps_only_what_it_reads(kind: type[nn.LSTM | nn.GRU]) -> None:
    model, x = Recurrent(kind).eval(), torch.randn(2, 1, 6, 5)
    structure = trace(model, (x,))
    assert [g.name for g in structure.prunable] == ["a", "b"]
    assert "recurrent" in str(structure.by_name["into"].reason)
    keep = {"a": torch.arange(8) % 3 > 0, "b": torch.arange(6) > 2}
    assert verify(model, structure, keep, (x,)) < 1e-5
