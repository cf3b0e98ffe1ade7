"""What is timed: one op of a network, with everything its latency depends on.

An op is a convolution, a linear layer or another op that takes time, with its shape and with the *tail* of
cheap ops that follow it and that a runtime may fuse into it. Its JSON form is the key of a profile's cells
(one cell = one op at one (C_in, C_out)).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from latency.errors import UsageError

CHANNEL_KEYS = ("c_in", "c_out", "groups")
"""Keys that change when channels are removed; the others name the op's table."""

IMAGE_CHANNELS = 4
"""At most so many channels are an image, which no pruning changes."""


@dataclass(frozen=True)
class OpSpec:
    """What a kind of op is: one row of ``OPS``, and one builder in each backend that times it."""

    # whether its two sides are different channels; of all others c_out follows from c_in
    contracts: bool = False
    rows: bool = False  # whether channels come last, as those of a linear layer do
    window: bool = False  # whether it has a kernel, a stride and a padding
    inputs: int = 1  # tensors of its input's shape that it reads


OPS: dict[str, OpSpec] = {
    "conv": OpSpec(contracts=True, window=True),
    "conv_transpose": OpSpec(contracts=True, window=True),
    "linear": OpSpec(contracts=True, rows=True),
    "max_pool": OpSpec(window=True),
    "avg_pool": OpSpec(window=True),
    "global_avg_pool": OpSpec(),
    "add": OpSpec(inputs=2),
    "mul": OpSpec(inputs=2),
    "concat": OpSpec(),
    "batch_norm": OpSpec(),
    "layer_norm": OpSpec(rows=True),
    "attention": OpSpec(rows=True, inputs=3),
    "product": OpSpec(rows=True, inputs=2),
    "softmax": OpSpec(rows=True),
    "upsample": OpSpec(),
    **dict.fromkeys(("relu", "relu6", "silu", "hardswish", "sigmoid", "hardsigmoid", "gelu"), OpSpec()),
}
"""Kind → what it is; a new kind is a new row."""

CONTRACTIONS = tuple(kind for kind, spec in OPS.items() if spec.contracts)
"""Kinds whose two sides are different channels; of all others c_out follows from c_in."""


