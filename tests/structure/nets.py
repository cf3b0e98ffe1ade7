"""Little networks, one per way that channels can hang together, and what the tests compare with."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and statistic an irregular value, so that nothing is equal by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return model


def random_keep(structure: Any, seed: int = 0, share: float = 0.5) -> dict[str, Tensor]:
    """Draws a keep of every prunable group with at least one unit."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in structure.prunable:
        mask = torch.rand(group.size, generator=generator) < share
        mask[torch.randint(group.size, (1,), generator=generator)] = True
        keep[group.name] = mask
    return keep


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(x))
        x = torch.sigmoid(x + self.conv2(F.silu(self.bn1(self.conv1(x)))))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(10)
        self.join = nn.Conv2d(10, 5, 1)
        self.head = nn.Conv2d(15, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.sigmoid(self.bn(torch.cat([self.a(x), self.b(x)], 1)))
        return self.head(torch.cat([both, self.join(both)], 1))


class Depthwise(nn.Module):
    def __init__(self, multiplier: int = 1) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1)
        self.depth = nn.Conv2d(8, 8 * multiplier, 3, padding=1, groups=8)
        self.bn = nn.BatchNorm2d(8 * multiplier)
        self.project = nn.Conv2d(8 * multiplier, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.hardswish(self.bn(self.depth(F.hardsigmoid(self.expand(x))))))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.g = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.b = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sigmoid(self.g(torch.sigmoid(self.a(x)))))


class GroupedShuffled(nn.Module):
    """Two grouped convolutions with a channel shuffle between: groups do not align."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.g1 = nn.Conv2d(8, 16, 1, groups=4)
        self.g2 = nn.Conv2d(16, 8, 1, groups=4)
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.g1(torch.sigmoid(self.a(x))))
        n, c, h, w = x.shape
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.b(torch.sigmoid(self.g2(x)))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.squeeze = nn.Conv2d(8, 3, 1)
        self.excite = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(x * gate)


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 4, 1)
        self.c = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(torch.cat([self.a(x), self.b(x)], 1))
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.c(x)


class ChunkReuse(nn.Module):
    """Both halves and what comes of one of them, concatenated (as in YOLO's C2f)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.m = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.sigmoid(self.a(x)).chunk(2, 1)
        return self.b(torch.cat([first, second, second + self.m(second)], 1))


class Glu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.b = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.a(x).chunk(2, 1)
        return self.b(value * torch.sigmoid(gate))


class SplitLiteral(nn.Module):
    """Parts whose sizes are written as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.mid = nn.Conv2d(6, 7, 1)
        self.b = nn.Conv2d(2 + 7, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(self.a(x), [2, 6], 1)
        return self.b(torch.cat([first, torch.sigmoid(self.mid(second))], 1))


class Flatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(6 * 4, 7)
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.sigmoid(self.conv(x)), 4)
        return self.head(torch.tanh(self.fc(x.view(x.size(0), -1))))


class NhwcFlatten(Flatten):
    """The channels run fastest behind the flatten."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.sigmoid(self.conv(x)), 4)
        return self.head(torch.tanh(self.fc(x.permute(0, 2, 3, 1).flatten(1))))


class Shared(nn.Module):
    """One convolution used twice, at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.twice(torch.sigmoid(self.stem(x))))
        return self.head(torch.sigmoid(self.twice(F.max_pool2d(x, 2))))


class Functional(nn.Module):
    """Convolutions with parameters of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(6, 3, 3, 3))
        self.shift = nn.Parameter(torch.zeros(6))
        self.matrix = nn.Parameter(torch.zeros(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(F.conv2d(x, self.kernel, self.shift))
        return x.mean((2, 3)) @ self.matrix


class InputResidual(nn.Module):
    """A residual onto the network's input."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 3, 3, padding=1)
        self.c = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.sigmoid(x + self.b(torch.sigmoid(self.a(x)))))


class LayerNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 8)
        self.norm = nn.LayerNorm(8)
        self.b = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.gelu(self.norm(self.a(x))))


class GroupNormed(nn.Module):
    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.norm = nn.GroupNorm(groups, 8)
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sigmoid(self.norm(self.a(x))))


class InstanceNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.norm = nn.InstanceNorm2d(8, affine=True)
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sigmoid(self.norm(self.a(x))))


class Transposed(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.up = nn.ConvTranspose2d(8, 6 if groups == 1 else 16, 2, stride=2, groups=groups)
        self.b = nn.Conv2d(6 if groups == 1 else 16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sigmoid(self.up(torch.sigmoid(self.a(x)))))


class PixelShuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 1)
        self.up = nn.PixelShuffle(2)
        self.b = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sigmoid(self.up(self.a(x))))


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.table(tokens)).sum(1))


class OneDimensional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(3, 8, 3)
        self.bn = nn.BatchNorm1d(8)
        self.b = nn.Conv1d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.avg_pool1d(torch.sigmoid(self.bn(self.a(x))), 2))


class ThreeDimensional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv3d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm3d(8)
        self.b = nn.Conv3d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.max_pool3d(torch.sigmoid(self.bn(self.a(x))), 2))


class PaddedShortcut(nn.Module):
    """A skip whose missing channels are filled with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(4, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.a(x))
        return self.c(torch.sigmoid(self.b(x) + F.pad(x, (0, 0, 0, 0, 2, 2))))


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.scale = nn.Parameter(torch.zeros(8, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, 8, 1, 1))
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sigmoid(self.a(x) * self.scale + self.shift))


class Outputs(nn.Module):
    """Two outputs, nested, one of them in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.b = nn.Conv2d(6, 8, 1)
        self.c = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = torch.sigmoid(self.a(x))
        middle = self.b(features)
        return {"aux": [middle], "out": self.c(torch.sigmoid(middle))}


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 6, 1)
        self.vector = nn.Linear(4, 6)
        self.head = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.image(x) + self.vector(v)[:, :, None, None]))


class Mixer(nn.Module):
    """Ops over channels that change when one goes."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 6, 1)
        self.c = nn.Conv2d(6, 5, 1)
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.op == "softmax":
            x = x.softmax(1)
        elif self.op == "mean":
            x = x * x.mean(1, keepdim=True)
        elif self.op == "amax":
            x = x * x.amax(1, keepdim=True)
        elif self.op == "lrn":
            x = F.local_response_norm(x, 3)
        elif self.op == "sort":
            x = x.sort(1).values
        elif self.op == "cumsum":
            x = x.cumsum(1)
        elif self.op == "fft":
            x = torch.fft.rfft(x, dim=1, n=14).real
        return self.c(torch.sigmoid(self.b(x)))


class ChannelSum(nn.Module):
    """A spatial gate from a sum over channels, of zeros where a channel is gone or not."""

    def __init__(self, act: str) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 5, 1)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.relu(x) if self.act == "relu" else torch.sigmoid(x)
        return self.b(x * torch.tanh(x.sum(1, keepdim=True)))


