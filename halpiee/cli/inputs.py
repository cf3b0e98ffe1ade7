"""What a network reads, as it is typed: the size of one image, or every input by the name of forward's argument."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halpiee.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn


INPUTS = "Input by forward's argument, without the batch: image=3x128x128, ids=64:int64; several times."
"""Help of the option."""

TYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int8", "uint8", "bool")

MOST = 2**26
"""Numbers of one input at most: 0.25 GB."""


@dataclass(frozen=True)
class Input:
    """One input of a network."""

    name: str  # of forward's argument; empty where a plan tells the shape alone
    shape: tuple[int, ...]  # without the batch
    dtype: str = "float32"  # its element type, as PyTorch names it

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{self.name}={size}" + ("" if self.dtype == "float32" else f":{self.dtype}")

    def drawn(self, batch: int) -> Tensor:
        """Returns an example: normal numbers, zeros of integers (a token that every network has), or flags."""
        import torch

        size, dtype = (batch, *self.shape), getattr(torch, self.dtype)
        if self.dtype == "bool":
            return torch.ones(size, dtype=dtype)
        return torch.randn(size).to(dtype) if dtype.is_floating_point else torch.zeros(size, dtype=dtype)


Shape = tuple[int, ...] | tuple[Input, ...]
"""(channels, height, width) of the one image that a network takes, or its inputs."""


def parse_inputs(texts: Sequence[str]) -> tuple[Input, ...]:
    """Returns the inputs that ``--input`` names."""
    found: list[Input] = []
    for text in texts:
        match = re.fullmatch(r"([A-Za-z_]\w*)=(\d{1,9}(?:x\d{1,9})*)(?::(\w+))?", text.strip())
        if match is None:
            raise UsageError(
                f"--input {text[:60]} was asked; give the name of forward's argument and its shape without the batch: "
                "--input image=3x128x128, or --input ids=64:int64"
            )
        name, size, dtype = match[1], tuple(int(n) for n in match[2].split("x")), match[3] or "float32"
        if dtype not in TYPES:
            hint = unknown(dtype, TYPES, f"give one of {', '.join(TYPES)}")
            raise UsageError(f"--input {text} was asked; {hint}")
        count = 1
        for n in size:
            count *= n
        if not 0 < count <= MOST:
            raise UsageError(f"--input {text} was asked, of {count:,} numbers; give between 1 and {MOST:,}")
        if name in (one.name for one in found):
            raise UsageError(f"--input {name} was given twice; give every input once")
        found.append(Input(name, size, dtype))
    return tuple(found)


def shapes_of(shape: Shape) -> list[list[int]]:
    """Returns the shape of every input, without the batch."""
    named = [one for one in shape if isinstance(one, Input)]
    return [list(one.shape) for one in named] if named else [[int(n) for n in shape if isinstance(n, int)]]


def spelled(shape: Shape) -> str:
    """Returns the shapes in words: ``3×128×128 and 1×128×128``."""
    return " and ".join("×".join(map(str, one)) for one in shapes_of(shape))


def example_of(model: nn.Module, shape: Shape, batch: int = 1) -> tuple[Any, ...]:
    """Returns example inputs of a network, in the order of forward's arguments.

    Args:
        model: the network.
        shape: of its one image, or its inputs by name. An argument between them that is not named has its default.
        batch: first dimension of every input.

    Raises:
        UsageError: forward has no such argument, or one without a default that is not given.
    """
    import torch

    named = {one.name: one for one in shape if isinstance(one, Input)}
    if not named:
        return (torch.randn(batch, *(n for n in shape if isinstance(n, int))),)
    if "" in named:
        return tuple(one.drawn(batch) for one in shape if isinstance(one, Input))
    known = [
        one
        for one in inspect.signature(model.forward).parameters.values()
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    names = [one.name for one in known]
    what = type(model).__name__
    for name in named:
        if name not in names:
            hint = unknown(name, names, f"its arguments are {', '.join(names)}")
            raise UsageError(f"--input {name} was asked, and forward of {what} has no such argument; {hint}")
    last = max(names.index(name) for name in named)
    needed = [one.name for one in known if one.default is one.empty and one.name not in named]
    if needed:
        raise UsageError(
            f"{what} was to be called with {', '.join(named)}, and needs {', '.join(needed)} too; add "
            + " ".join(f"--input {name}=SHAPE" for name in needed)
        )
    return tuple(
        named[one.name].drawn(batch) if one.name in named else one.default for one in known[: last + 1]
    )
