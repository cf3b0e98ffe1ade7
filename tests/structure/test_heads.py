"""Whole attention heads: against modules written without them, and what shares the module's other duties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halpiee.structure import masked, relative_error, shrink, trace, verify

from . import nets


class Attending(nn.Module):
    """Attention of 3 heads of width 4 between two layers."""

    def __init__(self, weights: bool = False) -> None:
        super().__init__()
        self.a = nn.Linear(5, 12)
        self.attn = nn.MultiheadAttention(12, 3, batch_first=True)
        self.b = nn.Linear(12, 4)
        self.weights = weights

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        y, weights = self.attn(y, y, y)
        return (self.b(y), weights) if self.weights else self.b(y)


class Named(nn.Module):
    """Attention whose forward takes its sizes from its own attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = 3, 4, 12
        self.scale = 0.5
        self.qkv = nn.Linear(6, 36)
        self.proj = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        n, t, _ = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(n, t, self.attn_dim))


def by_hand(
    qkv: tuple[Tensor, Tensor | None], proj: tuple[Tensor, Tensor], x: Tensor, heads: list[int]
) -> Tensor:
    """Attention over the given ones of 3 heads of width 4, head by head, scores times 1/2 = 4 ** -0.5."""
    y = proj[1].expand(*x.shape[:2], -1)
    for head in heads:
        q, k, v = (
            F.linear(
                x,
                qkv[0][12 * part + 4 * head :][:4],
                None if qkv[1] is None else qkv[1][12 * part + 4 * head :][:4],
            )
            for part in range(3)
        )
        y = y + F.linear((q @ k.transpose(1, 2) / 2).softmax(-1) @ v, proj[0][:, 4 * head : 4 * head + 4])
    return y


@pytest.mark.parametrize("kept", [[0], [2], [0, 2]])
def test_an_attention_module_without_heads_is_the_sum_over_the_others(kept: list[int]) -> None:
    model = nets.randomise(Attending()).double().eval()
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    structure = trace(model, (x,))
    keep = {"attn.in_proj_weight": torch.tensor([head in kept for head in range(3)])}
    m = model.attn
    with torch.no_grad():
        y = by_hand(
            (m.in_proj_weight, m.in_proj_bias), (m.out_proj.weight, m.out_proj.bias), model.a(x), kept
        )
        expected = model.b(y)
        assert relative_error(shrink(model, structure, keep)(x), expected) <= 1e-12
        assert relative_error(masked(model, structure, keep)(x), expected) <= 1e-12


@pytest.mark.parametrize("kept", [[1], [0, 2]])
def test_heads_that_a_module_holds_as_numbers_go_with_the_numbers(kept: list[int]) -> None:
    model = nets.randomise(Named()).double().eval()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    structure = trace(model, (x,))
    keep = {"qkv": torch.tensor([head in kept for head in range(3)])}
    compact: Any = shrink(model, structure, keep)
    with torch.no_grad():
        expected = by_hand((model.qkv.weight, model.qkv.bias), (model.proj.weight, model.proj.bias), x, kept)
        assert relative_error(compact(x), expected) <= 1e-12
    assert (compact.num_heads, compact.head_dim, compact.attn_dim) == (len(kept), 4, 4 * len(kept))


def test_weights_averaged_over_heads_hold_them_only_where_they_are_used() -> None:
    x = torch.randn(2, 6, 5)
    free = trace(Attending(), (x,)).by_name["attn.in_proj_weight"]
    held = trace(Attending(weights=True), (x,)).by_name["attn.in_proj_weight"]
    assert (free.size, free.prunable) == (3, True)
    assert (held.prunable, held.reason) == (False, "mean in attn over channels")


def test_a_transformer_encoder_runs_narrow_in_its_fast_path_too() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nets.randomise(nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2))).eval()
    x = torch.randn(2, 6, 3)
    structure = trace(model, (x,))
    keep = {"1.self_attn.in_proj_weight": torch.tensor([True, False])}
    assert verify(model, structure, keep, (x,)) <= 1e-5
    compact: Any = shrink(model, structure, keep)
    assert isinstance(compact[1].self_attn, nn.MultiheadAttention)
    assert list(compact.state_dict()) == list(model.state_dict())
    assert compact[1].self_attn.in_proj_weight.shape == (12, 8)


def test_mixing_tokens_leaves_channels_prunable() -> None:
    class TokenMixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.mix, self.b = nn.Linear(3, 8), nn.Linear(6, 6), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Any:
            return self.b(torch.sigmoid(self.mix(self.a(x).transpose(1, 2)).transpose(1, 2)))

    model = nets.randomise(TokenMixer()).double().eval()
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    structure = trace(model, (x,))
    assert structure.by_name["a"].prunable
    kept = [0, 3, 4]
    keep = {"a": torch.tensor([i in kept for i in range(8)])}
    with torch.no_grad():
        hidden = F.linear(x, model.a.weight[kept], model.a.bias[kept])
        mixed = torch.sigmoid(model.mix(hidden.transpose(1, 2)).transpose(1, 2))
        expected = F.linear(mixed, model.b.weight[:, kept], model.b.bias)
        assert relative_error(shrink(model, structure, keep)(x), expected) <= 1e-12
        assert relative_error(masked(model, structure, keep)(x), expected) <= 1e-12


def test_two_inputs_in_one_batch_leave_the_layers_behind_them_prunable() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor, z: Tensor) -> Any:
            return self.b(torch.sigmoid(self.a(torch.cat([x, z]))))

    inputs = (torch.randn(nets.IMAGE), torch.randn(nets.IMAGE))
    assert trace(Pair(), inputs).by_name["a"].prunable