class WidthScalar(nn.Module):
    """Divides by the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(torch.sigmoid(x / x.shape[1])).view(x.shape[0], -1)


class SliceHalf(nn.Module):
    """A slice up to a number, the rest unused."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sigmoid(self.a(x))[:, :3])


class Attention(nn.Module):
    """Self-attention whose shapes follow its projections; the scale is a number."""

    def __init__(self, fused: bool, joint: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 24) if joint else None
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3)) if not joint else (None, None, None)
        self.out = nn.Linear(8, 5)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        parts = self.qkv(x).chunk(3, -1) if self.qkv is not None else (self.q(x), self.k(x), self.v(x))
        q, k, v = (p.view(n, t, 2, -1).transpose(1, 2) for p in parts)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        else:
            y = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, -1))


IMAGE = (2, 3, 8, 8)

PRUNED: dict[str, tuple[Any, tuple[int, ...]]] = {
    "residual": (Residual, IMAGE),
    "concat": (Concat, IMAGE),
    "depthwise": (Depthwise, IMAGE),
    "depthwise with multiplier": (lambda: Depthwise(2), IMAGE),
    "grouped": (Grouped, IMAGE),
    "grouped, shuffled": (GroupedShuffled, IMAGE),
    "gate": (Gate, IMAGE),
    "shuffle": (Shuffle, IMAGE),
    "chunk with reuse": (ChunkReuse, IMAGE),
    "glu": (Glu, IMAGE),
    "split by numbers": (SplitLiteral, IMAGE),
    "flatten": (Flatten, IMAGE),
    "nhwc flatten": (NhwcFlatten, IMAGE),
    "shared": (Shared, IMAGE),
    "functional": (Functional, IMAGE),
    "input residual": (InputResidual, IMAGE),
    "layer norm": (LayerNormed, (2, 4, 3)),
    "group norm": (GroupNormed, IMAGE),
    "group norm of one group": (lambda: GroupNormed(1), IMAGE),
    "instance norm": (InstanceNormed, IMAGE),
    "transposed": (Transposed, IMAGE),
    "transposed, grouped": (lambda: Transposed(4), IMAGE),
    "transposed, depthwise": (lambda: Transposed(8), IMAGE),
    "one dimension": (OneDimensional, (2, 3, 8)),
    "three dimensions": (ThreeDimensional, (2, 3, 4, 4, 4)),
    "layer scale": (LayerScale, IMAGE),
    "outputs": (Outputs, IMAGE),
    "channel sum": (lambda: ChannelSum("relu"), IMAGE),
    "pixel shuffle": (PixelShuffled, IMAGE),
    "attention": (lambda: Attention(False), (2, 5, 6)),
    "attention, fused": (lambda: Attention(True), (2, 5, 6)),
    "attention, joint": (lambda: Attention(False, True), (2, 5, 6)),
}
"""Networks of which something can be removed: builder and input shape."""