@dataclass(frozen=True, kw_only=True)
class Op:
    """One timed op at one size.

    Attributes:
        kind: ``conv`` (1d, 2d or 3d by the length of ``kernel``), ``conv_transpose``, ``linear``, or an op that
            moves or combines activations: ``max_pool``, ``avg_pool``, ``global_avg_pool``, ``add``, ``mul``,
            ``concat``, ``batch_norm``, ``layer_norm``, ``upsample``, or an activation (``relu``, ``relu6``, ``silu``,
            ``hardswish``, ``sigmoid``, ``hardsigmoid``, ``gelu``). For ops other than conv and linear,
            ``c_in`` is what goes in (all inputs of a concat together) and ``c_out`` what comes out.
            Of transformers there are ``attention`` (softmax(q·kᵀ/√D)·v from rows to rows; channels are those of
            all heads), ``product`` (two activations per head, ``[h, D] · [D, w]``) and ``softmax`` (along w of
            every head, the channels). The number of heads is ``groups`` where whole heads can go, and
            ``kernel[0]`` where it stays; h counts queries, w keys.
        c_in: input channels (features of a linear layer).
        c_out: output channels (features of a linear layer).
        d: input depth or frames of a 3d kernel; 1 of all others.
        h: input height; 1 for a linear layer on vectors, the number of tokens for one on sequences.
        w: input width; 1 for 1d inputs and for linear layers.
        batch: images per call.
        kernel: kernel size, one number per spatial dimension; ``()`` where there is none.
        stride: like ``kernel``.
        padding: like ``kernel``.
        dilation: like ``kernel``.
        groups: groups of a convolution; ``groups == c_in`` marks a depthwise one, whose groups shrink with it.
        tail: what follows the op with no other reader in between, in order: ``batch_norm``, an activation, or
            ``add`` (a second tensor of the op's output shape is added). A backend fuses as much of it as its
            runtime does, and the measured time includes all of it.
        dtype: ``float32``, ``float16``, ``bfloat16``, ``int8``.
        layout: ``nchw`` or ``nhwc``.
    """

    kind: str
    c_in: int
    c_out: int
    d: int = 1
    h: int = 1
    w: int = 1
    batch: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    tail: tuple[str, ...] = ()
    dtype: str = "float32"
    layout: str = "nchw"

    def __post_init__(self) -> None:
        for name in ("kernel", "stride", "padding", "dilation", "tail"):
            if not isinstance(getattr(self, name), tuple):
                raise UsageError(
                    f"{name}={getattr(self, name)!r} was given to an op; give a tuple, such as kernel=(3, 3)"
                )

    @property
    def spec(self) -> OpSpec:
        """The row of ``OPS`` of its kind; the defaults where there is none."""
        return OPS.get(self.kind, OpSpec())

    @property
    def spatial(self) -> tuple[int, ...]:
        """Input positions along each dimension of the kernel; ``(h, w)`` where there is no kernel."""
        if self.spec.rows:
            return (self.h, self.w)
        if len(self.kernel) == 3:
            return (self.d, self.h, self.w)
        return (self.h,) if len(self.kernel) == 1 else (self.h, self.w)

    @property
    def depthwise(self) -> bool:
        """Whether input and output channels are the same channels, each with its own kernel."""
        return (
            self.kind in ("conv", "conv_transpose")
            and self.groups > 1
            and self.groups == self.c_in == self.c_out
        )

    @property
    def diagonal(self) -> bool:
        """Whether both sides are the same channels, so that only cells along one line exist.

        True for all but dense convs and linear layers; the sides of a grouped conv shrink together, a group at
        a time.
        """
        return not self.spec.contracts or self.groups > 1 or self.depthwise

    @property
    def reads_image(self) -> bool:
        """Whether the op reads a network's input rather than features: a dense conv of at most four channels.

        Runtimes hold features in blocks of channels and images plainly, so the two are different measurements.
        """
        return self.kind == "conv" and self.groups == 1 and self.c_in <= IMAGE_CHANNELS

    @property
    def weights(self) -> int:
        """Weights of a convolution or a linear layer, without its bias; 0 of all other ops."""
        if not self.spec.contracts:
            return 0
        return self.c_in * self.c_out * math.prod(self.kernel) // self.groups

    @property
    def macs(self) -> int:
        """Multiplications of the op, or, where it has no weights, numbers it reads."""
        positions = self.batch * self.d * self.h * self.w
        if not self.spec.contracts:
            return positions * self.c_in
        step = 1 if self.kind == "conv_transpose" else math.prod(self.stride)
        return positions * self.c_in * self.c_out * math.prod(self.kernel) // (step * self.groups)

    def with_channels(self, c_in: int, c_out: int) -> Op:
        """Returns the same op at another width; a grouped op keeps the width of a group, not their number."""
        groups = max(1, c_in * self.groups // self.c_in) if self.groups > 1 else 1
        return replace(self, c_in=c_in, c_out=c_out, groups=groups)

    def key(self) -> dict[str, Any]:
        """Returns the JSON keys of this op's cell, as a profile writes them."""
        return {
            "op": self.kind,
            "kernel": list(self.kernel),
            "stride": list(self.stride),
            "pad": list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
            "c_in": self.c_in,
            "c_out": self.c_out,
            **({"d": self.d} if len(self.kernel) == 3 else {}),
            "h": self.h,
            "w": self.w,
            "batch": self.batch,
            "tail": list(self.tail),
            "dtype": self.dtype,
            "layout": self.layout,
        }

    @classmethod
    def from_key(cls, key: Mapping[str, Any]) -> Op:
        """Builds the op of a cell; keys that are not the op's (``us``, ``n`` …) are ignored."""
        return cls(
            kind=key["op"],
            c_in=key["c_in"],
            c_out=key["c_out"],
            d=key.get("d", 1),
            h=key.get("h", 1),
            w=key.get("w", 1),
            batch=key.get("batch", 1),
            kernel=tuple(key.get("kernel", ())),
            stride=tuple(key.get("stride", ())),
            padding=tuple(key.get("pad", ())),
            dilation=tuple(key.get("dilation", ())),
            groups=key.get("groups", 1),
            tail=tuple(key.get("tail", ())),
            dtype=key.get("dtype", "float32"),
            layout=key.get("layout", "nchw"),
        )

    def table_key(self) -> str:
        """Returns the canonical JSON of everything but the channel counts: the name of the op's table.

        ``groups`` becomes ``depthwise`` or, of any other grouped conv, the channels of one group on both sides:
        that is what stays when groups are removed. A conv that reads an image has a table of its own.
        """
        key = {k: v for k, v in self.key().items() if k not in CHANNEL_KEYS}
        if self.depthwise:
            key["groups"] = "depthwise"
        elif self.groups > 1:
            key["groups"] = f"{self.c_in // self.groups}x{self.c_out // self.groups}"
        else:
            key["groups"] = 1
        if self.reads_image:
            key["image"] = True
        return json.dumps(key, sort_keys=True, separators=(",", ":"))


def in_words(op: Op) -> str:
    """Returns an op without its widths: ``conv 3×3 /2 at 56×56 batch 1 + relu``."""
    kind = "depthwise conv" if op.depthwise else "conv of an image" if op.reads_image else op.kind
    kernel = " " + "×".join(map(str, op.kernel)) if op.kernel else ""
    stride = f" /{op.stride[0]}" if op.stride and max(op.stride) > 1 else ""
    tail = "".join(f" + {t}" for t in op.tail)
    at = "×".join(map(str, op.spatial if len(op.kernel) == 3 else (op.h, op.w)))
    return f"{kind}{kernel}{stride} at {at} batch {op.batch}{tail}"


def weight_bytes(op: Op) -> int:
    """Returns the bytes of an op's weights."""
    return op.weights * {"float16": 2, "bfloat16": 2, "int8": 1}.get(op.dtype, 4)


def output_size(op: Op) -> tuple[int, ...]:
    """Returns the positions of the op's output, one number per dimension of its kernel; ``(h, w)`` without one."""
    size = op.spatial
    if op.kind == "global_avg_pool":
        return (1,) * len(size)
    if op.kind == "upsample":
        return tuple(s * f for s, f in zip(size, op.stride or (2,) * len(size), strict=True))
    if not op.kernel or op.spec.rows:
        return size
    n = len(op.kernel)
    stride, padding, dilation = filled(op.stride, n, 1), filled(op.padding, n, 0), filled(op.dilation, n, 1)
    geometry = zip(size, op.kernel, stride, padding, dilation, strict=True)
    if op.kind == "conv_transpose":
        return tuple((x - 1) * s - 2 * p + d * (k - 1) + 1 for x, k, s, p, d in geometry)
    return tuple((x + 2 * p - d * (k - 1) - 1) // s + 1 for x, k, s, p, d in geometry)


def filled(values: tuple[int, ...], n: int, default: int) -> tuple[int, ...]:
    """Returns strides, paddings or dilations, ``n`` times the default where there are none."""
    return values if values else (default,) * n


def heads_of(op: Op) -> int:
    """Returns the heads of an ``attention`` or a ``product``: their number stays, or the width of each does."""
    return op.kernel[0] if op.kernel else op.groups


def operand_shapes(op: Op) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of what an op reads that works on rows.

    Of ``attention`` queries ``[N, h, C]``, keys and values ``[N, w, C]``; of a ``product`` ``[N, heads, h, D]`` and
    ``[N, heads, D, w]``; of a ``softmax`` ``[N, C, h, w]``; of others ``[N, h·w, C]``, or ``[N, C]`` of vectors. Heads
    that do not divide the channels are rounded up.
    """
    n, c = op.batch, op.c_in
    if op.kind == "softmax":
        return ((n, c, op.h, op.w),)
    if op.kind in ("attention", "product"):
        heads = heads_of(op)
        width = -(-c // heads)
        if op.kind == "product":
            return (n, heads, op.h, width), (n, heads, width, op.w)
        return (n, op.h, heads * width), (n, op.w, heads * width), (n, op.w, heads * width)
    return ((n, c) if op.h * op.w == 1 else (n, op.h * op.w, c),)
