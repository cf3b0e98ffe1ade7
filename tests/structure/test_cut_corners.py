"""Ways of writing a forward that have led tools astray, of which channels can go: each is cut exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halpiee.structure import trace

from .corners import IMAGE, TOKENS, Net, ab, is_cut_exactly, number

sigmoid = torch.sigmoid


def class_token(m: Any, x: Tensor) -> Any:
    y = torch.cat([m.token.expand(2, -1, -1), m.a(x)], 1) + m.positions
    return m.b(m.norm(y)[:, 0])


def halves(m: Any, x: Tensor) -> Any:
    y = sigmoid(m.a(x))
    half = y.shape[1] // 2
    return m.b(torch.cat([y[:, half:] * y[:, :half], y[:, :half]], 1))


def halves_split(m: Any, x: Tensor) -> Any:
    p, q = torch.split(y := sigmoid(m.a(x)), y.shape[1] // 2, 1)
    return m.b(torch.cat([p * q, p + q], 1))


def halves_of_a_weight(m: Any, x: Tensor) -> Any:
    half = m.a.weight.shape[0] // 2
    p, q = m.a.weight[:half], m.a.weight[half:]
    return m.b(sigmoid(F.conv2d(x, p)) * F.conv2d(x, q))


def thirds(m: Any, x: Tensor) -> Any:
    p, q, _ = sigmoid(m.a(x)).tensor_split(3, 1)
    return m.b(torch.cat([p, q], 1))


def in_turns(m: Any, x: Tensor) -> Any:
    y = sigmoid(m.a(x))
    return m.b(torch.cat([y[:, ::2], y[:, 1::2]], 1))


def not_local(m: Any, x: Tensor) -> Any:
    y = sigmoid(m.a(x))
    q, k, v = (part(y).flatten(2) for part in (m.q, m.k, m.v))
    z = ((q.transpose(1, 2) @ k).softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)
    return m.b(y + m.o(z.reshape(2, -1, 8, 8)))


def resized_positions(m: Any, x: Tensor) -> Any:
    positions = F.interpolate(m.positions, size=(8, 8), mode="bicubic", align_corners=False)
    return m.b(sigmoid(m.a(x)) + (positions + m.window.tile(1, 1, 2, 2)))


def space_to_depth(m: Any, x: Tensor) -> Any:
    y: Any = sigmoid(m.a(x))
    return m.b(y.unflatten(2, (4, 2)).unflatten(4, (4, 2)).permute(0, 3, 5, 1, 2, 4).flatten(1, 3))


def modulated(m: Any, x: Tensor) -> Any:
    query, context, gate = torch.split(m.f(sigmoid(m.a(x))), [4, 4, 1], 1)
    return m.b(query * m.h(context * gate))


def blurred() -> Net:
    """A fixed filter for each channel, whose number the module holds, in a module of its own."""

    def forward(m: Any, x: Tensor) -> Any:
        return m.b(F.conv2d(m.c(sigmoid(m.a(x))), m.blur.filter, groups=len(m.blur.filter)))

    return ab(forward, c=nn.Conv2d(8, 8, 1), blur=Net(sigmoid, filter=torch.ones(8, 1, 1, 1)))


CUT: dict[str, tuple[Callable[[], Net], tuple[int, ...], set[str]]] = {
    "a tensor beside itself": (
        lambda: Net(
            lambda m, x: m.b(torch.cat([y := sigmoid(m.a(x)), y], 1)),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(16, 5, 1),
        ),
        IMAGE,
        {"a"},
    ),
    "input beside channels": (
        lambda: Net(
            lambda m, x: m.b(torch.cat([sigmoid(m.a(x)), x], 1)), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(9, 5, 1)
        ),
        IMAGE,
        {"a"},
    ),
    "constants beside channels": (
        lambda: Net(
            lambda m, x: m.b(torch.cat([sigmoid(m.a(x)), x.new_ones(2, 2, 8, 8)], 1)),
            a=nn.Conv2d(3, 6, 1),
            b=nn.Conv2d(8, 5, 1),
        ),
        IMAGE,
        {"a"},
    ),
    "flipped channels": (lambda: ab(lambda m, x: m.b(sigmoid(m.a(x)).flip(1))), IMAGE, {"a"}),
    "rolled positions": (lambda: ab(lambda m, x: m.b(sigmoid(m.a(x)).roll((1, 1), (2, 3)))), IMAGE, {"a"}),
    "channel shuffle op": (lambda: ab(lambda m, x: m.b(F.channel_shuffle(sigmoid(m.a(x)), 2))), IMAGE, {"a"}),
    "pixel unshuffle": (
        lambda: Net(
            lambda m, x: m.b(F.pixel_unshuffle(sigmoid(m.a(x)), 2)),
            a=nn.Conv2d(3, 4, 1),
            b=nn.Conv2d(16, 5, 1),
        ),
        IMAGE,
        {"a"},
    ),
    "gated linear unit op": (lambda: ab(lambda m, x: m.b(F.glu(m.a(x), 1)), width=16), IMAGE, {"a"}),
    "stacked and summed": (
        lambda: ab(lambda m, x: m.b(sigmoid(torch.stack([m.a(x), m.c(x)]).sum(0))), c=nn.Conv2d(3, 8, 1)),
        IMAGE,
        {"a"},
    ),
    "learned weights of branches": (
        lambda: ab(
            lambda m, x: m.b(sigmoid(m.a(x) * m.w.softmax(0)[0] + m.c(x) * m.w.softmax(0)[1])),
            c=nn.Conv2d(3, 8, 1),
            w=number(2),
        ),
        IMAGE,
        {"a"},
    ),
    "gate of one channel": (
        lambda: ab(
            lambda m, x: m.b((y := sigmoid(m.a(x))) * sigmoid(m.g(y))), g=nn.Conv2d(8, 1, 3, padding=1)
        ),
        IMAGE,
        {"a"},
    ),
    "border set to zero in place": (
        lambda: ab(lambda m, x: m.b((y := sigmoid(m.a(x)).clone(), y[:, :, 0].zero_())[0])),
        IMAGE,
        {"a"},
    ),
    "weight minus its mean over inputs": (
        lambda: ab(
            lambda m, x: F.conv2d(m.a(x).relu(), m.b.weight - m.b.weight.mean((1, 2, 3), keepdim=True))
        ),
        IMAGE,
        {"a"},
    ),
    "standardised weight": (
        lambda: ab(
            lambda m, x: m.b(
                sigmoid(F.conv2d(x, m.a.weight / (m.a.weight.std((1, 2, 3), keepdim=True) + 0.1), m.a.bias))
            )
        ),
        IMAGE,
        {"a"},
    ),
    "scaled weight": (
        lambda: ab(
            lambda m, x: F.conv2d(sigmoid(m.a(x)), m.b.weight * m.rows * m.columns, m.b.bias),
            rows=number(5, 1, 1, 1),
            columns=number(1, 8, 1, 1),
        ),
        IMAGE,
        {"a"},
    ),
    "one weight in two layers": (
        lambda: Net(
            lambda m, x: m.d(sigmoid(F.conv2d(sigmoid(m.b(sigmoid(m.a(x)))), m.b.weight, m.b.bias))),
            a=nn.Conv2d(3, 6, 1),
            b=nn.Conv2d(6, 6, 1),
            d=nn.Conv2d(6, 2, 1),
        ),
        IMAGE,
        {"a"},
    ),
    "prelu of one slope a channel": (lambda: ab(lambda m, x: m.b(m.p(m.a(x))), p=nn.PReLU(8)), IMAGE, {"a"}),
    "norm without affine": (
        lambda: ab(lambda m, x: m.b(sigmoid(m.n(m.a(x)))), n=nn.BatchNorm2d(8, affine=False)),
        IMAGE,
        {"a"},
    ),
    "where": (lambda: ab(lambda m, x: m.b(torch.where((y := m.a(x)) > 0, y, y * 0.1 - 0.3))), IMAGE, {"a"}),
    "maximum of two": (
        lambda: ab(lambda m, x: m.b(torch.maximum(m.a(x), m.c(x))), c=nn.Conv2d(3, 8, 1)),
        IMAGE,
        {"a"},
    ),
    "resized": (
        lambda: ab(lambda m, x: m.b(sigmoid(F.interpolate(m.a(x), scale_factor=2, mode="bilinear")))),
        IMAGE,
        {"a"},
    ),
    "sum over positions by cumsum": (lambda: ab(lambda m, x: m.b(sigmoid(m.a(x)).cumsum(2))), IMAGE, {"a"}),
    "two norms of groups on one stream": (
        lambda: ab(
            lambda m, x: m.b((y := sigmoid(m.n(m.a(x)))) + sigmoid(m.n2(m.g(y)))),
            n=nn.GroupNorm(2, 8),
            n2=nn.GroupNorm(4, 8),
            g=nn.Conv2d(8, 8, 1),
        ),
        IMAGE,
        {"a"},
    ),
    "norm groups across conv groups": (
        lambda: Net(
            lambda m, x: m.b(sigmoid(m.g(sigmoid(m.n(m.a(x)))))),
            a=nn.Conv2d(3, 12, 1),
            n=nn.GroupNorm(2, 12),
            g=nn.Conv2d(12, 12, 1, groups=3),
            b=nn.Conv2d(12, 5, 1),
        ),
        IMAGE,
        {"a", "g"},
    ),
    "unflattened by shape": (
        lambda: Net(
            lambda m, x: m.b(sigmoid(m.a(x)).view(x.shape[0], -1, 2, 2)),
            a=nn.Linear(3, 24),
            b=nn.Conv2d(6, 5, 1),
        ),
        (2, 3),
        {"a"},
    ),
    "einsum": (
        lambda: Net(
            lambda m, x: torch.einsum("bnc,dc->bdn", sigmoid(m.a(x)), m.w), a=nn.Linear(3, 8), w=number(5, 8)
        ),
        TOKENS,
        {"a"},
    ),
    "weight on the left": (
        lambda: Net(lambda m, x: m.w @ sigmoid(m.a(x)).T, a=nn.Linear(3, 8), w=number(5, 8)),
        (4, 3),
        {"a"},
    ),
    "class token and positions": (
        lambda: Net(
            class_token,
            a=nn.Linear(3, 8),
            token=number(1, 1, 8),
            positions=number(1, 5, 8),
            norm=nn.LayerNorm(8),
            b=nn.Linear(8, 5),
        ),
        TOKENS,
        {"a"},
    ),
    "positions resized to the image, beside those of a window": (
        lambda: ab(resized_positions, positions=number(1, 8, 3, 3), window=number(1, 8, 4, 4)),
        IMAGE,
        {"a"},
    ),
    "no position at all beside all of them": (
        lambda: ab(lambda m, x: m.b(torch.cat([(y := sigmoid(m.a(x)))[..., :0], y], 3))),
        IMAGE,
        {"a"},
    ),
    "channels and a gate that stay, cut by numbers": (
        lambda: Net(
            modulated,
            a=nn.Conv2d(3, 8, 1),
            f=nn.Conv2d(8, 9, 1),
            h=nn.Conv2d(4, 4, 1),
            b=nn.Conv2d(4, 5, 1),
        ),
        IMAGE,
        {"a"},
    ),
    "a filter of its own for each channel": (blurred, IMAGE, {"a", "c"}),
    "halves by a slice of half the width": (lambda: ab(halves), IMAGE, {"a"}),
    "halves by a split of half the width": (lambda: ab(halves_split), IMAGE, {"a"}),
    "halves of a weight": (
        lambda: Net(halves_of_a_weight, a=nn.Conv2d(3, 16, 1, bias=False), b=nn.Conv2d(8, 5, 1)),
        IMAGE,
        {"a"},
    ),
    "thirds, one of them unused": (
        lambda: Net(thirds, a=nn.Conv2d(3, 12, 1), b=nn.Conv2d(8, 5, 1)),
        IMAGE,
        {"a"},
    ),
    "channels in turns": (lambda: ab(in_turns), IMAGE, {"a"}),
    "sampled at a grid": (
        lambda: ab(
            lambda m, x: m.b(
                F.grid_sample(sigmoid(m.a(x)), torch.tanh(x[:, :2].permute(0, 2, 3, 1)), align_corners=False)
            )
        ),
        IMAGE,
        {"a"},
    ),
    "root mean square norm": (
        lambda: Net(lambda m, x: m.b(m.n(m.a(x))), a=nn.Linear(3, 8), n=nn.RMSNorm(8), b=nn.Linear(8, 5)),
        TOKENS,
        {"a"},
    ),
    "attention over positions": (
        lambda: ab(
            not_local, q=nn.Conv2d(8, 4, 1), k=nn.Conv2d(8, 4, 1), v=nn.Conv2d(8, 6, 1), o=nn.Conv2d(6, 8, 1)
        ),
        IMAGE,
        {"a", "q", "v"},
    ),
    "space to depth": (
        lambda: Net(
            space_to_depth,
            a=nn.Conv2d(3, 6, 1),
            b=nn.Conv2d(24, 5, 1),
        ),
        IMAGE,
        {"a"},
    ),
    "transposed in one dimension": (
        lambda: Net(
            lambda m, x: m.b(sigmoid(m.u(m.a(x)))),
            a=nn.Conv1d(3, 8, 1),
            u=nn.ConvTranspose1d(8, 6, 2, 2),
            b=nn.Conv1d(6, 5, 1),
        ),
        (2, 3, 8),
        {"a", "u"},
    ),
    "transposed in three dimensions": (
        lambda: Net(
            lambda m, x: m.b(sigmoid(m.u(m.a(x)))),
            a=nn.Conv3d(3, 8, 1),
            u=nn.ConvTranspose3d(8, 6, 2, 2),
            b=nn.Conv3d(6, 5, 1),
        ),
        (2, 3, 4, 4, 4),
        {"a", "u"},
    ),
    "grouped in one dimension": (
        lambda: Net(
            lambda m, x: m.b(sigmoid(m.u(m.a(x)))),
            a=nn.Conv1d(3, 8, 1),
            u=nn.Conv1d(8, 16, 3, groups=4),
            b=nn.Conv1d(16, 5, 1),
        ),
        (2, 3, 8),
        {"a"},
    ),
    "queries of one stream, keys of another": (
        lambda: Net(
            lambda m, x: m.b(m.r(m.a(x), m.c(x))),
            a=nn.Linear(3, 8),
            c=nn.Linear(3, 8),
            r=nn.TransformerDecoderLayer(8, 2, 16, batch_first=True),
            b=nn.Linear(8, 4),
        ),
        TOKENS,
        {"a", "r.self_attn.in_proj_weight", "r.multihead_attn.in_proj_weight", "r.linear1"},
    ),
    "a module that checks its widths": (
        lambda: Net(
            lambda m, x: m.b(m.r(m.a(x), m.a(x))),
            a=nn.Linear(3, 8),
            r=nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
            b=nn.Linear(8, 4),
        ),
        TOKENS,
        {
            "r.encoder.layers.0.self_attn.in_proj_weight",
            "r.encoder.layers.0.linear1",
            "r.decoder.layers.0.self_attn.in_proj_weight",
            "r.decoder.layers.0.multihead_attn.in_proj_weight",
            "r.decoder.layers.0.linear1",
        },
    ),
    "attention module": (
        lambda: Net(
            lambda m, x: m.h(m.r(y := m.a(x), y, y)[0]),
            a=nn.Linear(8, 8),
            r=nn.MultiheadAttention(8, 2, batch_first=True),
            h=nn.Linear(8, 4),
        ),
        (2, 6, 8),
        {"a", "r.in_proj_weight", "r.out_proj"},
    ),
    "encoder layer": (
        lambda: Net(
            lambda m, x: m.h(m.r(x)),
            r=nn.TransformerEncoderLayer(4, 2, 16, batch_first=True),
            h=nn.Linear(4, 3),
        ),
        (2, 6, 4),
        {"r.linear1", "r.self_attn.in_proj_weight"},
    ),
}
"""What is cut: builder, input shape, names of the prunable groups."""


@pytest.mark.parametrize("name", CUT)
def test_what_can_be_cut_is_cut_exactly(name: str) -> None:
    is_cut_exactly(*CUT[name])


def test_nothing_beside_nothing_holds_no_channels() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        none = x[:, :, :0]  # as where a detector finds no object
        return m.b(sigmoid(m.a(x))), torch.cat([none, none], 2)

    model = Net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 5, 1)).eval()
    assert {g.name for g in trace(model, (torch.ones(IMAGE),)).prunable} == {"a"}


class Sized(nn.Module):
    """A block that knows the size of its images, and may know its channels."""

    def __init__(self, size: int, dim: int | None) -> None:
        super().__init__()
        self.width = self.height = size
        self.dim = dim
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.mix = nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Any:
        y = sigmoid(self.conv(x))
        y = y.view(y.shape[0], self.dim or y.shape[1], self.height * self.width)
        return self.mix(sigmoid(y)).view(y.shape[0], -1, self.height, self.width)


@pytest.mark.parametrize("dim", [None, 8], ids=["by the shape", "by an attribute"])
def test_an_attribute_that_only_happens_to_equal_the_channels_holds_none(dim: int | None) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.b(sigmoid(m.s(sigmoid(m.r(sigmoid(m.a(x)))))))

    def build() -> Net:
        parts = {"r": Sized(8, dim), "s": Sized(8, dim)}
        return Net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 5, 1), **parts)

    is_cut_exactly(build, (2, 3, 8, 8), {"a", "r.conv", "r.mix", "s.conv", "s.mix"})
