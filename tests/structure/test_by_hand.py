"""Pruned networks against the same networks written by hand without those channels.

Each reference takes the full network's tensors, picks the kept rows and columns by hand and computes the
output with ``torch.nn.functional`` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halpiee.structure import masked, shrink, trace

from . import nets

Reference = Callable[[nn.Module, dict[str, list[int]], Tensor], Tensor]


def residual(m: Any, k: dict[str, list[int]], x: Tensor) -> Tensor:
    s, c = k["stem"], k["conv1"]
    x = torch.sigmoid(F.conv2d(x, m.stem.weight[s], m.stem.bias[s], padding=1))
    y = F.conv2d(x, m.conv1.weight[c][:, s], padding=1)
    b = m.bn1
    y = F.batch_norm(y, b.running_mean[c], b.running_var[c], b.weight[c], b.bias[c], eps=b.eps)
    y = F.conv2d(F.silu(y), m.conv2.weight[s][:, c], m.conv2.bias[s], padding=1)
    return F.linear(torch.sigmoid(x + y).mean((2, 3)), m.head.weight[:, s], m.head.bias)


def concat(m: Any, k: dict[str, list[int]], x: Tensor) -> Tensor:
    a, b, j = k["a"], k["b"], k["join"]
    both = a + [4 + i for i in b]
    x = torch.cat(
        [F.conv2d(x, m.a.weight[a], m.a.bias[a]), F.conv2d(x, m.b.weight[b], m.b.bias[b], padding=1)], 1
    )
    n = m.bn
    x = F.batch_norm(x, n.running_mean[both], n.running_var[both], n.weight[both], n.bias[both], eps=n.eps)
    x = torch.sigmoid(x)
    y = F.conv2d(x, m.join.weight[j][:, both], m.join.bias[j])
    return F.conv2d(torch.cat([x, y], 1), m.head.weight[:, both + [10 + i for i in j]], m.head.bias)


def depthwise(m: Any, k: dict[str, list[int]], x: Tensor) -> Tensor:
    e = k["expand"]
    x = F.hardsigmoid(F.conv2d(x, m.expand.weight[e], m.expand.bias[e]))
    x = F.conv2d(x, m.depth.weight[e], m.depth.bias[e], padding=1, groups=len(e))
    b = m.bn
    x = F.batch_norm(x, b.running_mean[e], b.running_var[e], b.weight[e], b.bias[e], eps=b.eps)
    return F.conv2d(F.hardswish(x), m.project.weight[:, e], m.project.bias)


def grouped(m: Any, k: dict[str, list[int]], x: Tensor) -> Tensor:
    groups = k["a"]  # whole groups: two channels in, four out
    a = [2 * g + i for g in groups for i in range(2)]
    g = [4 * g + i for g in groups for i in range(4)]
    x = torch.sigmoid(F.conv2d(x, m.a.weight[a], m.a.bias[a]))
    x = torch.sigmoid(F.conv2d(x, m.g.weight[g], m.g.bias[g], padding=1, groups=len(groups)))
    return F.conv2d(x, m.b.weight[:, g], m.b.bias)


def gate(m: Any, k: dict[str, list[int]], x: Tensor) -> Tensor:
    c, s = k["conv"], k["squeeze"]
    x = F.silu(F.conv2d(x, m.conv.weight[c], m.conv.bias[c], padding=1))
    z = F.relu(F.conv2d(x.mean((2, 3), keepdim=True), m.squeeze.weight[s][:, c], m.squeeze.bias[s]))
    z = torch.sigmoid(F.conv2d(z, m.excite.weight[c][:, s], m.excite.bias[c]))
    return F.conv2d(x * z, m.head.weight[:, c], m.head.bias)


def shuffle(m: Any, k: dict[str, list[int]], x: Tensor) -> Any:
    a = k["a"]  # channel j of one branch with channel j of the other
    p = torch.sigmoid(F.conv2d(x, m.a.weight[a], m.a.bias[a]))
    q = torch.sigmoid(F.conv2d(x, m.b.weight[a], m.b.bias[a]))
    y: Any = 0
    for place, channel in enumerate(a):  # after the shuffle they alternate: a0 b0 a1 b1 …
        y = y + F.conv2d(p[:, [place]], m.c.weight[:, [2 * channel]])
        y = y + F.conv2d(q[:, [place]], m.c.weight[:, [2 * channel + 1]])
    return y + m.c.bias[:, None, None]


def chunk_reuse(m: Any, k: dict[str, list[int]], x: Tensor) -> Tensor:
    j = k["a"]  # channel j of the first half with channel j of the second, and of the inner convolution
    first = torch.sigmoid(F.conv2d(x, m.a.weight[j], m.a.bias[j]))
    second = [4 + i for i in j]
    y = torch.sigmoid(F.conv2d(x, m.a.weight[second], m.a.bias[second]))
    z = y + F.conv2d(y, m.m.weight[j][:, j], m.m.bias[j], padding=1)
    columns = j + second + [8 + i for i in j]
    return F.conv2d(torch.cat([first, y, z], 1), m.b.weight[:, columns], m.b.bias)


def flatten(m: Any, k: dict[str, list[int]], x: Tensor) -> Tensor:
    c, f = k["conv"], k["fc"]
    x = F.max_pool2d(torch.sigmoid(F.conv2d(x, m.conv.weight[c], m.conv.bias[c], padding=1)), 4)
    columns = [4 * i + place for i in c for place in range(4)]
    x = torch.tanh(F.linear(x.flatten(1), m.fc.weight[f][:, columns], m.fc.bias[f]))
    return F.linear(x, m.head.weight[:, f], m.head.bias)


def nhwc_flatten(m: Any, k: dict[str, list[int]], x: Tensor) -> Tensor:
    c, f = k["conv"], k["fc"]
    x = F.max_pool2d(torch.sigmoid(F.conv2d(x, m.conv.weight[c], m.conv.bias[c], padding=1)), 4)
    columns = [6 * place + i for place in range(4) for i in c]
    x = torch.tanh(F.linear(x.permute(0, 2, 3, 1).flatten(1), m.fc.weight[f][:, columns], m.fc.bias[f]))
    return F.linear(x, m.head.weight[:, f], m.head.bias)


def layer_norm(m: Any, k: dict[str, list[int]], x: Tensor) -> Tensor:
    a = k["a"]
    x = F.layer_norm(F.linear(x, m.a.weight[a], m.a.bias[a]), (len(a),), m.norm.weight[a], m.norm.bias[a])
    return F.linear(F.gelu(x), m.b.weight[:, a], m.b.bias)


def group_norm(m: Any, k: dict[str, list[int]], x: Tensor) -> Tensor:
    groups = k["a"]
    a = [2 * g + i for g in groups for i in range(2)]
    x = F.conv2d(x, m.a.weight[a], m.a.bias[a])
    x = torch.sigmoid(F.group_norm(x, len(groups), m.norm.weight[a], m.norm.bias[a]))
    return F.conv2d(x, m.b.weight[:, a], m.b.bias)


def one_group_norm(m: Any, k: dict[str, list[int]], x: Tensor) -> Tensor:
    a = k["a"]
    x = F.conv2d(x, m.a.weight[a], m.a.bias[a])
    x = torch.sigmoid(F.group_norm(x, 1, m.norm.weight[a], m.norm.bias[a]))
    return F.conv2d(x, m.b.weight[:, a], m.b.bias)


def shared(m: Any, k: dict[str, list[int]], x: Tensor) -> Tensor:
    s = k["stem"]
    x = torch.sigmoid(F.conv2d(x, m.stem.weight[s], m.stem.bias[s]))
    w, b = m.twice.weight[s][:, s], m.twice.bias[s]
    x = torch.sigmoid(F.conv2d(x, w, b, padding=1))
    x = torch.sigmoid(F.conv2d(F.max_pool2d(x, 2), w, b, padding=1))
    return F.conv2d(x, m.head.weight[:, s], m.head.bias)


def functional(m: Any, k: dict[str, list[int]], x: Tensor) -> Any:
    c = k["kernel"]
    return torch.sigmoid(F.conv2d(x, m.kernel[c], m.shift[c])).mean((2, 3)) @ m.matrix[c]


def glu(m: Any, k: dict[str, list[int]], x: Tensor) -> Tensor:
    j = k["a"]  # the pair of a value and its gate
    gates = [6 + i for i in j]
    value = F.conv2d(x, m.a.weight[j], m.a.bias[j])
    gate = torch.sigmoid(F.conv2d(x, m.a.weight[gates], m.a.bias[gates]))
    return F.conv2d(value * gate, m.b.weight[:, j], m.b.bias)


def attention(m: Any, k: dict[str, list[int]], x: Tensor) -> Any:
    # dimension j of both heads: rows j and 4 + j
    qk = [[4 * head + j for j in k["q"]] for head in range(2)]
    vs = [[4 * head + j for j in k["v"]] for head in range(2)]
    y = m.out.bias
    for head in range(2):
        query = F.linear(x, m.q.weight[qk[head]], m.q.bias[qk[head]])
        keys = F.linear(x, m.k.weight[qk[head]], m.k.bias[qk[head]])
        values = F.linear(x, m.v.weight[vs[head]], m.v.bias[vs[head]])
        weights = (query * 0.5 @ keys.transpose(1, 2)).softmax(-1)
        y = y + F.linear(weights @ values, m.out.weight[:, vs[head]])
    return y


CASES: list[tuple[Callable[[], nn.Module], Reference, tuple[int, ...], dict[str, list[int]]]] = [
    (nets.Residual, residual, nets.IMAGE, {"stem": [0, 2, 3, 7], "conv1": [1, 5]}),
    (nets.Concat, concat, nets.IMAGE, {"a": [0, 3], "b": [1, 2, 5], "join": [4]}),
    (nets.Depthwise, depthwise, nets.IMAGE, {"expand": [0, 1, 6]}),
    (nets.Grouped, grouped, nets.IMAGE, {"a": [0, 3]}),
    (nets.Gate, gate, nets.IMAGE, {"conv": [1, 2, 6], "squeeze": [0, 2]}),
    (nets.Shuffle, shuffle, nets.IMAGE, {"a": [1, 3]}),
    (nets.ChunkReuse, chunk_reuse, nets.IMAGE, {"a": [0, 2, 3]}),
    (nets.Glu, glu, nets.IMAGE, {"a": [2, 5]}),
    (nets.Flatten, flatten, nets.IMAGE, {"conv": [0, 4, 5], "fc": [1, 6]}),
    (nets.NhwcFlatten, nhwc_flatten, nets.IMAGE, {"conv": [0, 4, 5], "fc": [1, 6]}),
    (nets.LayerNormed, layer_norm, (2, 4, 3), {"a": [0, 3, 4]}),
    (nets.GroupNormed, group_norm, nets.IMAGE, {"a": [1, 2]}),
    (lambda: nets.GroupNormed(1), one_group_norm, nets.IMAGE, {"a": [0, 1, 5]}),
    (nets.Shared, shared, nets.IMAGE, {"stem": [0, 2, 5]}),
    (lambda: nets.Attention(False), attention, (2, 5, 6), {"q": [0, 3], "v": [1]}),
    (lambda: nets.Attention(True), attention, (2, 5, 6), {"q": [0, 3], "v": [1]}),
    (nets.Functional, functional, nets.IMAGE, {"kernel": [0, 4]}),
]


@pytest.mark.parametrize(
    ("builder", "reference", "shape", "kept"),
    CASES,
    ids=[f"{i} {c[1].__name__}" for i, c in enumerate(CASES)],
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["fp32", "fp64"]
)
def test_masked_and_shrunk_equal_the_network_written_without_those_channels(
    builder: Callable[[], nn.Module],
    reference: Reference,
    shape: tuple[int, ...],
    kept: dict[str, list[int]],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = nets.randomise(builder()).to(dtype).eval()
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
    structure = trace(model, (x,))
    assert {g.name for g in structure.prunable} == set(kept)
    keep = {name: torch.zeros(structure.by_name[name].size, dtype=torch.bool) for name in kept}
    for name, units in kept.items():
        keep[name][units] = True
    with torch.no_grad():
        expected = reference(model, kept, x)
        for pruned in (shrink(model, structure, keep), masked(model, structure, keep)):
            error = (pruned(x) - expected).norm() / expected.norm()
            assert error < tolerance
